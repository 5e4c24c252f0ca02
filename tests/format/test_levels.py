"""What is too large for the golden repository, read by the independent reader: lists above lists, bitmaps in parts."""

import random
from collections.abc import Callable

import pytest
from pyroaring import BitMap64
from xxhash import xxh3_64_intdigest

from repository.bitmaps import store_bitmap
from repository.format.inode import Entry, Extent, ExtentsRef, Inode, NodeKind
from repository.format.record import RecordKind
from repository.ids import NO_ID, FileId, RecordId
from repository.trees.reader import RecordCache, TreeReader
from repository.trees.writer import TreeWriter
from tests.format.independent import Record, need
from tests.format.independent_trees import Trees
from tests.support.memory_store import MemoryStore

CACHE_BYTES = 1 << 20
SEGMENTS = 260


class Stored:
    """Records of the memory store, as the independent reader asks for them."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def read(self, record_id: bytes, *kinds: int) -> Record:
        record = self._store.records[RecordId(record_id)]
        need(record.kind in kinds, "kind")
        return Record(record.kind, 0, record_id, 0, 0, bytes(record.payload))


def new() -> tuple[MemoryStore, TreeWriter, Trees]:
    store = MemoryStore()
    writer = TreeWriter(store, TreeReader(RecordCache(store, CACHE_BYTES, inline=True)), store.lease())
    return store, writer, Trees(Stored(store))


def numbers_that_cut(hash_of: Callable[[int, int], int]) -> list[int]:
    """Ascending numbers, every 64th of which ends a segment, and the last of 256 segments a list as well.

    `hash_of` a number and a level.
    """
    numbers = [1]
    while len(numbers) < 64 * SEGMENTS:
        number = numbers[-1] + 1
        last = len(numbers) + 1
        while (last % 64 == 0 and hash_of(number, 0) >= (1 << 64) // 192) or (
            last == 64 * 256 and hash_of(number, 1) >= (1 << 64) // 768
        ):
            number += 1
        numbers.append(number)
    return numbers


def level_of(store: MemoryStore, record_id: bytes, kind: RecordKind, offset: int) -> int:
    """The level that a list says it has."""
    record = store.records[RecordId(record_id)]
    assert record.kind is kind
    return record.payload[offset]


@pytest.mark.slow
def test_a_directory_of_two_levels_of_lists() -> None:
    store, writer, trees = new()
    numbers = numbers_that_cut(lambda number, level: xxh3_64_intdigest(b"%08d" % number, level))
    names = [b"%08d" % number for number in numbers]
    listing, totals = writer.write_directory(
        Entry(name, Inode(NodeKind.FIFO, FileId(2 + number))) for number, name in enumerate(names)
    )
    assert listing.content is not None and listing.attrs is not None
    assert level_of(store, listing.content, RecordKind.DIR_LIST, 2) == 2
    found = trees.listing(listing.content, listing.attrs)
    assert [name for name, _ in found] == names
    assert [inode.file_id for _, inode in found] == list(range(2, 2 + len(names)))
    assert totals == (len(names), 0)


def test_a_file_of_two_levels_of_lists() -> None:
    _, writer, trees = new()
    chance = random.Random(21)  # chosen so that a list ends early
    chunks = [
        RecordId(chance.randbytes(6) + (b"\0\0" if number % 128 == 127 else chance.randbytes(2)) + bytes(24))
        for number in range(128 * 275)
    ]
    extents = [Extent(number * 70_000, 65_000, chunk, 11) for number, chunk in enumerate(chunks)]
    ref = writer.write_extents(extents)
    assert isinstance(ref, ExtentsRef)
    assert trees.records.read(ref.head, RecordKind.EXTENT_LIST).payload[1] == 2
    found = trees.extent_list(ref.head, ref.count, len(chunks) * 65_000)
    assert [tuple(one) for one in found] == [tuple(one) for one in extents]


@pytest.mark.slow
def test_a_links_table_of_two_levels_of_lists() -> None:
    store, writer, trees = new()
    numbers = numbers_that_cut(lambda number, level: xxh3_64_intdigest(number.to_bytes(8, "little"), level))
    file_ids = [FileId(number) for number in numbers]
    inodes = {file_id: Inode(NodeKind.SOCKET, file_id, nlink=2, mtime_ns=-file_id) for file_id in file_ids}
    table = writer.rewrite_links(None, inodes)
    assert table is not None
    assert level_of(store, table, RecordKind.LINKS_LIST, 1) == 2
    found = trees.links(table)
    assert {file_id: inode.mtime_ns for file_id, inode in found.items()} == {one: -one for one in file_ids}


def test_a_bitmap_in_parts_and_a_difference_to_it() -> None:
    store, _, trees = new()
    chance = random.Random(2)
    numbers = BitMap64(chance.sample(range(1 << 24), 400_000))
    root, other = RecordId(chance.randbytes(32)), RecordId(chance.randbytes(32))
    head, bitmap = store_bitmap(store, store.lease(), root, numbers, exact=True)
    assert sum(record.kind is RecordKind.BITMAP for record in store.records.values()) > 2
    assert trees.bitmap(head.id, root) == (numbers, True, 0)
    less = numbers - BitMap64(range(1000)) | BitMap64([1 << 47])
    second, _ = store_bitmap(store, store.lease(), other, less, exact=False, parent=(head.id, bitmap))
    assert trees.bitmap(second.id, other) == (less, False, 1)
    assert second.id != NO_ID
