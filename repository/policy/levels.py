"""How full is full: levels of a volume's room, with hysteresis. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from repository.units import GB, NS_PER_S


class Level(StrEnum):
    """How little is available. `UNKNOWN`: the probe has failed for longer than its last value stands."""

    HEALTHY = "healthy"
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


INFO_BELOW: Final = 0.20
WARNING_BELOW: Final = 0.10
CRITICAL_BELOW: Final = 0.05
"""Parts of the capacity that are available."""
LEAVE_ABOVE: Final = 0.02
"""A level is left only when this much more than its border is available: no flapping around it."""
CRITICAL_BYTES: Final = 1 * GB
CRITICAL_BYTES_FROM_CAPACITY: Final = 20 * GB
"""The absolute floor counts from this capacity on: below, 1 GB would be more than 5 %."""
PROBE_STANDS_S: Final = 30.0
"""Seconds that the last good reading of a failing probe stands."""

_BORDERS: Final = ((Level.CRITICAL, CRITICAL_BELOW), (Level.WARNING, WARNING_BELOW), (Level.INFO, INFO_BELOW))
_SEVERITY: Final = {Level.HEALTHY: 0, Level.UNKNOWN: 0, Level.INFO: 1, Level.WARNING: 2, Level.CRITICAL: 3}


@dataclass(frozen=True, slots=True)
class Room:
    """What the volume, cut by the quota, has: bytes and inodes; inodes 0 of 0 where the volume has no such bound."""

    capacity_bytes: int
    available_bytes: int
    capacity_inodes: int = 0
    available_inodes: int = 0


def level_of(room: Room, previous: Level = Level.HEALTHY) -> Level:
    """The level of `room`, coming from `previous`: entering is immediate, leaving needs LEAVE_ABOVE more."""
    return max(
        _level(room.available_bytes, room.capacity_bytes, previous, with_floor=True),
        _level(room.available_inodes, room.capacity_inodes, previous, with_floor=False),
        key=_SEVERITY.__getitem__,
    )


def _level(available: int, capacity: int, previous: Level, *, with_floor: bool) -> Level:
    if capacity <= 0:
        return Level.HEALTHY
    floor = CRITICAL_BYTES if with_floor and capacity >= CRITICAL_BYTES_FROM_CAPACITY else 0
    for level, border in _BORDERS:
        sticky = LEAVE_ABOVE * capacity if _SEVERITY[previous] >= _SEVERITY[level] else 0.0
        absolute = floor if level is Level.CRITICAL else 0
        if available < max(border * capacity, float(absolute)) + sticky:
            return level
    return Level.HEALTHY


def headspace_default_bytes(capacity_bytes: int) -> int:
    """What stays free beside the reserve unless told otherwise: 10 % of the volume, at most 10 GiB."""
    return min(capacity_bytes // 10, 10 * 1024**3)


def is_worse(level: Level, than: Level) -> bool:
    """Whether `level` means less room than `than`."""
    return _SEVERITY[level] > _SEVERITY[than]


SAID_EVERY_NS: Final = 24 * 3600 * NS_PER_S
"""A level is told in the log once a day at most, however often it is entered."""


@dataclass(frozen=True, slots=True)
class LevelWatch:
    """What somebody who watches knows. `seen_ns`: of the last good reading; `said_ns`: when each level was told."""

    level: Level = Level.HEALTHY
    seen_ns: int | None = None
    said_ns: Mapping[Level, int] = field(default_factory=dict)

    def look(self, room: Room | None, now_ns: int) -> "tuple[LevelWatch, bool]":
        """After a reading (None: the probe failed) at `now_ns`; and whether the level is to be told.

        The last level stands for PROBE_STANDS_S after its reading. A clock that went back ages nothing.
        """
        seen_ns = self.seen_ns if room is None else now_ns
        if room is not None:
            level = level_of(room, self.level)
        elif seen_ns is not None and now_ns - seen_ns <= PROBE_STANDS_S * NS_PER_S:
            level = self.level
        else:
            level = Level.UNKNOWN
        if level is self.level:
            return LevelWatch(level, seen_ns, self.said_ns), False
        last = self.said_ns.get(level)
        if last is not None and 0 <= now_ns - last < SAID_EVERY_NS:
            return LevelWatch(level, seen_ns, self.said_ns), False
        return LevelWatch(level, seen_ns, {**self.said_ns, level: now_ns}), True
