"""Long extent lists, against a plain list of the bytes' origins."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.format.extents import splice
from repository.format.inode import Extent, ExtentsRef, Inode, NodeKind
from repository.format.record import RecordKind
from repository.ids import FileId, RecordId
from repository.trees import houses
from repository.trees.cache import NotCached, RecordCache
from repository.trees.reader import TreeReader
from repository.trees.storeys import Bounds
from repository.trees.writer import TreeWriter
from tests.support.memory_store import MemoryStore

END = (1 << 63) - 1


@pytest.fixture(autouse=True)
def tiny_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of about eight extents under lists of about four."""
    monkeypatch.setattr(houses._Extents, "bounds", Bounds(4, 8, 16))
    monkeypatch.setattr(houses._ExtentLists, "bounds", Bounds(2, 4, 8))


def bench() -> tuple[MemoryStore, TreeReader, TreeWriter]:
    store = MemoryStore()
    reader = TreeReader(RecordCache(store, 64 << 20, inline=True))
    return store, reader, TreeWriter(store, reader, store.lease())


def chunk(number: int) -> RecordId:
    return RecordId((number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little") * 4)


def regular(count: int, length: int = 10, gap: int = 0) -> list[Extent]:
    return [Extent(number * (length + gap), length, chunk(number), 0) for number in range(count)]


def file_of(extents: tuple[Extent, ...] | ExtentsRef) -> Inode:
    return Inode(NodeKind.FILE, FileId(1), extents=extents)


def origins(extents: list[Extent], size: int) -> list[tuple[RecordId, int] | None]:
    """For each byte its chunk and the place in it."""
    found: list[tuple[RecordId, int] | None] = [None] * size
    for extent in extents:
        for at in range(extent.length):
            if extent.offset + at < size:
                found[extent.offset + at] = (extent.chunk, extent.chunk_offset + at)
    return found


PIECES = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 120), st.booleans()), min_size=1, max_size=8)


@given(PIECES)
def test_splicing_is_overwriting(pieces: list[tuple[int, int, bool]]) -> None:
    extents = regular(60, 10, 5)
    model = origins(extents, 1200)
    for number, (start, length, hole) in enumerate(pieces):
        fresh = [] if hole else [Extent(start, length, chunk(1000 + number), 3)]
        splice(extents, start, start + length, fresh)
        model[start : start + length] = origins(fresh, 1200)[start : start + length]
    assert origins(extents, 1200) == model
    assert all(one.offset + one.length <= other.offset for one, other in pairwise(extents))
    assert all(one.length > 0 for one in extents)


@given(PIECES, st.sampled_from((0, 5)))
def test_a_rewritten_list_is_the_written_one(pieces: list[tuple[int, int, bool]], gap: int) -> None:
    _, reader, writer = bench()
    extents = regular(100, 10, gap)
    base = writer.write_extents(extents)
    assert isinstance(base, ExtentsRef)
    changed: list[tuple[int, int, list[Extent]]] = []
    for number, (start, length, hole) in enumerate(pieces):
        fresh = [] if hole else [Extent(start, length, chunk(1000 + number), 3)]
        changed.append((start, start + length, fresh))
        splice(extents, start, start + length, fresh)
    rewritten = writer.rewrite_extents(base, changed)
    assert rewritten == writer.write_extents(extents)
    assert reader.extents_bytes(rewritten) == sum(extent.length for extent in extents)
    for start, end in ((0, 2000), (0, 1), (300, 420), (999, 1000), (5000, 6000), (7, 7)):
        expected = [one for one in extents if one.offset < end and one.offset + one.length > start]
        assert reader.extents(file_of(rewritten), start, end) == (expected if start < end else [])


def test_truncation_comes_down_to_a_tuple_and_to_nothing() -> None:
    _, _, writer = bench()
    extents = regular(500)
    base = writer.write_extents(extents)
    assert isinstance(base, ExtentsRef) and base.count == 500
    assert writer.rewrite_extents(base, [(635, END, ())]) == (*extents[:63], Extent(630, 5, chunk(63), 0))
    assert writer.rewrite_extents(base, [(0, END, ())]) == ()
    assert writer.rewrite_extents(base, []) == base
    assert writer.write_extents(extents[:64]) == tuple(extents[:64])


def test_a_change_touches_only_its_segment() -> None:
    store, reader, writer = bench()
    base = writer.write_extents(regular(3000))
    assert isinstance(base, ExtentsRef)
    segments = reader.extent_segments(base)
    assert sum(ref.extent_count for ref in segments) == base.count == 3000
    assert [extent for ref in segments for extent in reader.extent_segment(ref)] == regular(3000)
    store.forget_counts()
    writer.rewrite_extents(base, [(15_000, 15_010, [Extent(15_000, 10, chunk(9999), 0)])])
    assert store.puts[RecordKind.EXTENT_SEGMENT] <= 3


def test_reading_a_stretch_reads_only_its_segments() -> None:
    store, reader, writer = bench()
    base = writer.write_extents(regular(3000))
    reader.cache.clear()
    store.forget_counts()
    found = reader.extents(file_of(base), 15_000, 15_010)
    assert found == [Extent(15_000, 10, chunk(1500), 0)]
    assert store.reads[RecordKind.EXTENT_SEGMENT] == 1


def test_the_loop_learns_of_all_segments_at_once() -> None:
    _, reader, writer = bench()
    base = writer.write_extents(regular(200))
    assert isinstance(base, ExtentsRef)
    reader.cache.clear()
    loop = TreeReader(reader.cache.view(inline=False))
    hops = 0
    while True:
        try:
            found = loop.extents(file_of(base), 0, 2000)
            break
        except NotCached as missing:
            hops += 1
            reader.cache.load(missing.ids)
    assert found == regular(200)
    assert hops == reader.extent_list(base.head).level + 1


def test_an_insertion_leaves_the_segments_behind_it_as_they_were() -> None:
    store, _, writer = bench()
    extents = regular(2000)
    writer.write_extents(extents)
    store.forget_counts()
    before = set(store.records)
    behind = (one._replace(offset=one.offset + 7) for one in extents[5:])
    writer.write_extents([*extents[:5], Extent(50, 7, chunk(77777), 0), *behind])
    fresh = [record.kind for one, record in store.records.items() if one not in before]
    assert 1 <= fresh.count(RecordKind.EXTENT_SEGMENT) <= 3


@given(st.integers(0, 1 << 32), st.integers(65, 200), st.integers(0, 1 << 62))
def test_far_and_alike_extents_read_back(seed: int, count: int, start: int) -> None:
    _, reader, writer = bench()
    for step in (0, 1):
        extents = [Extent(start + 8 * number, 8, chunk(seed + step * number), number) for number in range(count)]
        ref = writer.write_extents(extents)
        assert reader.extents(file_of(ref), 0, END) == extents
