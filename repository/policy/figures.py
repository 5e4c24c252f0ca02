"""What would come free besides, if some records died: the figure behind `unique_bytes`. Pure.

The same whole blocks as `policy.collect` counts, but found around the records asked about instead of over the whole
pack: ten thousand snapshots ask one after the other.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.ids import RECORDS_PER_PACK_MAX
from repository.policy.collect import PackFacts, live_rows, pack_numbers, whole_pack_bytes

_MASK: Final = np.uint64(RECORDS_PER_PACK_MAX - 1)


class PackFigures:
    """One pack as it is: which of its records are dead, and what that gives back already."""

    def __init__(self, facts: PackFacts, kept: BitMap64, block_bytes: int, *, punch: bool = True) -> None:
        self._facts = facts
        self._block = block_bytes
        self._punch = punch
        there = np.flatnonzero(facts.stored)
        order = there[np.argsort(facts.offset[there], kind="stable")]
        self._start = facts.offset[order].astype(np.int64)
        self._end = self._start + facts.stored[order].astype(np.int64)
        self._rank = np.full(len(facts.offset), -1, np.int64)
        """Where each position stands in the order of offsets."""
        self._rank[order] = np.arange(len(order))
        self._dead = (~live_rows(kept, facts.index, len(facts.offset)) | (facts.kind == 0))[order]
        self._live_count = int(np.count_nonzero(~self._dead))
        self._run_start, self._run_end = self._runs()
        heads = np.flatnonzero(self._dead & (self._run_start == self._start))
        freed = self._whole(self._run_start[heads], self._run_end[heads])
        for hole_start, hole_end in facts.holes:
            first, last = self._blocks(self._run_start[heads], self._run_end[heads])
            overlap = np.minimum(last, hole_end) - np.maximum(first, hole_start)
            freed = freed - np.clip(overlap, 0, freed)
        self._given_bytes = int(freed.sum()) if punch else 0

    def _runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each record, in order, the bytes of the dead run that it belongs to (meaningless for live ones)."""
        joins = np.zeros(len(self._start), np.bool_)
        joins[1:] = self._dead[1:] & self._dead[:-1] & (self._start[1:] == self._end[:-1])
        first = np.maximum.accumulate(np.where(joins, 0, np.arange(len(joins))))
        last = (
            len(joins)
            - 1
            - np.maximum.accumulate(np.where(np.append(joins[1:], False)[::-1], 0, np.arange(len(joins))))[::-1]
        )
        return self._start[first], self._end[last]

    def _blocks(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return -(-start // self._block) * self._block, end // self._block * self._block

    def _whole(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
        first, last = self._blocks(start, end)
        whole: NDArray[np.int64] = np.maximum(last - first, 0)
        return whole

    def gain_bytes(self, numbers: BitMap64) -> int:
        """What comes free besides when those of `numbers` that lie here die too."""
        found = numbers & pack_numbers(self._facts.index)
        positions = (np.asarray(found.to_array(), np.uint64) & _MASK).astype(np.int64)
        ranks = np.sort(self._rank[positions[positions < len(self._rank)]])
        ranks = ranks[ranks >= 0]
        ranks = ranks[~self._dead[ranks]]
        if not len(ranks):
            return 0
        if len(ranks) == self._live_count:
            return whole_pack_bytes(self._facts, self._block) - self._given_bytes
        if not self._punch:
            return 0
        start, end = self._start[ranks].copy(), self._end[ranks].copy()
        before = np.maximum(ranks - 1, 0)
        left = (ranks > 0) & self._dead[before] & (self._end[before] == start)
        after = np.minimum(ranks + 1, len(self._start) - 1)
        right = (ranks < len(self._start) - 1) & self._dead[after] & (self._start[after] == end)
        # Old runs on both sides are swallowed; one between two dying neighbours must count once.
        swallowed = np.unique(np.concatenate((self._run_start[before[left]], self._run_start[after[right]])))
        ends_of = dict(zip(self._run_start[before[left]].tolist(), self._run_end[before[left]].tolist(), strict=True))
        ends_of |= dict(zip(self._run_start[after[right]].tolist(), self._run_end[after[right]].tolist(), strict=True))
        old_end = np.array([ends_of[one] for one in swallowed.tolist()], np.int64)
        start[left] = self._run_start[before[left]]
        end[right] = self._run_end[after[right]]
        order = np.argsort(start, kind="stable")
        start, end = start[order], np.maximum.accumulate(end[order])
        breaks = np.append(True, start[1:] > end[:-1])
        merged_start = start[breaks]
        merged_end = end[np.append(np.flatnonzero(breaks)[1:] - 1, len(end) - 1)]
        return int(self._whole(merged_start, merged_end).sum() - self._whole(swallowed, old_end).sum())
