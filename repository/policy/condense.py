"""Which implicit snapshots may go because later ones of the same period stand for them. Pure.

All of them stay for 24 hours, then the last of each hour for 7 days, the last of each day for 90 days, then the last
of each week. Periods are aligned to UTC (weeks begin on Monday), so that the answer does not depend on when it is
asked for: what one run keeps, a later run with the same tiers keeps too. Named and pinned snapshots are never chosen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from repository.ids import SnapshotId
from repository.units import NS_PER_S

HOUR_NS: Final = 3600 * NS_PER_S
DAY_NS: Final = 24 * HOUR_NS
WEEK_NS: Final = 7 * DAY_NS
WEEK_OFFSET_NS: Final = 3 * DAY_NS
"""1970-01-01 was a Thursday: three days after a Monday."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Snapshots at least `from_age_ns` old are thinned to the last one of each `period_ns`."""

    from_age_ns: int
    period_ns: int


TIERS: Final = (
    Tier(90 * DAY_NS, WEEK_NS),
    Tier(7 * DAY_NS, DAY_NS),
    Tier(1 * DAY_NS, HOUR_NS),
)
"""Oldest first: the first tier that an age reaches counts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One implicit snapshot of one source. `keep` is set for a pinned one: it stays, and stands for its period."""

    snapshot: SnapshotId
    time_ns: int
    keep: bool = False


def condense(candidates: Iterable[Candidate], now_ns: int, tiers: Sequence[Tier] = TIERS) -> list[SnapshotId]:
    """Ids of the snapshots that may be deleted, oldest first. The newest is never among them."""
    ordered = sorted(candidates, key=lambda one: (one.time_ns, one.snapshot))
    gone: list[SnapshotId] = []
    for one, following in pairwise(ordered):
        if one.keep:
            continue
        period_ns = _period_ns(now_ns - one.time_ns, tiers)
        if period_ns and _period_of(one.time_ns, period_ns) == _period_of(following.time_ns, period_ns):
            gone.append(one.snapshot)
    return gone


def _period_ns(age_ns: int, tiers: Sequence[Tier]) -> int:
    """Length of the period that a snapshot of this age is thinned to; 0 for one that is too young (or in the
    future)."""
    return next((tier.period_ns for tier in tiers if age_ns >= tier.from_age_ns), 0)


def _period_of(time_ns: int, period_ns: int) -> int:
    """Number of the period that holds `time_ns`, counted from a Monday at 00:00 UTC."""
    return (time_ns + WEEK_OFFSET_NS) // period_ns
