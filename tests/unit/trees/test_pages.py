"""Listings from columns: what `stat` shows without an inode for each entry, and directories read ahead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import DamagedError
from repository.format.inode import DirRef, Entry, Extent, Inode, NodeKind
from repository.format.record import RecordKind
from repository.format.stats import Stat, looks_of
from repository.ids import FileId, RecordId
from repository.trees import houses
from repository.trees.cache import NotCached, RecordCache
from repository.trees.entries import Entries
from repository.trees.reader import Page, TreeReader
from repository.trees.storeys import Bounds
from repository.trees.writer import TreeWriter
from tests.support.inodes import directories
from tests.support.memory_store import MemoryStore

CACHE_BYTES = 64 << 20


def written(store: MemoryStore, entries: list[Entry]) -> DirRef:
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    return TreeWriter(store, reader, store.lease()).write_directory(entries)[0]


def stat_of(inode: Inode) -> Stat:
    return Stat(*(getattr(inode, field) for field in Stat._fields))


def pages(reader: TreeReader, ref: DirRef, start: int = 0) -> list[Page]:
    found: list[Page] = []
    while (page := reader.page(ref, start)) is not None:
        found.append(page)
        start += len(page.names)
    return found


@given(directories(), st.integers(0, 20))
def test_columns_tell_what_inodes_tell(entries: list[Entry], start: int) -> None:
    store = MemoryStore()
    ref = written(store, entries)
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    found = [
        (name, stat) for page in pages(reader, ref, start) for name, stat in zip(page.names, page.stats, strict=True)
    ]
    assert found == [(name, stat_of(inode)) for name, inode in entries[start:]]
    for page in pages(reader, ref, start):
        for row, stat in enumerate(page.stats, page.first):
            if stat.kind is NodeKind.DIRECTORY:
                whole = reader.entry_at(page.content, page.attrs, row).inode
                assert reader.directory_at(page.content, page.attrs, row) == whole.directory
            else:
                with pytest.raises(DamagedError):
                    reader.directory_at(page.content, page.attrs, row)


@given(directories())
def test_what_files_are_compared_by_is_what_inodes_tell(entries: list[Entry]) -> None:
    store = MemoryStore()
    ref = written(store, entries)
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    found = [
        (name, look)
        for _, _, content, attrs in reader.scan_segments(ref)
        for name, look in zip(content.names, looks_of(content.files, attrs.columns), strict=True)
    ]
    assert [name for name, _ in found] == [name for name, _ in entries]
    for (_, look), (_, inode) in zip(found, entries, strict=True):
        assert look[0] == inode.kind
        assert inode.kind is NodeKind.LINK or look[1:] == (inode.size, inode.mtime_ns, inode.ctime_ns)


def test_files_of_one_extent_are_compared_by_their_size() -> None:
    """All of one segment, which has a way of its own; and with empty ones and a symlink among them."""
    chunk = RecordId(bytes(31) + b"c")
    one = [
        Entry(b"%03d" % size, Inode(NodeKind.FILE, FileId(size), size=size, extents=(Extent(0, size, chunk, 0),)))
        for size in range(1, 40)
    ]
    symlink = Entry(b"000", Inode(NodeKind.SYMLINK, FileId(50), size=3, target=b"abc"))
    empty = Entry(b"999", Inode(NodeKind.FILE, FileId(51)))
    for entries in (one, [symlink, *one, empty]):
        store = MemoryStore()
        reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
        (segment,) = reader.scan_segments(written(store, entries))
        found = looks_of(segment.content.files, segment.attrs.columns)
        assert [look[1] for look in found] == [inode.size for _, inode in entries]


@pytest.fixture
def tiny_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of about four entries under lists of about four."""
    monkeypatch.setattr(Entries, "bounds", Bounds(2, 4, 8))
    monkeypatch.setattr(houses._Lists, "bounds", Bounds(2, 4, 8))


@pytest.mark.usefixtures("tiny_segments")
def test_every_ordinal_of_a_deep_directory_is_found_at_its_place() -> None:
    store = MemoryStore()
    entries = [Entry(b"%04d" % number, Inode(NodeKind.FILE, FileId(number + 1))) for number in range(300)]
    ref = written(store, entries)
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    assert reader.height(ref) >= 3
    for ordinal, entry in enumerate(entries):
        page = reader.page(ref, ordinal)
        assert page is not None and page.names[0] == entry.name and page.entries == 300
        assert reader.entry_at(page.content, page.attrs, page.first) == entry
        assert reader.names_at([(page.content, page.first)]) == [entry.name]
    assert reader.page(ref, 300) is None


def test_a_segments_directories_are_named_from_one_on_unless_that_one_is_in_memory() -> None:
    store = MemoryStore()
    below = [written(store, [Entry(b"%d" % number, Inode(NodeKind.FILE, FileId(number + 9)))]) for number in range(6)]
    below[2] = DirRef(None, None)
    entries = [Entry(b"a file", Inode(NodeKind.FILE, FileId(1)))]
    entries += [
        Entry(b"d%d" % number, Inode(NodeKind.DIRECTORY, FileId(number + 2), directory=ref))
        for number, ref in enumerate(below)
    ]
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=False))
    top = written(store, entries)
    assert top.content is not None and top.attrs is not None
    with pytest.raises(NotCached):
        reader.unread_directories(top.content, top.attrs, 1, 9)
    reader.cache.load([top.content, top.attrs])
    both = [[ref.content, ref.attrs] for ref in below]
    assert set(reader.unread_directories(top.content, top.attrs, 1, 2)) == {*both[0], *both[1]}
    assert set(reader.unread_directories(top.content, top.attrs, 4, 9)) == {*both[3], *both[4], *both[5]}
    assert set(reader.unread_directories(top.content, top.attrs, 5, 9)) == {*both[4], *both[5]}
    assert reader.unread_directories(top.content, top.attrs, 3, 9) == [], "itself is empty, nothing to wait for"
    reader.cache.load([one for one in both[3] if one])
    assert reader.unread_directories(top.content, top.attrs, 4, 9) == []
    assert set(reader.unread_directories(top.content, top.attrs, 1, 9)) == {*both[0], *both[1], *both[4], *both[5]}


def test_what_is_below_a_segments_directories_comes_along() -> None:
    store = MemoryStore()
    deep = [written(store, [Entry(b"%d" % number, Inode(NodeKind.FILE, FileId(number + 90)))]) for number in range(6)]
    below = [
        written(store, [Entry(b"deep", Inode(NodeKind.DIRECTORY, FileId(number + 50), directory=ref))])
        for number, ref in enumerate(deep)
    ]
    top = written(
        store,
        [
            Entry(b"d%d" % number, Inode(NodeKind.DIRECTORY, FileId(number + 2), directory=ref))
            for number, ref in enumerate(below)
        ],
    )
    assert top.content is not None and top.attrs is not None
    for more, expected in ((0, 0), (4, 2), (100, 3)):
        cache = RecordCache(store, CACHE_BYTES, inline=True)
        TreeReader(cache).load_beside(top.content, top.attrs, 2, 3, more)
        assert [cache.holds(ref.content) for ref in below if ref.content] == [False, False, True, True, True, False]
        assert sum(cache.holds(ref.content) for ref in deep if ref.content) == expected
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    assert reader.directory_behind(top.content, top.attrs, 2) == below[3]
    assert reader.directory_behind(top.content, top.attrs, 5) is None


def test_the_content_of_a_file_is_what_its_inode_says() -> None:
    store = MemoryStore()
    extents = (Extent(0, 100, RecordId(bytes(31) + b"x"), 7),)
    file = Inode(NodeKind.FILE, FileId(5), size=100, extents=extents, allocated_bytes=100)
    ref = written(store, [Entry(b"a", Inode(NodeKind.DIRECTORY, FileId(4))), Entry(b"b", file)])
    reader = TreeReader(RecordCache(store, CACHE_BYTES, inline=True))
    assert ref.content is not None
    assert reader.file_at(ref.content, 0) is None
    assert reader.file_at(ref.content, 1) == (extents, 100)
    with pytest.raises(IndexError):
        reader.file_at(ref.content, 2)


def test_a_listing_reads_no_extended_attributes() -> None:
    store = MemoryStore()
    long = tuple((b"user.%d" % number, bytes(3000)) for number in range(4))
    entries = [Entry(b"%d" % number, Inode(NodeKind.FILE, FileId(number + 1), xattrs=long)) for number in range(9)]
    ref = written(store, entries)
    store.forget_counts()
    assert len(pages(TreeReader(RecordCache(store, CACHE_BYTES, inline=True)), ref)) == 1
    assert store.reads == {RecordKind.DIR_CONTENT: 1, RecordKind.DIR_ATTRS: 1}
