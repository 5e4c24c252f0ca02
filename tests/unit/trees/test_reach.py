"""What a root needs: walking and counting agree; bitmaps bring back what was put into them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from repository import bitmaps
from repository.bitmaps import BitmapReader, SnapshotBitmap, load_bitmap, store_bitmap
from repository.counting import ReachCounter
from repository.errors import DamagedError, MissingRecordError
from repository.format.bitmap import CHAIN_MAX
from repository.format.catalog import SnapshotKind
from repository.format.inode import EMPTY_DIR, DirRef, Entry, Extent, Inode, NodeKind, Totals
from repository.format.manifest import Manifest, decode_manifest, encode_manifest
from repository.format.record import RecordKind
from repository.ids import FileId, RecordId, RecordNumber
from repository.reach import references, walk
from repository.roots import next_counter
from repository.trees import houses
from repository.trees.cache import RecordCache
from repository.trees.entries import Entries
from repository.trees.reader import TreeReader
from repository.trees.storeys import Bounds
from repository.trees.writer import TreeWriter
from tests.support.inodes import inodes
from tests.support.memory_store import MemoryStore


@pytest.fixture(autouse=True)
def tiny_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small trees with many records."""
    storeys = (Entries, houses._Lists, houses._Extents, houses._ExtentLists, houses._Links, houses._LinksLists)
    for storey in storeys:
        monkeypatch.setattr(storey, "bounds", Bounds(2, 4, 8))


class Yard:
    """A store with a writer, and chunks that really exist."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.lease = self.store.lease()
        self.reader = TreeReader(RecordCache(self.store, 1 << 26, inline=True))
        self.writer = TreeWriter(self.store, self.reader, self.lease)

    def chunk(self, number: int) -> RecordId:
        return self.store.put(RecordKind.CHUNK, [b"chunk %d" % number], self.lease)[0].id

    def file(self, number: int, content: int, chunks: int = 1) -> Inode:
        extents = tuple(Extent(one * 10, 10, self.chunk(content + one), 0) for one in range(chunks))
        xattrs = ((b"user.long", b"%d" % content * 300),) if content % 5 == 0 else ()
        found = self.writer.write_extents(extents)
        return Inode(NodeKind.FILE, FileId(number), size=10 * chunks, extents=found, xattrs=xattrs)

    def manifest(self, root: DirRef, links: RecordId | None = None) -> RecordId:
        inode = Inode(NodeKind.DIRECTORY, FileId(1), directory=root)
        manifest = Manifest(0, "", "", SnapshotKind.NAMED, inode, links, Totals(0, 0), FileId(2))
        return self.store.put(RecordKind.MANIFEST, [encode_manifest(manifest)], self.lease)[0].id

    def tree(self, files: dict[int, int], folders: dict[int, dict[int, int]]) -> RecordId:
        """A root with files and folders of files; number -> content, content above 90 makes a long file."""
        listing: dict[bytes, Inode] = {b"f%04d" % one: self._entry(one, content) for one, content in files.items()}
        for number, inside in folders.items():
            entries = [Entry(b"g%04d" % one, self._entry(one, content)) for one, content in sorted(inside.items())]
            ref, totals = self.writer.write_directory(entries)
            listing[b"d%04d" % number] = Inode(NodeKind.DIRECTORY, FileId(number), directory=ref, totals=totals)
        root, _ = self.writer.write_directory(Entry(name, listing[name]) for name in sorted(listing))
        links = self.writer.rewrite_links(None, {FileId(one): self.file(one, one) for one in list(files)[:3]})
        return self.manifest(root, links)

    def _entry(self, number: int, content: int) -> Inode:
        return self.file(number, content, 100 if content > 90 else 1)


def naive_walk(store: MemoryStore, roots: Sequence[RecordId]) -> set[int]:
    """One record at a time, as the definition says."""
    seen: set[RecordId] = set()
    pending = list(roots)
    while pending:
        one = pending.pop()
        if one not in seen:
            seen.add(one)
            pending += references(*store.records[one])
    return {store.numbers[one] for one in seen}


FILES = st.dictionaries(st.integers(0, 40), st.integers(0, 95), max_size=20)
TREES = st.tuples(FILES, st.dictionaries(st.integers(50, 60), FILES, max_size=3))


@given(st.lists(TREES, min_size=1, max_size=4))
@pytest.mark.slow
def test_counting_follows_walking(trees: list[tuple[dict[int, int], dict[int, dict[int, int]]]]) -> None:
    """Over a series of roots: what the counter holds is what a walk of the last root finds."""
    yard = Yard()
    counter = ReachCounter(yard.store)
    before: list[RecordId] = []
    for files, folders in trees:
        root = yard.tree(files, folders)
        counter.advance(before, [root])
        before = [root]
        walked = walk(yard.store, before)
        assert set(walked) == naive_walk(yard.store, before)
        assert counter.numbers == walked
        assert counter.exact
    counter.advance(before, [])
    assert not counter.numbers
    assert not counter._further


def test_walking_everything_finds_everything() -> None:
    """Nothing was stored that the root does not need: every kind of reference is followed."""
    yard = Yard()
    files = {number: number * 3 % 97 for number in range(60)}
    root = yard.tree(files, {1000: files, 1001: {}})
    kinds = {record.kind for record in yard.store.records.values()}
    assert kinds >= {
        RecordKind.CHUNK, RecordKind.DIR_CONTENT, RecordKind.DIR_ATTRS, RecordKind.DIR_LIST, RecordKind.EXTENT_LIST,
        RecordKind.EXTENT_SEGMENT, RecordKind.LINKS_SEGMENT, RecordKind.XATTRS, RecordKind.MANIFEST,
    }  # fmt: skip
    assert set(walk(yard.store, [root])) == set(yard.store.numbers.values())


def test_a_small_change_is_counted_at_its_own_cost() -> None:
    yard = Yard()
    entries = [Entry(b"%05d" % number, yard.file(number, number)) for number in range(1, 3000)]
    old, _ = yard.writer.write_directory(entries)
    new, _ = yard.writer.rewrite_directory(old, {b"01500": yard.file(7, 77_777)})
    roots = [yard.manifest(old), yard.manifest(new)]
    counter = ReachCounter(yard.store)
    counter.add(roots[:1])
    yard.store.forget_counts()
    counter.advance(roots[:1], roots[1:])
    assert sum(yard.store.reads.values()) <= 4 * (yard.reader.height(old) + 2)
    assert counter.numbers == walk(yard.store, roots[1:])


def test_an_unreadable_tree_stops_the_walk_and_spoils_the_count() -> None:
    yard = Yard()
    root = yard.tree({number: number for number in range(20)}, {})
    victim = next(one for one, record in yard.store.records.items() if record.kind is RecordKind.DIR_ATTRS)
    counter = ReachCounter(yard.store)
    record = yard.store.records.pop(victim)
    number = yard.store.numbers.pop(victim)
    with pytest.raises(MissingRecordError):
        walk(yard.store, [root])
    with pytest.raises(MissingRecordError):
        counter.add([root])
    yard.store.records[victim] = record._replace(payload=record.payload[:-1])
    yard.store.numbers[victim] = number
    with pytest.raises(DamagedError, match=victim.hex()):
        walk(yard.store, [root])
    yard.store.records[victim] = record
    with pytest.raises(DamagedError):
        counter.add([root])


def test_a_record_that_was_stored_anew_elsewhere_errs_towards_keeping() -> None:
    """Healed or condemned and stored again, an id has another number: the old number stays, and nothing is exact."""
    yard = Yard()
    root = yard.tree({1: 1, 2: 2, 3: 3}, {})
    counter = ReachCounter(yard.store)
    counter.add([root])
    before = counter.numbers.copy()
    moved = yard.chunk(2)
    yard.store.numbers[moved] = RecordNumber(1 << 40)
    other = yard.tree({1: 1, 3: 3}, {})
    counter.advance([root], [other])
    assert not counter.exact
    assert walk(yard.store, [other]) <= counter.numbers
    assert counter.numbers & before


def test_a_count_that_was_lost_begins_anew() -> None:
    """Going on from one root to the next would keep the old place for good, in a bitmap that says it is exact."""
    yard = Yard()
    first, second = yard.tree({1: 1, 2: 2}, {}), yard.tree({1: 1, 2: 3}, {})
    counter = next_counter(yard.store, None, None, first)
    old = yard.store.numbers[yard.chunk(2)]
    yard.store.numbers[yard.chunk(2)] = RecordNumber(10_000)
    following = next_counter(yard.store, counter, first, second)
    assert following is not counter
    assert following.exact
    assert old not in following.numbers
    assert following.numbers == walk(yard.store, [second])
    third = yard.tree({1: 1, 2: 4}, {})
    assert next_counter(yard.store, following, second, third) is following
    assert following.numbers == walk(yard.store, [third])


@given(inodes((NodeKind.DIRECTORY,)), st.text(), st.text(), st.booleans())
def test_manifests_read_back(root: Inode, source: str, host: str, linked: bool) -> None:
    link = RecordId(b"l" * 32) if linked else None
    manifest = Manifest(-5, source, host, SnapshotKind.PROVISIONAL, root, link, Totals(3, 4), FileId(9), link, source)
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_source_that_is_no_utf_8_reads_back() -> None:
    source = b"host:/caf\xe9".decode(errors="surrogateescape")
    root = Inode(NodeKind.DIRECTORY, FileId(1))
    manifest = Manifest(1, source, "host", SnapshotKind.NAMED, root, None, Totals(0, 0), FileId(2))
    assert root.directory == EMPTY_DIR
    assert decode_manifest(encode_manifest(manifest)).source == source


ROOT = RecordId(b"r" * 32)
SETS = st.sets(st.one_of(st.integers(0, 300), st.integers(0, 1 << 47)), max_size=50)


@given(st.lists(st.tuples(SETS, st.booleans()), min_size=1, max_size=8))
def test_a_chain_of_bitmaps_reads_back(series: list[tuple[set[int], bool]]) -> None:
    store = MemoryStore()
    lease = store.lease()
    heads: list[RecordId] = []
    last: SnapshotBitmap | None = None
    for numbers, exact in series:
        parent = None if last is None else (heads[-1], last)
        stored, last = store_bitmap(store, lease, ROOT, BitMap64(numbers), exact=exact, parent=parent)
        heads.append(stored.id)
        assert BitmapReader(store).read(stored.id, root=ROOT) == last
    reader = BitmapReader(store)
    for head, (numbers, exact) in zip(heads, series, strict=True):
        found = reader.read(head)
        assert (set(found.numbers), found.exact) == (numbers, exact)
        assert load_bitmap(store, head) == found.numbers | found.chain


def test_every_64th_bitmap_is_full_and_differences_are_small() -> None:
    store = MemoryStore()
    lease = store.lease()
    numbers = BitMap64(range(0, 100_000, 3))
    last: tuple[RecordId, SnapshotBitmap] | None = None
    depths: list[int] = []
    for step in range(2 * (CHAIN_MAX + 1)):
        numbers.add(1_000_000 + 7 * step)
        numbers.discard(3 * step)
        stored, bitmap = store_bitmap(store, lease, ROOT, numbers, exact=True, parent=last)
        assert stored.raw_length < 300 or bitmap.depth == 0
        last = (stored.id, bitmap)
        depths.append(bitmap.depth)
        assert len(bitmap.chain) == bitmap.depth + 1
    assert depths == [*range(CHAIN_MAX + 1), *range(CHAIN_MAX + 1)]
    assert last is not None
    assert BitmapReader(store).read(last[0]).numbers == numbers


def test_a_long_bitmap_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmaps, "INLINE_BYTES_MAX", 1000)
    monkeypatch.setattr("repository.format.bitmap.PART_BYTES_MAX", 1500)
    store = MemoryStore()
    numbers = BitMap64(number * number for number in range(6000))
    stored, bitmap = store_bitmap(store, store.lease(), ROOT, numbers, exact=True)
    assert len(bitmap.chain) > 5
    assert BitmapReader(store).read(stored.id) == bitmap
    assert load_bitmap(store, stored.id) == numbers | BitMap64(store.numbers.values())
    assert set(walk(store, [stored.id])) == set(bitmap.chain)
    part = next(iter(store.records))
    with pytest.raises(DamagedError):
        BitmapReader(store).read(part)
    store.records[part] = store.records[part]._replace(payload=store.records[part].payload[:-1])
    with pytest.raises(DamagedError):
        BitmapReader(store).read(stored.id)


def test_a_bitmap_of_another_root_is_refused() -> None:
    store = MemoryStore()
    stored, _ = store_bitmap(store, store.lease(), ROOT, BitMap64([1]), exact=True)
    with pytest.raises(DamagedError):
        BitmapReader(store).read(stored.id, root=RecordId(b"x" * 32))
    chunk = store.put(RecordKind.CHUNK, [b"no bitmap"], store.lease())[0]
    with pytest.raises(DamagedError):
        BitmapReader(store).read(chunk.id)


def test_a_series_in_order_reads_each_bitmap_once() -> None:
    store = MemoryStore()
    lease = store.lease()
    last: tuple[RecordId, SnapshotBitmap] | None = None
    heads: list[RecordId] = []
    numbers = BitMap64(range(1000))
    for step in range(200):
        numbers.add(5000 + step)
        stored, bitmap = store_bitmap(store, lease, ROOT, numbers, exact=True, parent=last)
        last = (stored.id, bitmap)
        heads.append(stored.id)
    store.forget_counts()
    reader = BitmapReader(store)
    for head in heads:
        reader.read(head)
    assert store.reads[RecordKind.BITMAP] == 200
