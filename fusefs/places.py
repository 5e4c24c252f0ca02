"""Where the kernel's snapshot inodes come from: number -> place, in a few bytes each, with lookup counts.

Owner of the invariant: a number that the kernel may still ask about has a place here. The kernel sends no `forget`
without memory pressure, so the table alone would grow with every `find`; `overdue` names the oldest entries, whose
names are then taken away from the kernel, which answers with `forget`. Entries that something holds open stay and age
anew.

A place is a row (a tree segment seen from one directory) and a position in that segment. Loop thread only.
"""

from itertools import islice
from typing import Final, NamedTuple

from fusefs.inodes import InodeNumber
from repository.ids import RecordId

PLACES_MAX: Final = 131_072
"""About 15 MB. More than nearly every working set; a `find` over a million files passes through it."""
BATCH: Final = 4096
"""Names taken away from the kernel in one go: some 20 ms of work for the notifying thread."""
DEPTH_MAX: Final = 64
"""Directories above one that are kept young with it: deeper trees lose their tops sooner, which costs only look-ups."""

_POSITION_BITS: Final = 16
_ROW_BITS: Final = 32
_COUNT_SHIFT: Final = _POSITION_BITS + _ROW_BITS
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1
_ROW_MASK: Final = (1 << _ROW_BITS) - 1
_PLACE_MASK: Final = (1 << _COUNT_SHIFT) - 1


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

    def __init__(self, places_max: int = PLACES_MAX) -> None:
        self._places_max = places_max
        self._packed: dict[int, int] = {}
        """number -> count << 48 | row << 16 | position. In order of (re)insertion: the first is the oldest."""
        self._rows: list[Row | None] = []
        self._uses: list[int] = []
        self._row_of: dict[Row, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def rows(self) -> int:
        """How many distinct segments the places point into."""
        return len(self._row_of)

    def seen(self, number: InodeNumber, row: Row, position: int) -> None:
        """The kernel was told of `number` once more, at this place."""
        index = self._intern(row)
        self._uses[index] += 1
        known = self._packed.pop(number, None)
        count = 1
        if known is not None:
            count += known >> _COUNT_SHIFT
            self._release((known >> _POSITION_BITS) & _ROW_MASK)
        self._packed[number] = count << _COUNT_SHIFT | index << _POSITION_BITS | position

    def place(self, number: int) -> Place | None:
        """Where `number` was last seen; None for a number the kernel was never told, or forgot."""
        packed = self._packed.get(number)
        if packed is None:
            return None
        row = self._rows[(packed >> _POSITION_BITS) & _ROW_MASK]
        assert row is not None
        return Place(row, packed & _POSITION_MASK)

    def used(self, number: int) -> None:
        """Something happens in the directory `number`: it and all above it count as young. Taking a directory's name
        away from the kernel takes everything below along."""
        for _ in range(DEPTH_MAX):
            packed = self._packed.pop(number, None)
            if packed is None:
                return
            self._packed[number] = packed
            row = self._rows[(packed >> _POSITION_BITS) & _ROW_MASK]
            assert row is not None
            number = row.parent

    def forget(self, number: int, lookups: int) -> None:
        """The kernel gave back `lookups` references to `number`."""
        packed = self._packed.get(number)
        if packed is None:
            return
        left = (packed >> _COUNT_SHIFT) - lookups
        if left > 0:
            self._packed[number] = left << _COUNT_SHIFT | packed & _PLACE_MASK
            return
        del self._packed[number]
        self._release((packed >> _POSITION_BITS) & _ROW_MASK)

    def is_full(self) -> bool:
        """Whether there are more than there should be."""
        return len(self._packed) > self._places_max

    def overdue(self) -> list[tuple[InodeNumber, Place]]:
        """The oldest entries beyond the bound, at most a batch; they count as young from now on."""
        if not self.is_full():
            return []
        oldest = list(islice(self._packed, min(BATCH, max(1, self._places_max // 8))))
        found: list[tuple[InodeNumber, Place]] = []
        for number in oldest:
            place = self.place(number)
            assert place is not None
            found.append((InodeNumber(number), place))
            self._packed[number] = self._packed.pop(number)
        return found

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
