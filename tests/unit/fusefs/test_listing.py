"""Listing a stored directory page by page, and the file system's view of it, against a plain list."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.listing import PAGE_ENTRIES, TreeListing
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.format.inode import EMPTY_DIR, DirRef, Entry, Inode, NodeKind
from repository.ids import FileId
from repository.trees.reader import RecordCache, TreeReader
from repository.trees.writer import TreeWriter
from tests.support.memory_store import MemoryStore


def directory_of(store: MemoryStore, names: list[bytes]) -> DirRef:
    cache = RecordCache(store, 1 << 20, inline=True)
    with store.lease() as lease:
        entries = [Entry(name, Inode(NodeKind.FILE, FileId(index + 2))) for index, name in enumerate(names)]
        return TreeWriter(store, TreeReader(cache), lease).write_directory(entries)[0]


def names_of(count: int) -> list[bytes]:
    return [b"name %06d" % number for number in range(count)]


def listing_of(store: MemoryStore, directory: DirRef) -> tuple[TreeListing, Trees]:
    trees = Trees(RecordCache(store, 1 << 22, inline=False), Workers())
    return TreeListing(trees, directory), trees


@settings(max_examples=20)
@given(st.integers(0, 3 * PAGE_ENTRIES), st.lists(st.integers(0, 3 * PAGE_ENTRIES + 5), max_size=8))
async def test_any_start_gives_what_comes_there(count: int, starts: list[int]) -> None:
    store = MemoryStore()
    names = names_of(count)
    listing, _ = listing_of(store, directory_of(store, names))
    for start in starts:
        page = await listing.page(start)
        assert [one.name for one in page] == names[start : start + len(page)]
        assert bool(page) == (start < count)


async def test_one_after_the_other_everything_comes_once_and_is_decoded_once() -> None:
    store = MemoryStore()
    names = names_of(5 * PAGE_ENTRIES + 17)
    listing, trees = listing_of(store, directory_of(store, names))
    found: list[bytes] = []
    while page := await listing.page(len(found)):
        for one in page:
            found.append(one.name)
            entry = await trees.ask(trees.reader.entry_at, one.content, one.attrs, one.position)
            assert entry == Entry(one.name, one.inode)
    assert found == names
    store.forget_counts()
    assert await listing.page(len(found)) == []
    assert not store.reads, "the end is remembered"


async def test_an_empty_directory_has_nothing() -> None:
    listing, _ = listing_of(MemoryStore(), EMPTY_DIR)
    assert await listing.page(0) == []
