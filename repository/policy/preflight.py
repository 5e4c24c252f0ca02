"""Before a large write: whether it can fit at all, from two estimates. Pure.

The upper estimate is every byte as it is. The lower one takes a sample into account: what of it is known already, and
how small the rest becomes; and it counts what may be one file under several names only once. Only the lower refuses:
between the two the write begins, and the ladder sees to it when the disk fills up.

All figures are bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from repository.units import GIB, MIB, format_size

BUFFER_BYTES: Final = 2 * GIB
"""What a large write leaves free for everything else on the volume ..."""
BUFFER_PART: Final = 10
"""... but at most this part of it: 10 %."""
LARGE_BYTES: Final = 64 * MIB
"""Less than this is not refused beforehand: that it doesn't fit shows as quickly as it could be estimated."""
SAMPLES_MAX: Final = 64
"""Places looked at: the share of known bytes is then known to about a tenth."""
STRIDE_BYTES: Final = 1 * MIB
"""The first distance between samples."""
DEVIATIONS: Final = 2.0
"""How far below the sample's mean the lower estimate is, in standard errors: about 2 of 100 lie lower by chance."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """How much room a write takes: at least, and at most."""

    lower_bytes: int
    upper_bytes: int


@dataclass(frozen=True, slots=True)
class Remedy:
    """Snapshots whose deletion would free `nbytes` together: as many as it takes, or all that may go at all."""

    names: tuple[str, ...] = ()
    nbytes: int = 0


def usable_bytes(available_bytes: int, capacity_bytes: int) -> int:
    """What a large write may use of what is available on a volume of this capacity."""
    return max(0, available_bytes - min(BUFFER_BYTES, capacity_bytes // BUFFER_PART))


def refuses(estimate_bytes: int, usable: int) -> bool:
    """Whether a write of that size is to be refused. Asked of the upper estimate first: what it lets pass is not
    looked at more closely."""
    return estimate_bytes >= LARGE_BYTES and estimate_bytes > usable


@dataclass(frozen=True, slots=True)
class Place:
    """A place to be looked at: `offset` in the file that was offered as `item`."""

    item: bytes
    offset: int


class Strider:
    """Chooses places at equal distances in a stream of bytes of unknown length: at most SAMPLES_MAX of them.

    The distance doubles, and every other place is dropped, whenever there are too many. So every byte is as likely to
    be looked at as any other, and the same files give the same sample.
    """

    def __init__(self, samples_max: int = SAMPLES_MAX, stride_bytes: int = STRIDE_BYTES) -> None:
        self._samples_max = samples_max
        self._stride = stride_bytes
        self._places: list[tuple[int, Place]] = []
        self._at = 0
        self._next = stride_bytes // 2

    def offer(self, item: bytes, nbytes: int) -> None:
        """The stream goes on with `nbytes` of `item`."""
        end = self._at + nbytes
        while self._next < end:
            self._places.append((self._next, Place(item, self._next - self._at)))
            self._next += self._stride
            if len(self._places) > self._samples_max:
                self._thin()
        self._at = end

    def _thin(self) -> None:
        self._stride *= 2
        self._places = self._places[::2]
        self._next = self._places[-1][0] + self._stride

    def places(self) -> list[Place]:
        """What to look at, in order."""
        return [place for _, place in self._places]


def lower_estimate_bytes(distinct_bytes: int, shares: Sequence[float]) -> int:
    """What `distinct_bytes` take at least, where places in them took these shares of their bytes (0: known, 1: as
    large as they are). Nothing is known without a sample, and nothing refused."""
    count = len(shares)
    if not count:
        return 0
    mean = sum(shares) / count
    variance = sum((share - mean) ** 2 for share in shares) / (count - 1) if count > 1 else 0.0
    share = mean - DEVIATIONS * math.sqrt(variance / count)
    return int(distinct_bytes * min(1.0, max(0.0, share)))


def shortage_text(available_bytes: int, needed_bytes: int, where: str, remedy: Remedy, repo: str) -> str:
    """What a refused user reads: the figures, and what would help on the volume mounted at `where`."""
    short = needed_bytes - available_bytes
    room = f"free at least {format_size(short)} on {where}"
    if remedy.nbytes >= short:
        names = " ".join(remedy.names)
        helps = f"To make room, give up what you can spare ('ballast snapshot delete {repo} {names}' would do), {room}"
    elif remedy.nbytes:
        helps = (
            f"The snapshots that could be given up hold no more than {format_size(remedy.nbytes)} of their own: {room}"
        )
    else:
        helps = f"There is no older snapshot whose deletion would help: {room}"
    return (
        f"Insufficient storage: {format_size(available_bytes)} available, need {format_size(needed_bytes)}. "
        f"{helps}, or store less (--no-estimate begins all the same)."
    )


def restore_shortage_text(available_bytes: int, needed_bytes: int, where: str) -> str:
    """As `shortage_text`, where files are restored onto the volume mounted at `where`."""
    return (
        f"Insufficient storage: {format_size(available_bytes)} available, need {format_size(needed_bytes)}. "
        f"Free at least {format_size(needed_bytes - available_bytes)} on {where}, or restore less: SNAPSHOT:PATH is a "
        "part of it (--no-estimate begins all the same)."
    )


def gave_up_text(stored_bytes: int, available_bytes: int, where: str, *, any_spare: bool, repo: str) -> str:
    """What the user reads whose large write ended for want of room, after its bytes were given back."""
    spare = (
        f"delete snapshots that you can spare ('ballast snapshot list {repo}' shows what each one keeps), "
        if any_spare
        else ""
    )
    return (
        f"Insufficient storage: {format_size(stored_bytes)} were stored when the disk was full. Nothing of them is "
        f"listed, and their room is given back: {format_size(available_bytes)} available. To have more, {spare}"
        f"free room on {where}, or store less."
    )
