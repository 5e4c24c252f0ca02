"""A walk over many snapshots, with a kernel that forgets only what it is told to: what is kept for it stays bounded."""

import sys
from collections import Counter
from dataclasses import dataclass, field

import pyfuse3
import pytest
import trio

from fusefs import eviction
from fusefs.inodes import InodeNumber, snapshot_directory_number
from fusefs.listing import TreeListing
from fusefs.neighbours import Neighbours
from fusefs.nodes import SnapshotNodes
from fusefs.places import PlaceTable
from fusefs.readpath import ReadPath
from fusefs.snapshots import Snapshots, View
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId, SnapshotId
from repository.trees.reader import RecordCache, TreeReader
from repository.trees.writer import TreeWriter
from tests.support.catalogs import NoCatalog
from tests.support.memory_store import CountingStore

DIRECTORIES = 30
FILES = 6
ENTRIES = DIRECTORIES * (FILES + 2)
"""Each directory holds another one, which holds the files."""
ROOM = 25
PLACES_MAX = 1000
ROWS_MAX = 120
CACHE_BYTES = 1 << 18


@dataclass
class Kernel:
    """Names in directories, and how often each number was told: forgotten with its last name."""

    names: dict[int, dict[bytes, int]] = field(default_factory=dict)
    links: Counter[int] = field(default_factory=Counter)
    told: Counter[int] = field(default_factory=Counter)

    def know(self, parent: int, name: bytes, number: int) -> None:
        below = self.names.setdefault(parent, {})
        if name not in below:
            self.links[number] += 1
        below[name] = number
        self.told[number] += 1

    def drop(self, parent: int, name: bytes, places: PlaceTable) -> bool:
        """As `invalidate_entry` does: with everything below. What has no name left is forgotten."""
        number = self.names.get(parent, {}).pop(name, None)
        if number is None:
            return False
        for below in list(self.names.get(number, ())):
            self.drop(number, below, places)
        self.links[number] -= 1
        if not self.links[number]:
            del self.links[number]
            self.names.pop(number, None)
            places.forget(number, self.told.pop(number))
        return True


class Mount:
    """What a mount has for its snapshots, over a tree of which each snapshot changed one file."""

    def __init__(self, snapshots: int, nursery: trio.Nursery) -> None:
        self.store = CountingStore()
        self.roots = self._write(snapshots)
        workers = Workers()
        cache = RecordCache(self.store, CACHE_BYTES, inline=True)
        self.trees = Trees(cache.view(inline=False), workers)
        self.places = PlaceTable(PLACES_MAX, ROWS_MAX)
        self.nodes = SnapshotNodes(Snapshots(NoCatalog(), workers), self.trees, self.places)
        reads = ReadPath(self.store, self.trees, workers, nursery)
        self.neighbours = Neighbours(TreeReader(cache), self.trees, reads, workers, nursery)
        self.kernel = Kernel()
        self.taken = 0
        """Names that were taken away from the kernel."""

    def _write(self, snapshots: int) -> list[DirRef]:
        reader = TreeReader(RecordCache(self.store, 1 << 24, inline=True))
        writer = TreeWriter(self.store, reader, self.store.lease())
        tree = [
            [Inode(NodeKind.FILE, FileId(10_000 + directory * 100 + file)) for file in range(FILES)]
            for directory in range(DIRECTORIES)
        ]
        roots: list[DirRef] = []
        for snapshot in range(snapshots):
            changed = tree[snapshot % DIRECTORIES][snapshot % FILES]
            tree[snapshot % DIRECTORIES][snapshot % FILES] = Inode(NodeKind.FILE, changed.file_id, snapshot + 1)
            entries: list[Entry] = []
            for directory, files in enumerate(tree):
                listing = [Entry(b"%02d" % file, inode) for file, inode in enumerate(files)]
                below = self._directory(writer, directory + 100, listing)
                entries.append(
                    Entry(b"%02d" % directory, self._directory(writer, directory + 10, [Entry(b"s", below)]))
                )
            roots.append(writer.write_directory(entries)[0])
        return roots

    @staticmethod
    def _directory(writer: TreeWriter, file_id: int, entries: list[Entry]) -> Inode:
        return Inode(NodeKind.DIRECTORY, FileId(file_id), directory=writer.write_directory(entries)[0])

    async def walk(self, index: int) -> int:
        """As `find` does over one snapshot; how many entries there were. Takes away what is too much."""
        snapshot = SnapshotId(index + 3)
        number = snapshot_directory_number(snapshot, FileId(1))
        root = Inode(NodeKind.DIRECTORY, FileId(1), directory=self.roots[index])
        found = await self._list(View(snapshot, root, None, number), number, root.directory)
        while self.places.is_full():
            names = await eviction._names(self.places.overdue(), self.trees)
            self.taken += len(names)
            known = [self.kernel.drop(parent, name, self.places) for parent, name in names]
            assert any(known)
        return found

    async def _list(self, view: View, number: InodeNumber, ref: DirRef) -> int:
        listing = TreeListing(self.trees, self.nodes, number, view, ref)
        found: list[tuple[bytes, pyfuse3.EntryAttributes]] = []
        start = -1
        while start < len(found):
            start = len(found)

            def put(name: bytes, entry: pyfuse3.EntryAttributes, following: int, start: int = start) -> bool:
                if following > start + ROOM:
                    return False
                found.append((name, entry))
                return True

            await listing.reply(start, put)
            for name, entry in found[start:]:
                self.kernel.know(number, name, entry.st_ino)
        entries = len(found)
        for _, entry in found:
            if entry.st_mode & 0o040000:
                self.nodes.used(entry.st_ino)
                place = self.nodes.place(entry.st_ino)
                assert place is not None
                await self.neighbours.listed(place)
                stands = await self.trees.ask(
                    self.trees.reader.entry_at, place.row.content, place.row.attrs, place.position
                )
                entries += await self._list(view, InodeNumber(entry.st_ino), stands.inode.directory)
        return entries

    def forget_everything(self) -> None:
        """As when memory gets short."""
        for parent in list(self.kernel.names):
            for name in list(self.kernel.names.get(parent, ())):
                self.kernel.drop(parent, name, self.places)
        self.kernel.names.clear()
        self.trees.reader.cache.clear()


@pytest.mark.slow
async def test_what_is_kept_does_not_grow_with_the_snapshots_walked(nursery: trio.Nursery) -> None:
    """168 MB after 220 snapshots of a kernel tree, and rising, for each snapshot has other directories."""
    snapshots = 300
    mount = Mount(snapshots, nursery)
    blocks: list[int] = []
    for index in range(snapshots):
        assert await mount.walk(index) == ENTRIES
        assert len(mount.places) <= PLACES_MAX
        assert mount.places.rows <= ROWS_MAX
        assert len(mount.places._rows) <= ROWS_MAX + 2 * DIRECTORIES + 1
        assert mount.trees.reader.cache.used_bytes <= CACHE_BYTES
        assert set(mount.kernel.told) == {
            number for number in mount.kernel.told if mount.places.place(number) is not None
        }, "whatever the kernel may ask about has a place"
        if index % 100 == 99:
            mount.forget_everything()
            assert len(mount.places) == mount.places.rows == 0
            blocks.append(sys.getallocatedblocks())
    assert blocks[2] - blocks[1] < 100, f"{blocks}: less than an object a snapshot"
    assert mount.taken <= snapshots * DIRECTORIES, "whole directories go at once"


async def test_directories_are_read_many_at_a_time(nursery: trio.Nursery) -> None:
    mount = Mount(3, nursery)
    mount.store.calls = 0
    await mount.walk(0)
    assert mount.store.calls <= 3 + DIRECTORIES // 2, "the root, the first few; then what is below comes along"
    mount.store.calls = 0
    await mount.walk(1)
    assert mount.store.calls <= 3, "the root, and the two that changed"
    assert mount.store.reads.total() <= 2 * (2 * DIRECTORIES + 1) + 2 * 5, "what did not change is in memory"
