"""How much room is enough: for one failed allocation, for a while, and for the way back from read-only. Pure.

All figures are bytes. Room is what growth may take now, after the quota.
"""

from dataclasses import dataclass
from typing import Final

from repository.units import GB, MIB

MARGIN_BYTES: Final = 1 * GB
"""What a recovery frees beyond what it must, so that a long copy does not climb at each segment ..."""
MARGIN_PART: Final = 20
"""... but at most this part of the volume: 5 %."""
RELEASE_SLICE_BYTES: Final = 64 * MIB
"""What is lent of the reserve at once: all that file systems need to free anything, and quickly given back."""
AHEAD_SEGMENTS: Final = 4
"""Of the margin, so many segments at most are freed while a writer waits: punching them takes half a second on a slow
disk, all of the margin would take seconds."""
CUSHION_BYTES: Final = 64 * MIB
CUSHION_PART: Final = 64
"""What stays free on a copy-on-write volume, at most one part in so many of it: even a write into blocks that a file
has already looks for free ones there first, and where there are none each takes up to seconds."""
RETURN_SEGMENTS: Final = 2
"""Segments that must fit before read-only mode ends: one for data, one for the records that describe it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen: what growth may take (below zero: so much is owed first), what the reserve lacks, and whether a
    new file can be made at all. `kept_bytes`: what only the reserve may take beside that."""

    available_bytes: int
    missing_bytes: int
    inodes: bool = True
    kept_bytes: int = 0

    @property
    def whole(self) -> bool:
        """Whether the reserve is."""
        return self.missing_bytes <= 0

    @property
    def refits(self) -> bool:
        """Whether the reserve could be given what it lacks."""
        return self.available_bytes + self.kept_bytes >= self.missing_bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What a repository needs at a time. `segment_bytes`: what one allocation takes; `slice_bytes`: see
    RELEASE_SLICE_BYTES; `margin_bytes`: see `margin_bytes`."""

    segment_bytes: int
    margin_bytes: int
    slice_bytes: int = RELEASE_SLICE_BYTES


def margin_bytes(capacity_bytes: int) -> int:
    """The margin on a volume (or under a quota) of this capacity."""
    return min(MARGIN_BYTES, max(0, capacity_bytes) // MARGIN_PART)


def ahead_bytes(needs: Needs) -> int:
    """The part of the margin that a writer waits for who meets a full disk again before it was freed behind him."""
    return min(needs.margin_bytes, AHEAD_SEGMENTS * needs.segment_bytes)


def cushion_bytes(capacity_bytes: int) -> int:
    """What growth leaves free on a copy-on-write volume of this capacity."""
    return min(CUSHION_BYTES, max(0, capacity_bytes) // CUSHION_PART)


def least_bytes(failed_bytes: int, sight: Sight, phantom_bytes: int = 0) -> int:
    """What must still come free so that the reserve is whole and the failed allocation fits; at most 0: enough.

    `phantom_bytes` of what is available are not really there: an allocation failed beside them. Without an inode
    nothing fits but the reserve, whose file exists.
    """
    available = sight.available_bytes
    beyond = max(min(0, available), available - phantom_bytes) - sight.missing_bytes
    return failed_bytes - (beyond if sight.inodes else min(beyond, 0))


def may_return(needs: Needs, refused_bytes: int, sight: Sight, phantom_bytes: int) -> bool:
    """Whether read-only mode ends. `refused_bytes`: the largest claim that was refused."""
    return sight.whole and least_bytes(return_bytes(needs, refused_bytes), sight, phantom_bytes) <= 0


def return_bytes(needs: Needs, refused_bytes: int) -> int:
    """The room at which read-only mode ends, the reserve being whole. `refused_bytes`: the largest refused claim."""
    return RETURN_SEGMENTS * needs.segment_bytes + refused_bytes
