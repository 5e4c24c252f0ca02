"""Which packs there are, and the columns of those that no index segment covers."""

from dataclasses import dataclass
from typing import Final

from repository.format.pack import PackDirectory, Stream
from repository.format.record import Place
from repository.ids import PackIndex, RecordNumber, pack_of, position_of
from repository.packs.openpack import OpenPack


@dataclass(frozen=True, slots=True)
class PackInfo:
    """One pack. `records` counts positions used; `size_bytes` is the file's length, `allocated_bytes` are its blocks on
    the volume; `written_ns` is when the last record was added (0 while it is open), `created_ns` when the first could
    be."""

    index: PackIndex
    sealed: bool
    records: int
    size_bytes: int
    allocated_bytes: int
    stream: Stream
    created_ns: int
    written_ns: int


@dataclass(slots=True)
class KnownPack:
    """A pack in the table.

    `columns` None: covered by an index segment, its directory is read when asked for. `stamp` (mtime in ns, blocks) is
    what the segment says of the pack's file; None once it is known that no hole was punched that the index misses.
    """

    index: PackIndex
    sealed: bool
    records: int
    stream: Stream
    created_ns: int
    written_ns: int
    columns: OpenPack | PackDirectory | None
    stamp: tuple[int, int] | None = None
    unsure: frozenset[int] = frozenset()
    """Positions of a punched pack that could not be read: they count as there, but nothing new may rest on them."""


class PackTable:
    """Every pack of the repository. Changed under the store's state lock; single look-ups need none."""

    def __init__(self) -> None:
        self.packs: Final[dict[PackIndex, KnownPack]] = {}
        self.highest = PackIndex(-1)
        """The highest index ever seen; packs above it are new."""
        self.uncovered_rows = 0
        """Records of sealed packs that no index segment covers."""
        self.uncovered_packs = 0

    def add(self, known: KnownPack) -> None:
        """Know a pack, or know it as sealed now."""
        self._count(self.packs.get(known.index), -1)
        self.packs[known.index] = known
        self._count(known, +1)
        self.highest = max(self.highest, known.index)

    def cover(self, known: KnownPack) -> None:
        """A segment covers this pack now: its columns go."""
        if self.packs.get(known.index) is known:
            self._count(known, -1)
        known.columns = None

    def drop(self, pack: PackIndex) -> None:
        """The pack is gone."""
        self._count(self.packs.pop(pack, None), -1)

    def __contains__(self, pack: PackIndex) -> bool:
        return pack in self.packs

    def place(self, number: RecordNumber) -> Place | None:
        """Where record `number` lies; None unless its pack's columns are in memory."""
        known = self.packs.get(pack_of(number))
        columns = known.columns if known is not None else None
        return None if columns is None else columns.place(position_of(number))

    def _count(self, known: KnownPack | None, sign: int) -> None:
        if known is not None and known.sealed and known.columns is not None:
            self.uncovered_rows += sign * known.records
            self.uncovered_packs += sign
