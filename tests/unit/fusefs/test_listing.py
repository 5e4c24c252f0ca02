"""Listing a stored directory: what is put into the kernel's buffers, against plain lists; and what it costs."""

from collections.abc import Sequence

import pyfuse3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.inodes import InodeNumber, number_in_snapshot, snapshot_directory_number
from fusefs.listing import TreeListing
from fusefs.nodes import SnapshotNodes
from fusefs.places import PlaceTable
from fusefs.snapshots import Snapshots, View
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import DamagedError
from repository.format.inode import EMPTY_DIR, DirRef, Entry, Inode, NodeKind
from repository.format.record import Record, RecordKind
from repository.format.tree import encode_lists
from repository.ids import FileId, SnapshotId
from repository.trees.reader import RecordCache, TreeReader
from repository.trees.writer import TreeWriter
from tests.support.catalogs import NoCatalog
from tests.support.memory_store import MemoryStore

SNAPSHOT = SnapshotId(7)
HERE = InodeNumber(snapshot_directory_number(SNAPSHOT, FileId(1)))


class Desk:
    """A directory open for listing, and what a kernel with small buffers got to know of it."""

    def __init__(self, store: MemoryStore, entries: list[Entry], linked: Sequence[Inode] = ()) -> None:
        self.store = store
        with store.lease() as lease:
            writer = TreeWriter(store, TreeReader(RecordCache(store, 1 << 22, inline=True)), lease)
            self.directory = writer.write_directory(entries)[0]
            links = writer.rewrite_links(None, {one.file_id: one for one in linked})
        workers = Workers()
        self.trees = Trees(RecordCache(store, 1 << 22, inline=False), workers)
        self.places = PlaceTable()
        self.view = View(SNAPSHOT, Inode(NodeKind.DIRECTORY, FileId(1), directory=self.directory), links, HERE)
        nodes = SnapshotNodes(Snapshots(NoCatalog(), workers), self.trees, self.places)
        self.listing = TreeListing(self.trees, nodes, HERE, self.view, self.directory)

    async def reply(self, start: int, room: int) -> list[tuple[bytes, pyfuse3.EntryAttributes, int]]:
        """One answer of at most `room` entries."""
        found: list[tuple[bytes, pyfuse3.EntryAttributes, int]] = []

        def put(name: bytes, entry: pyfuse3.EntryAttributes, following: int) -> bool:
            if len(found) == room:
                return False
            found.append((name, entry, following))
            return True

        await self.listing.reply(start, put)
        return found


def files(count: int) -> list[Entry]:
    return [Entry(b"name %06d" % number, Inode(NodeKind.FILE, FileId(number + 2))) for number in range(count)]


@settings(max_examples=20)
@given(st.integers(0, 700), st.lists(st.tuples(st.integers(0, 705), st.integers(1, 300)), max_size=8))
async def test_any_start_gives_what_comes_there(count: int, asked: list[tuple[int, int]]) -> None:
    entries = files(count)
    desk = Desk(MemoryStore(), entries)
    for start, room in asked:
        found = await desk.reply(start, room)
        assert [name for name, _, _ in found] == [name for name, _ in entries[start : start + room]]
        assert [following for _, _, following in found] == [start + 1 + index for index in range(len(found))]


async def test_one_after_the_other_everything_comes_once_is_read_once_and_is_known_where_it_stands() -> None:
    entries = files(1297)
    desk = Desk(MemoryStore(), entries)
    desk.store.forget_counts()
    names: list[bytes] = []
    while found := await desk.reply(len(names), 190):
        for name, attributes, _ in found:
            names.append(name)
            place = desk.places.place(attributes.st_ino)
            assert place is not None and place.row.parent == HERE
            row = place.row
            entry = await desk.trees.ask(desk.trees.reader.entry_at, row.content, row.attrs, place.position)
            assert entry.name == name and number_in_snapshot(SNAPSHOT, entry.inode) == attributes.st_ino
    assert names == [name for name, _ in entries]
    segments = desk.store.reads[RecordKind.DIR_CONTENT]
    assert 1 < segments == desk.store.reads[RecordKind.DIR_ATTRS] == desk.places.rows
    assert desk.store.reads.total() == 2 * segments + 2
    assert len(desk.places) == len(entries)


async def test_a_seek_reads_one_segment_and_the_list_above_it_and_no_more_than_is_read_ahead() -> None:
    entries = files(20_000)
    desk = Desk(MemoryStore(), entries)
    desk.store.forget_counts()
    found = await desk.reply(19_999, 10)
    assert [name for name, _, _ in found] == [entries[-1].name]
    assert desk.store.reads[RecordKind.DIR_CONTENT] == desk.store.reads[RecordKind.DIR_ATTRS] == 1
    desk.store.forget_counts()
    assert not await desk.reply(20_000, 10)
    assert not desk.store.reads.total(), "the end is known"


async def test_an_empty_directory_has_nothing() -> None:
    desk = Desk(MemoryStore(), [])
    assert desk.directory == EMPTY_DIR
    assert not await desk.reply(0, 10)


async def test_directories_carry_the_snapshot_and_hard_links_their_inode() -> None:
    entries = [
        Entry(b"a", Inode(NodeKind.DIRECTORY, FileId(5), mode=0o755, directory=EMPTY_DIR)),
        Entry(b"b", Inode(NodeKind.LINK, FileId(9))),
        Entry(b"c", Inode(NodeKind.LINK, FileId(9))),
    ]
    linked = Inode(NodeKind.SYMLINK, FileId(9), version=3, mode=0o777, size=4, nlink=2, target=b"away")
    desk = Desk(MemoryStore(), entries, [linked])
    a, b, c = [entry for _, entry, _ in await desk.reply(0, 10)]
    assert a.st_ino == snapshot_directory_number(SNAPSHOT, FileId(5))
    assert b.st_ino == c.st_ino == number_in_snapshot(SNAPSHOT, linked)
    assert (b.st_nlink, b.st_size) == (2, 4)
    desk.places.forget(b.st_ino, 1)
    assert desk.places.place(b.st_ino) is not None, "it was told twice"
    desk.places.forget(b.st_ino, 1)
    assert desk.places.place(b.st_ino) is None


async def test_an_answer_that_fails_leaves_nothing_known() -> None:
    """The kernel gets an error in place of the entries that were put already, and will never forget them."""
    entries = files(700)
    desk = Desk(MemoryStore(), entries)
    first = await desk.reply(0, 10)
    reader = TreeReader(RecordCache(desk.store, 1 << 22, inline=True))
    place = reader.place(desk.directory, entries[-1].name)
    assert place is not None
    desk.store.records[place.attrs] = Record(RecordKind.DIR_ATTRS, b"\0")
    desk.trees.reader.cache.clear()
    with pytest.raises(DamagedError):
        await desk.reply(10, 700)
    assert len(desk.places) == len(first) == 10


def test_a_list_that_counts_wrong_is_damage() -> None:
    """Ordinals would skip entries, or come to none."""
    store = MemoryStore()
    directory = Desk(store, files(1300)).directory
    assert directory.content is not None and directory.attrs is not None
    reader = TreeReader(RecordCache(store, 1 << 22, inline=True))
    children = reader.listed(directory.content, directory.attrs, 1)
    for change in (1, -1):
        wrong = [children[0]._replace(entries=children[0].entries + change), *children[1:]]
        payloads = encode_lists(1, wrong)
        content, attrs = (one.id for one in store.put(RecordKind.DIR_LIST, payloads, store.lease()))
        with pytest.raises(DamagedError):
            reader.page(DirRef(content, attrs), 0)
