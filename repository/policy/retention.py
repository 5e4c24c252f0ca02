"""Which snapshots are given up when a full disk leaves no other way: weighted-random, one after the other. Pure.

A snapshot's weight is `(1 / gap_days) ** exponent`, the gap being the time to the snapshot before it: where snapshots
lie close together, one of them is missed least. A larger exponent spreads those that stay more evenly. After each
choice the gap of the one behind it is measured anew.

The order of snapshots is that of their ids, which only grow. Times say nothing but how long a gap is, so a clock that
jumped can neither make an old snapshot the newest, nor get one chosen.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from repository.ids import SnapshotId
from repository.units import NS_PER_S

DAY_S: Final = 24 * 3600
GAP_MIN_S: Final = 1.0
"""A shorter gap counts as this long: snapshots of equal time weigh much, not infinitely."""
EXPONENT_DEFAULT: Final = 2.0


class Randomness(Protocol):
    """Where chance comes from; `random.Random` is one."""

    def random(self) -> float:
        """At least 0, less than 1, evenly."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """One listed snapshot. `keep`: it is never given up (pinned or named), and still ends the gap of the next."""

    snapshot: SnapshotId
    source: str
    time_ns: int
    keep: bool = False


def gap_weight(gap_s: float, exponent: float) -> float:
    """`(1 / gap_days) ** exponent`, gaps below GAP_MIN_S counting as that."""
    return math.exp(_log_weight(gap_s, exponent))


def _log_weight(gap_s: float, exponent: float) -> float:
    return -exponent * math.log(max(gap_s, GAP_MIN_S) / DAY_S)


def most_given_up(candidates: int) -> int:
    """How many of so many candidates one recovery may take: half of them, and a single one."""
    return max(1, candidates // 2) if candidates else 0


def thinning_order(
    snapshots: Iterable[Kept], *, min_snapshots: int, exponent: float, rng: Randomness
) -> list[SnapshotId]:
    """In which order snapshots are given up, as far as one recovery may go at all.

    Never: what is kept, the newest of each source, and what would leave a source fewer than `min_snapshots`. A
    source's oldest only when nothing else is left. At most half of the candidates (but one of one).
    """
    draw = _Draw(sorted(snapshots, key=lambda one: (one.source, one.snapshot)), min_snapshots, exponent)
    order: list[SnapshotId] = []
    for _ in range(most_given_up(draw.candidates)):
        at = draw.next(rng)
        if at is None:
            break
        order.append(draw.take(at))
    return order


class _Draw:
    """All snapshots, by source and then by age, and the logarithm of each one's weight (-inf: it cannot be drawn)."""

    def __init__(self, ordered: Sequence[Kept], min_snapshots: int, exponent: float) -> None:
        self._ordered = ordered
        self._exponent = exponent
        count = len(ordered)
        self._before = [at - 1 if at and ordered[at - 1].source == ordered[at].source else -1 for at in range(count)]
        self._after = [-1] * count
        for at, before in enumerate(self._before):
            if before >= 0:
                self._after[before] = at
        runs: dict[str, list[int]] = {}
        for at, one in enumerate(ordered):
            runs.setdefault(one.source, []).append(at)
        self._spare = {source: max(0, len(run) - max(1, min_snapshots)) for source, run in runs.items()}
        self._fixed = [one.keep for one in ordered]
        self._longest_s: dict[str, float] = {}
        self.candidates = 0
        for source, run in runs.items():
            # The newest by what people see as well as by what really is.
            for newest in (run[-1], max(run, key=lambda at: (ordered[at].time_ns, at))):
                self._fixed[newest] = True
            self.candidates += min(self._spare[source], sum(not self._fixed[at] for at in run))
            self._longest_s[source] = max([GAP_MIN_S, *(self._gap_s(at) for at in run[1:])])
        self._log_weights = np.array([self._log_weight(at) for at in range(count)], np.float64)

    def _gap_s(self, at: int) -> float:
        return (self._ordered[at].time_ns - self._ordered[self._before[at]].time_ns) / NS_PER_S

    def _log_weight(self, at: int) -> float:
        """The oldest has no gap, and weighs nothing beside others. A clock that went back tells no gap either: such a
        snapshot weighs as little as any of its source."""
        source = self._ordered[at].source
        if self._fixed[at] or self._before[at] < 0 or not self._spare[source]:
            return -math.inf
        gap_s = self._gap_s(at)
        return _log_weight(gap_s if gap_s >= 0 else self._longest_s[source], self._exponent)

    def next(self, rng: Randomness) -> int | None:
        """Draw one; None where none may go."""
        top = self._log_weights.max(initial=-math.inf)
        if top == -math.inf:
            return self._next_oldest(rng)
        sums = np.exp(self._log_weights - top).cumsum()
        at = int(sums.searchsorted(rng.random() * sums[-1], side="right"))
        return at if at < len(sums) else int(np.flatnonzero(self._log_weights > -math.inf)[-1])

    def _next_oldest(self, rng: Randomness) -> int | None:
        """Nothing has a gap any more: the oldest of the sources, each as likely."""
        left = [
            at
            for at, one in enumerate(self._ordered)
            if self._before[at] < 0 and not self._fixed[at] and self._spare[one.source]
        ]
        return left[min(int(rng.random() * len(left)), len(left) - 1)] if left else None

    def take(self, at: int) -> SnapshotId:
        """Give one up; the gap of the next one grows."""
        gone = self._ordered[at]
        before, after = self._before[at], self._after[at]
        self._fixed[at] = True
        self._log_weights[at] = -math.inf
        self._spare[gone.source] -= 1
        if before >= 0:
            self._after[before] = after
        if after >= 0:
            self._before[after] = before
            self._log_weights[after] = self._log_weight(after)
        if not self._spare[gone.source]:
            for other, one in enumerate(self._ordered):
                if one.source == gone.source:
                    self._log_weights[other] = -math.inf
        return gone.snapshot
