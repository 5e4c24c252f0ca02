"""Directories through writer and reader."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import DamagedError, MissingRecordError
from repository.format.inode import EMPTY_DIR, DirRef, Entry, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.format.record import RecordKind
from repository.ids import FileId, RecordId
from repository.trees import houses
from repository.trees.cache import NotCached, RecordCache
from repository.trees.entries import Entries
from repository.trees.reader import TreeReader
from repository.trees.storeys import Bounds
from repository.trees.writer import TreeWriter
from tests.support.inodes import NAMES, directories, inodes
from tests.support.memory_store import MemoryStore

CACHE_BYTES = 64 << 20
CHUNK = RecordId(b"c" * 32)


class Bench:
    """A store with a reader and a writer on it."""

    def __init__(self, capacity_bytes: int = CACHE_BYTES) -> None:
        self.store = MemoryStore()
        self.cache = RecordCache(self.store, capacity_bytes, inline=True)
        self.reader = TreeReader(self.cache)
        self.writer = TreeWriter(self.store, self.reader, self.store.lease())

    def loop_reader(self) -> TreeReader:
        """A reader that may not wait, over the same records."""
        return TreeReader(self.cache.view(inline=False))


def small_file(number: int, size: int = 5) -> Inode:
    """A file of one extent."""
    chunk = RecordId(number.to_bytes(8, "big") * 4)
    return Inode(
        NodeKind.FILE, FileId(number), mode=0o644, size=size, extents=(Extent(0, size, chunk, 0),), allocated_bytes=size
    )


def numbered(count: int, step: int = 1) -> list[Entry]:
    """Entries `file-00000000` and so on."""
    return [Entry(b"file-%08d" % number, small_file(number + 1)) for number in range(0, count * step, step)]


@pytest.fixture
def tiny_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of about four entries under lists of about four, so that small directories have many storeys."""
    monkeypatch.setattr(Entries, "bounds", Bounds(2, 4, 8))
    monkeypatch.setattr(houses._Lists, "bounds", Bounds(2, 4, 8))
    monkeypatch.setattr(houses._Links, "bounds", Bounds(2, 4, 8))
    monkeypatch.setattr(houses._LinksLists, "bounds", Bounds(2, 4, 8))


@given(directories())
def test_everything_reads_back(entries: list[Entry]) -> None:
    bench = Bench()
    ref, totals = bench.writer.write_directory(entries)
    assert list(bench.reader.scan(ref)) == entries
    assert bench.reader.count(ref) == len(entries)
    assert bench.reader.totals(ref) == totals
    for entry in entries:
        assert bench.reader.lookup(ref, entry.name) == entry.inode
        place = bench.reader.place(ref, entry.name)
        assert place is not None
        assert bench.reader.entry_at(*place) == entry
        assert bench.reader.lookup(ref, entry.name + b"!") in (None, dict(entries).get(entry.name + b"!"))
    assert (ref == EMPTY_DIR) is (not entries)


@given(directories(), st.dictionaries(NAMES, st.one_of(st.none(), inodes()), max_size=6), st.data())
def test_a_rewritten_directory_is_the_written_one(
    entries: list[Entry], changes: dict[bytes, Inode | None], data: st.DataObject
) -> None:
    bench = Bench()
    for name in data.draw(st.sets(st.sampled_from([entry.name for entry in entries])) if entries else st.just(set())):
        changes[name] = data.draw(st.one_of(st.none(), inodes()))
    ref, _ = bench.writer.write_directory(entries)
    after = {**dict(entries), **changes}
    merged = [Entry(name, inode) for name, inode in sorted(after.items()) if inode is not None]
    assert bench.writer.rewrite_directory(ref, changes) == bench.writer.write_directory(merged)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_segments")
def test_deep_directories_rewrite_to_what_is_written() -> None:
    """Many storeys: every kind of edit at every place, against writing the merged listing."""
    bench = Bench()
    entries = numbered(300, step=2)
    ref, totals = bench.writer.write_directory(entries)
    assert bench.reader.height(ref) >= 3
    assert list(bench.reader.scan(ref)) == entries
    assert bench.reader.totals(ref) == totals == Totals(300, 1500)
    assert bench.reader.count(ref) == 300
    before = dict(entries)
    for number in range(-1, 602, 13):
        for length in (1, 2, 40):
            names = [b"file-%08d" % (number + offset) for offset in range(length)]
            for changes in (
                dict.fromkeys(names),
                {name: small_file(9000 + number) for name in names},
                {names[0]: None, names[-1]: small_file(7, 6)},
            ):
                after = {**before, **changes}
                merged = [Entry(name, inode) for name, inode in sorted(after.items()) if inode is not None]
                assert bench.writer.rewrite_directory(ref, changes) == bench.writer.write_directory(merged)


@pytest.mark.usefixtures("tiny_segments")
def test_a_listing_goes_on_behind_any_name() -> None:
    bench = Bench()
    entries = numbered(100)
    ref, _ = bench.writer.write_directory(entries)
    for after in (b"", b"a", b"file-00000000", b"file-00000050", b"file-00000050x", b"file-00000099", b"zzz"):
        assert list(bench.reader.scan(ref, after)) == [entry for entry in entries if entry.name > after]


@pytest.mark.slow
def test_one_change_among_100_000_touches_one_segment() -> None:
    bench = Bench()
    entries = numbered(100_000)
    ref, totals = bench.writer.write_directory(entries)
    assert totals == Totals(100_000, 500_000)
    spent: list[int] = []
    for number in range(0, 100_000, 9_973):
        bench.cache.clear()
        bench.store.forget_counts()
        name = b"file-%08d" % number
        changed, _ = bench.writer.rewrite_directory(ref, {name: small_file(1, 9)})
        assert changed != ref
        assert bench.store.puts[RecordKind.DIR_CONTENT] == bench.store.puts[RecordKind.DIR_ATTRS] == 1
        assert bench.store.puts[RecordKind.DIR_LIST] == 2
        assert bench.store.reads == bench.store.puts
        removed, _ = bench.writer.rewrite_directory(ref, {name: None})
        spent.append(bench.store.puts[RecordKind.DIR_CONTENT] - 1)
        assert bench.reader.lookup(removed, name) is None
    assert max(spent) <= 3


def test_a_second_copy_shares_the_content() -> None:
    """Other owners, times and file ids: the content records are the same, the attribute records are not."""
    bench = Bench()
    first, _ = bench.writer.write_directory(numbered(2000))
    copied = [
        Entry(name, Inode(inode.kind, FileId(inode.file_id + 5000), 7, 0o600, 1, 2, 0, inode.size, 1, 8, 9, 10,
                          ((b"user.a", b"b"),), b"", inode.extents, inode.allocated_bytes))
        for name, inode in numbered(2000)
    ]  # fmt: skip
    second, _ = bench.writer.write_directory(copied)
    assert second.content == first.content
    assert second.attrs != first.attrs


@pytest.mark.usefixtures("tiny_segments")
def test_the_loop_learns_all_that_it_needs_at_once() -> None:
    """One hop per storey, content and attributes together; nothing is read on the loop itself."""
    bench = Bench()
    ref, _ = bench.writer.write_directory(numbered(300))
    bench.cache.clear()
    bench.store.forget_counts()
    reader = bench.loop_reader()
    hops = 0
    while True:
        try:
            inode = reader.lookup(ref, b"file-00000123")
            break
        except NotCached as missing:
            assert not bench.store.reads or hops
            assert len(missing.ids) == 2
            bench.cache.load(missing.ids)
            hops += 1
    assert inode == small_file(124)
    assert hops == bench.reader.height(ref) + 1


def test_a_listing_on_the_loop_asks_for_several_segments_at_once() -> None:
    bench = Bench()
    entries = numbered(5000)
    ref, _ = bench.writer.write_directory(entries)
    bench.cache.clear()
    reader = bench.loop_reader()
    seen: list[Entry] = []
    hops = 0
    while True:
        try:
            for entry in reader.scan(ref, seen[-1].name if seen else None):
                seen.append(entry)
            break
        except NotCached as missing:
            hops += 1
            bench.cache.load(missing.ids)
    assert seen == entries
    segments = bench.store.reads[RecordKind.DIR_CONTENT]
    assert hops <= segments / 8 + 2


def test_long_xattrs_stand_in_records_of_their_own() -> None:
    bench = Bench()
    long = ((b"user.long", b"x" * 60_000), (b"user.empty", b""))
    inode = Inode(NodeKind.FILE, FileId(5), xattrs=long)
    ref, _ = bench.writer.write_directory([Entry(b"a", Inode(NodeKind.FIFO, FileId(4))), Entry(b"b", inode)])
    assert bench.store.puts[RecordKind.XATTRS] == 1
    bench.cache.clear()
    reader = bench.loop_reader()
    with pytest.raises(NotCached) as segments:
        reader.lookup(ref, b"b")
    bench.cache.load(segments.value.ids)
    with pytest.raises(NotCached) as xattrs:
        reader.lookup(ref, b"b")
    bench.cache.load(xattrs.value.ids)
    assert reader.lookup(ref, b"b") == inode


def test_the_largest_values_read_back() -> None:
    bench = Bench()
    last, first = (1 << 63) - 1, -(1 << 63)
    inode = Inode(
        NodeKind.FILE, FileId((1 << 40) - 1), (1 << 32) - 1, 0o7777, (1 << 32) - 1, (1 << 32) - 1, 0, last,
        (1 << 32) - 1, first, last, -1, extents=(Extent(last - 10, 10, RecordId(b"c" * 32), 1 << 20),),
        allocated_bytes=10,
    )  # fmt: skip
    entries = [Entry(bytes([number]) * 255, inode) for number in range(200, 205)]
    ref, totals = bench.writer.write_directory(entries)
    assert list(bench.reader.scan(ref)) == entries
    assert totals == Totals(5, last)  # bytes stop where a signed number does
    assert bench.reader.totals(ref) == totals


def test_heavy_entries_make_small_segments() -> None:
    """A thousand files of 64 extents each: a change must not rewrite a megabyte."""
    bench = Bench()
    chunks = [RecordId(number.to_bytes(2, "big") * 16) for number in range(64)]
    extents = tuple(Extent(index * 100, 100, chunk, 0) for index, chunk in enumerate(chunks))
    heavy = Inode(NodeKind.FILE, FileId(1), size=6400, extents=extents, allocated_bytes=6400)
    bench.writer.write_directory([Entry(b"%05d" % number, heavy) for number in range(1000)])
    sizes = [len(one.payload) for one in bench.store.records.values() if one.kind is RecordKind.DIR_CONTENT]
    assert max(sizes) <= 256 << 10
    assert sum(sizes) / len(sizes) <= 64 << 10


def test_too_many_extents_for_an_entry_move_out_by_themselves() -> None:
    bench = Bench()
    extents = tuple(Extent(index * 10, 10, RecordId(index.to_bytes(8, "big") * 4), 0) for index in range(65))
    inode = Inode(NodeKind.FILE, FileId(1), size=650, extents=extents, allocated_bytes=650)
    ref, _ = bench.writer.write_directory([Entry(b"a", inode)])
    again, _ = bench.writer.rewrite_directory(EMPTY_DIR, {b"a": inode})
    assert again == ref
    found = bench.reader.lookup(ref, b"a")
    assert found is not None and isinstance(found.extents, ExtentsRef)
    assert found.allocated_bytes == 650
    assert tuple(bench.reader.extents(found, 0, 650)) == extents


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_a_name_that_no_directory_holds_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError):
        Bench().writer.write_directory([Entry(name, small_file(1))])


def test_unsorted_entries_are_refused() -> None:
    for names in ((b"b", b"a"), (b"a", b"a")):
        with pytest.raises(ValueError):
            Bench().writer.write_directory([Entry(name, small_file(1)) for name in names])


@pytest.mark.parametrize(
    "inode",
    [
        Inode(NodeKind.FILE, FileId(1 << 40)),
        Inode(NodeKind.FILE, FileId(1), size=1 << 63),
        Inode(NodeKind.FILE, FileId(1), size=-1, extents=()),
        Inode(NodeKind.FILE, FileId(1), mode=0o10000),
        Inode(NodeKind.FILE, FileId(1), mtime_ns=1 << 63),
        Inode(NodeKind.FILE, FileId(1), uid=-1),
        Inode(NodeKind.SYMLINK, FileId(1), target=b"x" * 65536),
        Inode(NodeKind.FILE, FileId(1), extents=(Extent(5, 5, CHUNK, 0), Extent(9, 1, CHUNK, 0))),
        Inode(NodeKind.FILE, FileId(1), extents=(Extent(0, 0, CHUNK, 0),)),
        Inode(NodeKind.FILE, FileId(1), xattrs=((b"", b""),)),
    ],
)  # fmt: skip
def test_what_the_format_cannot_hold_is_refused(inode: Inode) -> None:
    with pytest.raises(ValueError):
        Bench().writer.write_directory([Entry(b"a", inode)])


def test_segments_that_do_not_belong_together_are_found_out() -> None:
    bench = Bench()
    one, _ = bench.writer.write_directory(numbered(3))
    two, _ = bench.writer.write_directory(numbered(4))
    many, _ = bench.writer.write_directory(numbered(3000))
    assert one.content is not None and one.attrs is not None
    for content, attrs in (
        (one.content, two.attrs), (one.content, many.attrs), (many.content, one.attrs), (one.attrs, one.content),
        (one.content, one.content),
    ):  # fmt: skip
        with pytest.raises(DamagedError):
            bench.reader.lookup(DirRef(content, attrs), b"file-00000001")
    with pytest.raises(MissingRecordError):
        bench.reader.lookup(DirRef(one.content, RecordId(b"?" * 32)), b"file-00000001")


@pytest.mark.slow
def test_the_cache_stays_within_its_bound() -> None:
    bench = Bench(capacity_bytes=1 << 20)
    ref, _ = bench.writer.write_directory(numbered(50_000))
    for _ in bench.reader.scan(ref):
        assert bench.cache.used_bytes < 4 << 20  # 64 records stay in any case


@pytest.mark.usefixtures("tiny_segments")
def test_the_links_table_depends_on_its_content_alone() -> None:
    bench = Bench()
    table = {FileId(number): small_file(number, number) for number in range(1, 400, 3)}
    whole = bench.writer.rewrite_links(None, table)
    assert list(bench.reader.scan_links(whole)) == list(table.values())
    assert bench.reader.link_totals(whole) == Totals(len(table), sum(table))
    grown: RecordId | None = None
    for file_id, inode in reversed(table.items()):
        grown = bench.writer.rewrite_links(grown, {file_id: inode})
    assert grown == whole
    behind = [inode.file_id for inode in bench.reader.scan_links(whole, FileId(200))]
    assert behind == [file_id for file_id in table if file_id > 200]
    for file_id, inode in table.items():
        assert bench.reader.link(whole, file_id) == inode
    for absent in (0, 2, 999):
        assert bench.reader.link(whole, FileId(absent)) is None
    gone = bench.writer.rewrite_links(whole, dict.fromkeys(FileId(number) for number in range(200)))
    left = [inode.file_id for inode in bench.reader.scan_links(gone)]
    assert left == [file_id for file_id in table if file_id >= 200]
    assert bench.writer.rewrite_links(whole, dict.fromkeys(table)) is None
    assert bench.reader.link(None, FileId(1)) is None
    assert bench.reader.link_totals(None) == Totals(0, 0)


@given(st.dictionaries(st.integers(0, 1 << 39), inodes((NodeKind.FILE, NodeKind.SYMLINK, NodeKind.FIFO)), max_size=5))
def test_links_read_back(found: dict[int, Inode]) -> None:
    bench = Bench()
    table = {FileId(number): replace(inode, file_id=FileId(number)) for number, inode in found.items()}
    links = bench.writer.rewrite_links(None, table)
    assert list(bench.reader.scan_links(links)) == [table[number] for number in sorted(table)]
