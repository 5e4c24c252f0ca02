"""One small repository with everything in it that can be damaged, and every row that can be read from it.

It ends as a killed mount leaves it: packs of two processes sealed, some open, a journal that no commit includes yet.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from repository.errors import BallastError
from repository.format.catalog import Slot, SnapshotKind
from repository.format.inode import Inode, NodeKind
from repository.format.record import Record
from repository.ids import RecordId
from repository.live import attributes, names, writing
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.trees.reader import RecordCache, TreeReader
from tests.crash.workload import found
from tests.support.repositories import SetClock
from tests.support.sync_live import SyncLive
from tests.support.world import Path_

CACHE_BYTES: Final = 1 << 26
LOST: Final = "lost"
"""What stands for a row that cannot be read."""


class Row(NamedTuple):
    """One path of one snapshot."""

    snapshot: str
    path: Path_


Rows = Mapping[Row, object]


@dataclass(frozen=True, slots=True)
class Specimen:
    """`rows`: what each path of each snapshot holds. `needs`: the records without which it cannot be read.
    `live`: the live tree after recovery, as SyncLive pictures it."""

    path: Path
    rows: dict[Row, object]
    needs: dict[Row, frozenset[RecordId]]
    live: dict[Path_, tuple[object, ...]]


def build(path: Path) -> Specimen:
    """Make it."""
    clock = SetClock()
    found(path, clock, reserve_bytes=256 * 1024)
    work = _Work(path, clock)
    work.all_kinds()
    work.commit("one")
    work.garbage()
    work.commit("two")
    work.commit("gone")
    live = work.live
    live.repository.delete(live.repository.find("gone"))
    live.close()
    work = _Work(path, clock)
    work.write((b"young",), 3_000)
    work.commit("three")
    work.write((b"pending",), 30_000)
    work.live.flush()
    work.write((b"pending too",), 500)
    work.live.flush()
    picture = work.live.picture()
    work.live.kill()
    rows, needs = _rows_and_needs(path)
    return Specimen(path, rows, needs, picture)


class _Work:
    """A mount's worth of changes."""

    def __init__(self, path: Path, clock: SetClock) -> None:
        self.live = SyncLive(path, clock=clock)
        self._rng = random.Random(5)

    def create(self, path: Path_, kind: NodeKind = NodeKind.FILE, target: bytes = b"") -> None:
        wish = names.Wish(kind, 0o640, 0, 0, 0, target)
        names.create(self.live.tree, self.live.resolve(path[:-1]), path[-1], wish)

    def write(self, path: Path_, length: int, offset: int = 0) -> None:
        if self.live.tree.find(self.live.resolve(path[:-1]), path[-1]) is None:
            self.create(path)
        writing.write(self.live.tree, self.live.resolve(path), offset, self._rng.randbytes(length))

    def commit(self, name: str) -> None:
        self.live.commit(SnapshotKind.NAMED, name)

    def all_kinds(self) -> None:
        """Records of every kind: long extent lists, long xattrs, hard links, directories of several segments."""
        for number in range(4):
            self.create((b"d%d" % number,), NodeKind.DIRECTORY)
            for file in range(3):
                self.write((b"d%d" % number, b"f%d" % file), 300 + 9_000 * file)
        self.write((b"long",), 500_000)
        self.create((b"symlink",), NodeKind.SYMLINK, b"d1/f1")
        self.write((b"linked",), 700)
        names.link(self.live.tree, self.live.resolve((b"linked",)), self.live.resolve((b"d3",)), b"also linked")
        attributes.set_xattr(self.live.tree, self.live.resolve((b"d2", b"f0")), b"user.long", bytes(range(256)) * 4)
        self.create((b"many",), NodeKind.DIRECTORY)
        for number in range(900):
            self.create((b"many", b"name %05d" % number))

    def garbage(self) -> None:
        """Leaves a pack with holes in it."""
        for number in range(6):
            self.write((b"d0", b"short-lived %d" % number), 20_000)
            self.write((b"d1", b"f%d" % (number % 3)), 12_000, offset=100)
        self.live.commit(None)
        for number in range(6):
            names.unlink(self.live.tree, self.live.resolve((b"d0",)), b"short-lived %d" % number)
        self.live.commit(None)
        self.live.repository.gc(safety=Safety.NONE)


# --- reading it ---------------------------------------------------------------------------------------------------


class _Noting:
    """A store that notes which records are asked for."""

    def __init__(self, repository: Repository) -> None:
        self._store = repository.store
        self.asked: set[RecordId] = set()

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        self.asked.update(ids)
        return self._store.read_many(ids)


def _read(reader: TreeReader, store: _Noting, root: Inode, links: RecordId | None, path: Path_) -> object:
    """What `path` holds. Raises DamagedError and its kin."""
    inode = root
    for name in path:
        found = reader.lookup(inode.directory, name)
        if found is not None and found.kind is NodeKind.LINK:
            found = reader.link(links, found.file_id)
        assert found is not None, path
        inode = found
    data = bytearray(inode.size if inode.kind is NodeKind.FILE else 0)
    for offset, length, chunk, start in reader.extents(inode, 0, inode.size):
        data[offset : offset + length] = store.read_many([chunk])[0].payload[start : start + length]
    return (inode.kind, inode.file_id, inode.mode, inode.xattrs, inode.target, bytes(data))


def _paths(reader: TreeReader, root: Inode) -> Iterator[Path_]:
    """Every path of a snapshot, of the large directory every tenth."""
    waiting: list[tuple[Path_, Inode]] = [((), root)]
    while waiting:
        path, inode = waiting.pop()
        for index, (name, child) in enumerate(reader.scan(inode.directory)):
            if len(path) and path[-1] == b"many" and index % 50:
                continue
            yield (*path, name)
            if child.kind is NodeKind.DIRECTORY:
                waiting.append(((*path, name), child))


def _slots(repository: Repository) -> list[Slot]:
    return repository.catalog.slots()


def _rows_and_needs(path: Path) -> tuple[dict[Row, object], dict[Row, frozenset[RecordId]]]:
    rows: dict[Row, object] = {}
    needs: dict[Row, frozenset[RecordId]] = {}
    with Repository.open(path, writable=False) as repository:
        for slot in _slots(repository):
            manifest = repository.manifest(slot)
            assert manifest is not None
            for one in _paths(repository.reader, manifest.root):
                store = _Noting(repository)
                reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
                row = Row(slot.name, one)
                rows[row] = _read(reader, store, manifest.root, manifest.links, one)
                needs[row] = frozenset({slot.manifest, *store.asked})
    return rows, needs


def read_rows(repository: Repository, wanted: Rows) -> dict[Row, object]:
    """What each of the rows holds now, LOST for those that cannot be read. Wrong bytes are the caller's to notice."""
    slots = {slot.name: slot for slot in _slots(repository)}
    store = _Noting(repository)
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    found: dict[Row, object] = {}
    for row in wanted:
        try:
            slot = slots.get(row.snapshot)
            manifest = None if slot is None else repository.manifest(slot)
            found[row] = LOST if manifest is None else _read(reader, store, manifest.root, manifest.links, row.path)
        except BallastError as error:
            assert str(error), type(error)
            found[row] = LOST
    return found
