"""Where the kernel's snapshot inodes come from: number -> place, in a few bytes each, with lookup counts.

Owner of the invariant: a number that the kernel may still ask about has a place here. The kernel sends no `forget`
without memory pressure, so the table alone would grow with every `find`; `overdue` names the oldest entries, whose
names are then taken away from the kernel, which answers with `forget`. Entries that something holds open stay and age
anew.

A place is a row (a tree segment seen from one directory) and a position in that segment. Loop thread only.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

from fusefs.inodes import InodeNumber
from repository.ids import RecordId

PLACES_MAX: Final = 131_072
"""About 15 MB. More than nearly every working set; a `find` over a million files passes through it."""
ROWS_MAX: Final = 32_768
"""About 400 bytes each. A walk over many snapshots meets the same files, but other directories in each."""
BATCH: Final = 4096
"""Entries considered in one go: some 10 ms of work for the loop, and at most 20 ms for the notifying thread."""
SHARD_PLACES: Final = 2048
"""The table is cut into dictionaries of about this many places, by a remainder. A single one, to which numbers come
and from which they go all the time, moves as a whole again and again, and leaves holes of many megabytes behind."""
DEPTH_MAX: Final = 64
"""Directories above one that are kept young with it: deeper trees lose their tops sooner, which costs only look-ups."""

_POSITION_BITS: Final = 16
_ROW_BITS: Final = 32
_COUNT_SHIFT: Final = _POSITION_BITS + _ROW_BITS
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1
_ROW_MASK: Final = (1 << _ROW_BITS) - 1
_PLACE_MASK: Final = (1 << _COUNT_SHIFT) - 1
_COUNT_MASK: Final = ~_PLACE_MASK
_ONE: Final = 1 << _COUNT_SHIFT


class Row(NamedTuple):
    """A segment as seen from the directory `parent`: its content record and its attributes record."""

    parent: InodeNumber
    content: RecordId
    attrs: RecordId


class Place(NamedTuple):
    """The entry at `position` of the segment `row`."""

    row: Row
    position: int


class PlaceTable:
    """Numbers that the kernel knows, each with its latest place and its lookup count."""

    def __init__(self, places_max: int = PLACES_MAX, rows_max: int = ROWS_MAX) -> None:
        self._places_max = places_max
        self._rows_max = rows_max
        self._shards: list[dict[int, int]] = [{} for _ in range(places_max // SHARD_PLACES | 1)]
        """number -> count << 48 | row << 16 | position. Each in order of (re)insertion: the first is the oldest. An odd
        number of them: the lowest bits of a file's number are its version."""
        self._count = 0
        self._rows: list[Row | None] = []
        self._uses: list[int] = []
        self._row_of: dict[Row, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> int:
        """How many distinct segments the places point into."""
        return len(self._row_of)

    def seen(self, row: Row, seen: Sequence[tuple[int, int]]) -> None:
        """The kernel was told once more of entries of `row`: (number, position) of each."""
        if not seen:
            return
        index = self._intern(row)
        self._uses[index] += len(seen)
        base = index << _POSITION_BITS
        shards, modulus = self._shards, len(self._shards)
        for number, position in seen:
            shard = shards[number % modulus]
            known = shard.pop(number, None)
            if known is None:
                self._count += 1
                shard[number] = _ONE | base | position
            else:
                shard[number] = (known & _COUNT_MASK) + (_ONE | base | position)
                self._release((known >> _POSITION_BITS) & _ROW_MASK)

    def place(self, number: int) -> Place | None:
        """Where `number` was last seen; None for a number the kernel was never told, or forgot."""
        packed = self._shard(number).get(number)
        return None if packed is None else self._unpack(packed)

    def used(self, number: int) -> None:
        """Something happens in the directory `number`: it and all above it count as young. Taking a directory's name
        away from the kernel takes everything below along."""
        for _ in range(DEPTH_MAX):
            shard = self._shard(number)
            packed = shard.pop(number, None)
            if packed is None:
                return
            shard[number] = packed
            number = self._unpack(packed).row.parent

    def forget(self, number: int, lookups: int) -> None:
        """The kernel gave back `lookups` references to `number`."""
        shard = self._shard(number)
        packed = shard.get(number)
        if packed is None:
            return
        left = (packed >> _COUNT_SHIFT) - lookups
        if left > 0:
            shard[number] = left << _COUNT_SHIFT | packed & _PLACE_MASK
            return
        del shard[number]
        self._count -= 1
        self._release((packed >> _POSITION_BITS) & _ROW_MASK)

    def is_full(self) -> bool:
        """Whether there are more than there should be."""
        return self._count > self._places_max or len(self._row_of) > self._rows_max

    def overdue(self) -> list[Place]:
        """Places whose names are to be taken away: the oldest entries beyond the bound, at most a batch, but not those
        that go along with the directory above them. They count as young from now on."""
        if not self.is_full():
            return []
        share = -(-min(BATCH, max(1, self._count // 8)) // len(self._shards))
        oldest: dict[int, Place] = {}
        for shard in self._shards:
            for number in list(islice(shard, share)):
                packed = shard[number] = shard.pop(number)
                oldest[number] = self._unpack(packed)
        return [place for place in oldest.values() if place.row.parent not in oldest]

    def _shard(self, number: int) -> dict[int, int]:
        return self._shards[number % len(self._shards)]

    def _unpack(self, packed: int) -> Place:
        row = self._rows[(packed >> _POSITION_BITS) & _ROW_MASK]
        assert row is not None
        return Place(row, packed & _POSITION_MASK)

    def _intern(self, row: Row) -> int:
        index = self._row_of.get(row)
        if index is not None:
            return index
        if self._free:
            index = self._free.pop()
            self._rows[index] = row
        else:
            index = len(self._rows)
            self._rows.append(row)
            self._uses.append(0)
        self._row_of[row] = index
        return index

    def _release(self, index: int) -> None:
        self._uses[index] -= 1
        if self._uses[index] == 0:
            row = self._rows[index]
            assert row is not None
            del self._row_of[row]
            self._rows[index] = None
            self._free.append(index)
