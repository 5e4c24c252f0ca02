"""The records of all packs as columns, one pack behind the other: what a decision computes on, without a loop. Pure.

A *row* is one position of one pack. Rows of a pack follow each other, so that a number and its row are one addition
apart. An *address* is a byte's place over all packs: the pack's ordinal in the columns times 2^33, plus the offset.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.ids import POSITION_BITS, RECORDS_PER_PACK_MAX, PackIndex

ADDRESS_BITS: Final = 33
"""Offsets and lengths of records have 32 bits each, so no record of one pack touches one of the next."""
_POSITION: Final = np.uint64(RECORDS_PER_PACK_MAX - 1)
_NO_U32: Final = np.zeros(0, np.uint32)
_NO_U8: Final = np.zeros(0, np.uint8)


def distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each of `values` once, ascending: `np.unique` without loading `numpy.ma`, which a short command would feel."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


@dataclass(frozen=True, slots=True)
class PackFacts:
    """One pack as the plan sees it. Columns by position; kind 0: no record is there (void, torn, or freed before).

    `stored` counts the header. `allocated_bytes` is what unlinking gives back; `holes` are ranges (start, end)
    without blocks. `written_ns`: when its last record was added, for all its records alike.
    """

    index: PackIndex
    sealed: bool
    written_ns: int
    allocated_bytes: int
    offset: NDArray[np.uint32]
    stored: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    holes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PackColumns:
    """Packs in ascending order. `base` has one entry more than there are packs: where the rows of each begin."""

    packs: NDArray[np.uint64]
    base: NDArray[np.int64]
    sealed: NDArray[np.bool_]
    written_ns: NDArray[np.int64]
    allocated_bytes: NDArray[np.int64]
    offset: NDArray[np.uint32]
    stored: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    hole_start: NDArray[np.int64]
    hole_end: NDArray[np.int64]
    """Addresses, ascending."""

    @property
    def rows(self) -> int:
        return len(self.stored)

    def rows_of(self, numbers: NDArray[np.uint64]) -> "Rows":
        """The rows of `numbers` (ascending), those that have one."""
        shift = np.uint64(POSITION_BITS)
        lower = np.searchsorted(numbers, self.packs << shift)
        upper = np.searchsorted(numbers, (self.packs + np.uint64(1)) << shift)
        counts = upper - lower
        position = (numbers & _POSITION).astype(np.int64)
        which: NDArray[np.intp] | None = None
        if int(counts.sum()) != len(numbers):
            which = spread(lower, counts)
            position = position[which]
        rows = position + np.repeat(self.base[:-1], counts)
        known = rows < np.repeat(self.base[1:], counts)
        if not known.all():
            rows = rows[known]
            which = np.flatnonzero(known) if which is None else which[known]
        return Rows(rows, which)

    def mask(self, numbers: BitMap64) -> NDArray[np.bool_]:
        """Which rows are in `numbers`."""
        found = np.zeros(self.rows, np.bool_)
        if numbers:
            found[self.rows_of(as_array(numbers)).rows] = True
        return found

    def numbers_of(self, rows: NDArray[np.intp]) -> BitMap64:
        """The numbers of `rows` (ascending)."""
        ordinals = self.ordinals(rows)
        numbers = (self.packs[ordinals] << np.uint64(POSITION_BITS)) + (rows - self.base[ordinals]).astype(np.uint64)
        return as_numbers(numbers)

    def ordinals(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Which pack each of `rows` (ascending) belongs to, as its place in `packs`."""
        return np.repeat(np.arange(len(self.packs)), np.diff(np.searchsorted(rows, self.base)))

    def extents(self, rows: NDArray[np.intp]) -> "Extents":
        """Where the records of `rows` (ascending) lie, in the order of their addresses."""
        ordinals = self.ordinals(rows)
        start = (ordinals.astype(np.int64) << ADDRESS_BITS) + self.offset[rows]
        if len(start) > 1 and (start[1:] < start[:-1]).any():
            order = np.argsort(start, kind="stable")
            rows, ordinals, start = rows[order], ordinals[order], start[order]
        return Extents(rows, ordinals, start, start + self.stored[rows])

    def hole_bytes(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many bytes of each range of addresses have no blocks."""
        if not len(self.hole_start):
            return np.zeros(len(start), np.int64)
        return self._holes_below(end) - self._holes_below(start)

    def _holes_below(self, address: NDArray[np.int64]) -> NDArray[np.int64]:
        sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.hole_end - self.hole_start)))
        which = np.searchsorted(self.hole_start, address, side="right")
        beyond = np.maximum(self.hole_end[np.maximum(which - 1, 0)] - address, 0)
        below: NDArray[np.int64] = sums[which] - np.where(which > 0, beyond, 0)
        return below

    def whole_bytes(self, block_bytes: int) -> NDArray[np.int64]:
        """What removing each pack gives back. Of an open one only what records take: sealing cuts off the rest, which
        is room, and no garbage."""
        whole = self.allocated_bytes.copy()
        for ordinal in np.flatnonzero(~self.sealed & (np.diff(self.base) > 0)).tolist():
            rows = slice(int(self.base[ordinal]), int(self.base[ordinal + 1]))
            end = int((self.offset[rows].astype(np.int64) + self.stored[rows]).max())
            whole[ordinal] = min(int(whole[ordinal]), -(-end // block_bytes) * block_bytes)
        return whole


class Rows(NamedTuple):
    """Rows of some numbers. `which`: of which of them; None: of all, in their order."""

    rows: NDArray[np.int64]
    which: NDArray[np.intp] | None


class Extents(NamedTuple):
    """Records by address: row, ordinal of the pack, first byte, end."""

    rows: NDArray[np.intp]
    ordinals: NDArray[np.intp]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def join(packs: Iterable[PackFacts]) -> PackColumns:
    """All of `packs` as columns."""
    ordered = sorted(packs, key=lambda facts: facts.index)
    base = np.zeros(len(ordered) + 1, np.int64)
    np.cumsum([len(facts.stored) for facts in ordered], out=base[1:])
    holes = [
        ((ordinal << ADDRESS_BITS) + start, (ordinal << ADDRESS_BITS) + end)
        for ordinal, facts in enumerate(ordered)
        for start, end in facts.holes
    ]
    hole_columns = np.array(holes, np.int64).reshape(len(holes), 2)
    return PackColumns(
        np.array([facts.index for facts in ordered], np.uint64),
        base,
        np.array([facts.sealed for facts in ordered], np.bool_),
        np.array([facts.written_ns for facts in ordered], np.int64),
        np.array([facts.allocated_bytes for facts in ordered], np.int64),
        np.concatenate([_NO_U32, *(facts.offset for facts in ordered)]),
        np.concatenate([_NO_U32, *(facts.stored for facts in ordered)]),
        np.concatenate([_NO_U8, *(facts.kind for facts in ordered)]),
        hole_columns[:, 0],
        hole_columns[:, 1],
    )


def with_packs(columns: PackColumns, more: PackColumns) -> PackColumns:
    """Both together; no pack is in both. Cheap where `more` are few."""
    at = np.searchsorted(columns.packs, more.packs)
    before = np.repeat(columns.base[at], np.diff(more.base))
    holes = [_readdressed(columns, at, 0), _readdressed(more, at, 1)]
    start = np.concatenate([one[0] for one in holes])
    end = np.concatenate([one[1] for one in holes])
    order = np.argsort(start, kind="stable")
    base = np.zeros(len(columns.packs) + len(more.packs) + 1, np.int64)
    np.cumsum(np.insert(np.diff(columns.base), at, np.diff(more.base)), out=base[1:])
    return PackColumns(
        np.insert(columns.packs, at, more.packs),
        base,
        np.insert(columns.sealed, at, more.sealed),
        np.insert(columns.written_ns, at, more.written_ns),
        np.insert(columns.allocated_bytes, at, more.allocated_bytes),
        np.insert(columns.offset, before, more.offset),
        np.insert(columns.stored, before, more.stored),
        np.insert(columns.kind, before, more.kind),
        start[order],
        end[order],
    )


def _readdressed(columns: PackColumns, at: NDArray[np.intp], which: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The holes of one part of `with_packs` (0: the many, 1: the few), at their new addresses."""
    ordinals = columns.hole_start >> ADDRESS_BITS
    if which:
        moved = at[ordinals]
    else:
        moved = np.searchsorted(at, ordinals, side="right")
    shift = moved.astype(np.int64) << ADDRESS_BITS
    return columns.hole_start + shift, columns.hole_end + shift


def spread(first: NDArray[np.intp], counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """`first[i]`, `first[i] + 1`, ... `counts[i]` of them, for every i."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    members: NDArray[np.intp] = np.arange(total) + np.repeat(first - (ends - counts), counts)
    return members


def as_array(numbers: BitMap64) -> NDArray[np.uint64]:
    """The members, ascending."""
    return np.frombuffer(numbers.to_array(), np.uint64) if numbers else np.zeros(0, np.uint64)


def as_numbers(members: NDArray[np.uint64]) -> BitMap64:
    """A set of `members`."""
    return BitMap64(array("Q", members.astype(np.uint64).tobytes()))
