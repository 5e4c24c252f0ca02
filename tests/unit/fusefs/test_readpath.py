"""Reading: assembling ranges, the bounded cache, one flight for many readers, reading ahead, damage that stays
local."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fusefs import readpath
from fusefs.readpath import ChunkCache, ReadPath, Stream, assemble, hops
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import DamagedError, MissingRecordError
from repository.format.inode import Extent, Inode, NodeKind
from repository.format.record import Record
from repository.ids import FileId, RecordId
from repository.trees.reader import RecordCache


@dataclass(frozen=True)
class Plain:
    payload: bytes


class Shelf:
    """Chunks in memory; counts what is asked for, and has bad ones."""

    def __init__(self, chunks: dict[RecordId, bytes], bad: set[RecordId] | None = None) -> None:
        self.chunks = chunks
        self.bad = bad or set()
        self.asked: list[list[RecordId]] = []

    def read_many(self, ids: Sequence[RecordId]) -> list[Plain]:
        self.asked.append(list(ids))
        if self.bad & set(ids):
            raise DamagedError("rot")
        return [Plain(self.chunks[one]) for one in ids]


class NoTrees:
    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        raise MissingRecordError("no trees here")


def chunk_id(number: int) -> RecordId:
    return RecordId(number.to_bytes(32, "big"))


def file_of(lengths: list[int]) -> tuple[Inode, dict[RecordId, bytes], bytes]:
    """A file whose chunks have these lengths (0: a hole of 1000 bytes in their place)."""
    extents: list[Extent] = []
    chunks: dict[RecordId, bytes] = {}
    content = b""
    for index, length in enumerate(lengths):
        if length:
            data = bytes((index * 7 + at) % 251 for at in range(length))
            chunks[chunk_id(index)] = data
            extents.append(Extent(len(content), length, chunk_id(index), 0))
            content += data
        else:
            content += bytes(1000)
    return Inode(NodeKind.FILE, FileId(7), size=len(content), extents=tuple(extents)), chunks, content


def path_over(shelf: Shelf, nursery: trio.Nursery, capacity_bytes: int = 1 << 20) -> ReadPath:
    workers = Workers()
    trees = Trees(RecordCache(NoTrees(), 1 << 16, inline=False), workers)
    return ReadPath(shelf, trees, workers, nursery, capacity_bytes)


@given(st.lists(st.integers(0, 3000), max_size=12), st.data())
def test_assemble_is_slicing(lengths: list[int], data: st.DataObject) -> None:
    inode, chunks, content = file_of(lengths)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    assert isinstance(inode.extents, tuple)
    overlapping = [one for one in inode.extents if one.offset < end and one.offset + one.length > start]
    assert bytes(assemble(overlapping, chunks, start, end)) == content[start:end]


def test_an_extent_that_points_past_its_chunk_is_damage() -> None:
    with pytest.raises(DamagedError):
        assemble([Extent(0, 10, chunk_id(1), 5)], {chunk_id(1): bytes(12)}, 0, 10)


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = ChunkCache(100)
    for number in range(10):
        cache.put(chunk_id(number), bytes(20))
        cache.get(chunk_id(0))
    assert cache.held_bytes == 100
    assert [number for number in range(10) if chunk_id(number) in cache] == [0, 6, 7, 8, 9]


@given(st.lists(st.tuples(st.integers(0, 1 << 26), st.integers(1, 1 << 20)), max_size=40))
def test_reading_ahead_lies_ahead_and_is_bounded(requests: list[tuple[int, int]]) -> None:
    stream = Stream()
    for start, length in requests:
        first, last = stream.advance(start, start + length)
        assert start + length <= first <= last or first == last
        assert last - first <= readpath.WINDOW_MAX + readpath.NEARBY_BYTES


def test_a_sequential_reader_has_everything_asked_for_once() -> None:
    stream = Stream()
    asked: list[tuple[int, int]] = []
    for start in range(0, 64 << 20, 128 << 10):
        first, last = stream.advance(start, start + (128 << 10))
        if last > first:
            asked.append((first, last))
    assert all(earlier[1] == later[0] for earlier, later in pairwise(asked))
    assert len(asked) < 40


def test_hops_are_bounded_and_complete() -> None:
    extents = [Extent(index * 300_000, 300_000, chunk_id(index // 2), 0) for index in range(40)]
    groups = list(hops(extents))
    assert list(dict.fromkeys(one for group in groups for one in group)) == [chunk_id(index) for index in range(20)]
    assert all(len(group) <= 4 for group in groups)


async def test_ranges_come_back_as_written() -> None:
    inode, chunks, content = file_of([3000, 0, 500, 2500, 0, 10])
    async with trio.open_nursery() as nursery:
        path = path_over(Shelf(chunks), nursery)
        for start, length in ((0, 10), (2990, 2000), (0, 100_000), (len(content) - 5, 50), (len(content), 5)):
            assert bytes(await path.read(inode, Stream(), start, length)) == content[start : start + length]


async def test_readers_of_the_same_chunk_share_one_flight() -> None:
    inode, chunks, content = file_of([5000])
    shelf = Shelf(chunks)
    async with trio.open_nursery() as nursery:
        path = path_over(shelf, nursery)

        async def reader() -> None:
            assert bytes(await path.read(inode, Stream(), 0, 5000)) == content

        async with trio.open_nursery() as readers:
            for _ in range(8):
                readers.start_soon(reader)
    assert shelf.asked == [[chunk_id(0)]]


async def test_a_bad_chunk_is_an_error_for_its_range_only() -> None:
    inode, chunks, content = file_of([4000, 4000, 4000])
    shelf = Shelf(chunks, bad={chunk_id(1)})
    async with trio.open_nursery() as nursery:
        path = path_over(shelf, nursery)
        with pytest.raises(DamagedError):
            await path.read(inode, Stream(), 0, 12_000)
        assert bytes(await path.read(inode, Stream(), 0, 4000)) == content[:4000]
        assert bytes(await path.read(inode, Stream(), 8000, 4000)) == content[8000:]
        with pytest.raises(DamagedError):
            await path.read(inode, Stream(), 5000, 10)


async def test_a_good_copy_that_arrives_later_heals() -> None:
    inode, chunks, content = file_of([4000])
    shelf = Shelf(chunks, bad={chunk_id(0)})
    async with trio.open_nursery() as nursery:
        path = path_over(shelf, nursery)
        with pytest.raises(DamagedError):
            await path.read(inode, Stream(), 0, 10)
        shelf.bad.clear()
        assert bytes(await path.read(inode, Stream(), 0, 10)) == content[:10]


async def test_what_a_sequential_reader_will_want_is_there_before_it_asks() -> None:
    inode, chunks, content = file_of([4000] * 20)
    shelf = Shelf(chunks)
    async with trio.open_nursery() as nursery:
        path = path_over(shelf, nursery)
        stream = Stream()
        assert bytes(await path.read(inode, stream, 0, 4000)) == content[:4000]
        with trio.fail_after(5):
            while sum(map(len, shelf.asked)) < 20:
                await trio.sleep(0.001)
        before = len(shelf.asked)
        for start in range(4000, 80_000, 4000):
            assert bytes(await path.read(inode, stream, start, 4000)) == content[start : start + 4000]
        assert len(shelf.asked) == before


async def test_a_cache_that_is_too_small_still_reads_right() -> None:
    inode, chunks, content = file_of([4000] * 20)
    async with trio.open_nursery() as nursery:
        path = path_over(Shelf(chunks), nursery, capacity_bytes=5000)
        assert bytes(await path.read(inode, Stream(), 0, 80_000)) == content


async def test_a_file_of_one_chunk_in_memory_needs_nobody(nursery: trio.Nursery) -> None:
    inode, chunks, content = file_of([3000])
    shelf = Shelf(chunks)
    path = path_over(shelf, nursery)
    assert path.at_hand(inode, 0, 4096) is None
    assert bytes(await path.read(inode, Stream(), 0, 4096)) == content
    for offset, length in ((0, 4096), (0, 3000), (0, 100), (2900, 4096), (3000, 10), (5000, 10)):
        found = path.at_hand(inode, offset, length)
        assert found is not None and bytes(found) == content[offset : offset + length]
    assert len(shelf.asked) == 1
    part = Inode(NodeKind.FILE, FileId(8), size=100, extents=(Extent(0, 100, chunk_id(0), 50),))
    found = path.at_hand(part, 10, 4096)
    assert found is not None and bytes(found) == content[60:150]
    longer = Inode(NodeKind.FILE, FileId(8), size=3100, extents=(Extent(0, 3100, chunk_id(0), 0),))
    assert path.at_hand(longer, 0, 4096) is None, "damage is for the other way to tell"
    for lengths in ([3000, 0], [0, 3000], [3000, 3000]):
        other, _, _ = file_of(lengths)
        assert path.at_hand(other, 0, 1 << 20) is None
