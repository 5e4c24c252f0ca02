"""Which snapshots need which record, as lifetimes along each source's snapshots. Pure.

Snapshots of one source follow each other in time, and what one adds mostly stays until some later one drops it: a
record needs an interval [born, died) of positions in the run, rarely several. So who needs what takes a few bytes a
record, however many snapshots there are; and which records die with *any* set of snapshots is a handful of operations
over these columns, instead of a union over all others.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.policy.columns import PackColumns, Rows, as_array, as_numbers

NEVER: Final = np.int32((1 << 31) - 1)
"""`died` of what the last of the run needs."""
BYTES_PER_INTERVAL: Final = 24
"""A number, two positions, and a row."""


class Fates(NamedTuple):
    """Numbers, ascending, some of them several times; the largest fate of a number counts."""

    numbers: NDArray[np.uint64]
    fates: NDArray[np.int32]


class Track:
    """The intervals of one growing run of sets. Not thread safe. Memory: BYTES_PER_INTERVAL, and the last set."""

    def __init__(self) -> None:
        self.length = 0
        """Sets taken in."""
        self._rows: tuple[PackColumns, Rows] | None = None
        self._standing = BitMap64()
        self._waiting: list[tuple[NDArray[np.uint64], int, bool]] = []
        self._numbers = np.zeros(0, np.uint64)
        self._born = np.zeros(0, np.int32)
        self._died = np.zeros(0, np.int32)

    def append(self, needed: BitMap64) -> None:
        """The next set of the run. Cheap where it differs little from the last."""
        self.change(needed - self._standing, self._standing - needed)

    def change(self, added: BitMap64, removed: BitMap64) -> None:
        """The same, told as a difference: nothing of `added` was in the last set, all of `removed` was."""
        if removed:
            self._waiting.append((as_array(removed), self.length, False))
            self._standing -= removed
        if added:
            self._waiting.append((as_array(added), self.length, True))
            self._standing |= added
        self.length += 1

    @property
    def standing(self) -> BitMap64:
        """The last set. Not to be changed."""
        return self._standing

    @property
    def intervals(self) -> int:
        self._settle()
        return len(self._numbers)

    def fates(self, ranks: NDArray[np.int32], stays: np.int32) -> Fates:
        """The fate of every interval: the largest of `ranks` (one a position) within it."""
        self._settle()
        ranks = ranks[: self.length]
        died = np.minimum(self._died, np.int32(len(ranks)))
        fates = np.where(_count(ranks >= stays, self._born, died) > 0, stays, np.int32(0))
        passing = (ranks > 0) & (ranks < stays)
        if passing.any():
            open_ = np.flatnonzero(fates == 0)
            open_ = open_[_count(passing, self._born[open_], died[open_]) > 0]
            fates[open_] = _largest_within(ranks, self._born[open_], died[open_])
        return Fates(self._numbers, fates)

    def single(self, alive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every interval how many of the `alive` positions (one entry each) are in it, and the first of those (any
        where there is none)."""
        self._settle()
        sums = np.zeros(len(alive) + 1, np.int64)
        np.cumsum(alive, out=sums[1:])
        before = sums.take(self._born)
        counts: NDArray[np.int64] = sums.take(np.minimum(self._died, np.int32(len(alive)))) - before
        places = np.append(np.flatnonzero(alive), 0)
        return counts, places.take(before)

    def compact(self, wanted: NDArray[np.bool_]) -> None:
        """Forget all positions but the `wanted` ones (one entry a position), which move together."""
        self._settle()
        moved = np.zeros(len(wanted) + 1, np.int32)
        np.cumsum(wanted, out=moved[1:])
        self.length = int(moved[-1])
        lasting = self._died == NEVER
        born, died = moved.take(self._born), moved.take(np.minimum(self._died, np.int32(len(wanted))))
        self._rows = None
        left = np.flatnonzero(died > born)
        self._numbers, self._born = self._numbers[left], born[left]
        # What the last one needs that is left is not over yet: its successor may need it still.
        open_ = lasting[left] | (died[left] == self.length)
        self._died = np.where(open_, NEVER, died[left]).astype(np.int32)
        self._standing = as_numbers(self._numbers[open_])

    def rows(self, columns: PackColumns) -> Rows:
        """Where the numbers of the intervals stand in `columns`; remembered for the last columns asked about."""
        self._settle()
        if self._rows is None or self._rows[0] is not columns:
            self._rows = columns, columns.rows_of(self._numbers)
        return self._rows[1]

    def _settle(self) -> None:
        if not self._waiting:
            return
        self._rows = None
        if len(self._numbers) and sum(len(numbers) for numbers, _, _ in self._waiting) < len(self._numbers) // 4:
            for numbers, position, added in self._waiting:
                self._take(numbers, position, added=added)
        else:
            self._rebuild()
        self._waiting = []

    def _take(self, numbers: NDArray[np.uint64], position: int, *, added: bool) -> None:
        at = np.searchsorted(self._numbers, numbers, side="right")
        if not added:
            self._died[at - 1] = position
            return
        self._numbers = np.insert(self._numbers, at, numbers)
        self._born = np.insert(self._born, at, np.int32(position))
        self._died = np.insert(self._died, at, NEVER)

    def _rebuild(self) -> None:
        """All at once: in the order of numbers, what follows a birth is the death that belongs to it."""
        # For each number its births and deaths in turn, then what waits, which is later: a stable sort keeps that.
        both = np.stack((self._born, self._died), axis=1).ravel()
        told = both != NEVER
        parts = [(np.repeat(self._numbers, 2)[told], both[told], np.tile((True, False), len(self._numbers))[told])]
        parts += [
            (numbers, np.full(len(numbers), at, np.int32), np.full(len(numbers), added, np.bool_))
            for numbers, at, added in self._waiting
        ]
        numbers, positions, births = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(numbers, kind="stable")
        numbers, positions, births = numbers[order], positions[order], births[order]
        born = np.flatnonzero(births)
        following = np.minimum(born + 1, len(numbers) - 1)
        ended = (born + 1 < len(numbers)) & (numbers[following] == numbers[born])
        self._numbers, self._born = numbers[born], positions[born]
        self._died = np.where(ended, positions[following], NEVER).astype(np.int32)


def _count(chosen: NDArray[np.bool_], first: NDArray[np.int32], end: NDArray[np.int32]) -> NDArray[np.int32]:
    """How many of the positions [first, end) are chosen."""
    sums = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(chosen, out=sums[1:])
    within: NDArray[np.int32] = sums.take(end) - sums.take(first)
    return within


def _largest_within(ranks: NDArray[np.int32], first: NDArray[np.int32], end: NDArray[np.int32]) -> NDArray[np.int32]:
    """The largest of ranks[first:end], none of them empty: two overlapping stretches of a power of two each."""
    levels = [ranks]
    while (width := 1 << len(levels)) <= len(ranks):
        below = levels[-1]
        levels.append(np.maximum(below[: len(ranks) - width + 1], below[width // 2 :][: len(ranks) - width + 1]))
    table = np.zeros((len(levels), len(ranks)), np.int32)
    for level, row in enumerate(levels):
        table[level, : len(row)] = row
    length = end - first
    chosen = _LOG2.take(length) if len(ranks) < len(_LOG2) else _log2(length)
    start, back = chosen * len(ranks), np.left_shift(np.int64(1), chosen)
    flat = table.ravel()
    largest: NDArray[np.int32] = np.maximum(flat.take(start + first), flat.take(start + end - back))
    return largest


def _log2(length: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The exponent of the largest power of two in each length (1 or more)."""
    return np.frexp(length.astype(np.float64))[1].astype(np.int64) - 1


_LOG2: Final = _log2(np.arange(4096))
"""For runs of ordinary length."""
