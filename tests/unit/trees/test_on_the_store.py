"""Trees, walks and bitmaps over the real record store, a claim and a second opening included."""

from collections.abc import Sequence
from pathlib import Path

from repository.bitmaps import BitmapReader, store_bitmap
from repository.counting import ReachCounter
from repository.format.inode import DirRef, Entry, Extent, ExtentsRef, Inode, NodeKind
from repository.format.record import RecordKind
from repository.ids import FileId, RecordId
from repository.reach import walk
from repository.store import RecordStore
from repository.trees.cache import RecordCache
from repository.trees.reader import TreeReader
from repository.trees.writer import TreeWriter
from tests.support.stores import new_volume, noise, open_store


def chunks(store: RecordStore, count: int) -> Sequence[RecordId]:
    return [one.id for one in store.put(RecordKind.CHUNK, [noise(seed, 100) for seed in range(count)], store.lease())]


def entries_of(ids: Sequence[RecordId], count: int) -> list[Entry]:
    xattrs = ((b"user.long", b"x" * 1000),)
    return [
        Entry(
            b"%06d" % number,
            Inode(
                NodeKind.FILE,
                FileId(number + 2),
                size=100,
                extents=(Extent(0, 100, ids[number % len(ids)], 0),),
                allocated_bytes=100,
                xattrs=xattrs if number % 100 == 0 else (),
            ),
        )
        for number in range(count)
    ]


def reader_of(store: RecordStore) -> TreeReader:
    return TreeReader(RecordCache(store, 8 << 20, inline=True))


def test_a_tree_survives_a_second_opening(tmp_path: Path) -> None:
    volume = new_volume(tmp_path / "repository")
    store = open_store(volume)
    lease = store.lease()
    ids = chunks(store, 200)
    entries = entries_of(ids, 3000)
    claim = store.claim(2 << 20, 200)
    writer = TreeWriter(store, reader_of(store), lease, claim)
    extents = [Extent(number * 100, 100, ids[number % 200], 0) for number in range(1000)]
    long = writer.write_extents(extents)
    assert isinstance(long, ExtentsRef)
    big = Inode(NodeKind.FILE, FileId(1), size=100_000, extents=long, allocated_bytes=100_000)
    old, _ = writer.write_directory([*entries, Entry(b"big", big)])
    new, totals = writer.rewrite_directory(old, {b"000500": None, b"big": None})
    store.forfeit(claim)
    assert totals.files == 2999

    roots = [(ref.content, ref.attrs) for ref in (old, new)]
    first, second = ([one for one in pair if one is not None] for pair in roots)
    walked = walk(store, first)
    counter = ReachCounter(store)
    counter.add(first)
    assert counter.numbers == walked
    stored, bitmap = store_bitmap(store, lease, first[0], walked, exact=True)
    counter.advance(first, second)
    assert counter.numbers == walk(store, second)
    head, _ = store_bitmap(store, lease, second[0], counter.numbers, exact=True, parent=(stored.id, bitmap))
    store.sync()
    store.close()

    again = open_store(volume, writable=False)
    reader = reader_of(again)
    assert list(reader.scan(old)) == [*entries, Entry(b"big", big)]
    assert [name for name, _ in reader.scan(new)] == [name for name, _ in entries if name != b"000500"]
    assert reader.extents(big, 0, 100_000) == extents
    bitmaps = BitmapReader(again)
    assert bitmaps.read(stored.id, root=first[0]).numbers == walked
    assert bitmaps.read(head.id, root=second[0]).numbers == walk(again, second)
    assert reader.lookup(DirRef(new.content, new.attrs), b"000500") is None
    again.close()
