"""Numbers of thousands at once are those that single look-ups answer with: copies, memory, holes and rot included."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pyroaring import BitMap64

from repository.format.indexseg import SEGMENT_HEADER_BYTES
from repository.ids import RecordId, RecordNumber, pack_of
from repository.storage.volume import Volume
from repository.store import RecordStore
from tests.support.stores import new_volume, noise, open_store, put_noise

LENGTH = 3000


def session(root: Path, seeds: range) -> dict[int, RecordId]:
    store = open_store(Volume(root))
    ids = put_noise(store, seeds, LENGTH)
    store.close()
    return ids


def one_by_one(store: RecordStore, ids: Sequence[RecordId]) -> list[RecordNumber | None]:
    return [None if place is None else place.number for one in ids for place in store.locate([one])]


def strangers(count: int) -> list[RecordId]:
    return [RecordId(noise(5000 + item, 32)) for item in range(count)]


def store_anew(root: Path, seeds: Sequence[int], ids: dict[int, RecordId]) -> None:
    """In a session that takes the first copies for damaged."""
    store = open_store(Volume(root))
    for seed in seeds:
        (number,) = store.find_numbers([ids[seed]])
        assert number is not None
        store._index.note_damaged(number)
        put_noise(store, range(seed, seed + 1), LENGTH)
    store.close()


def test_the_later_of_two_copies_is_found(tmp_path: Path) -> None:
    """In another segment, which is newer; and in one, where two rows have the same key."""
    new_volume(tmp_path)
    ids = session(tmp_path, range(50)) | session(tmp_path, range(50, 90))
    healed = [ids[7], ids[60]]
    first = open_store(Volume(tmp_path), writable=False).find_numbers(healed)
    store_anew(tmp_path, (7, 60), ids)
    asked = [*ids.values(), *strangers(50)]
    store = open_store(Volume(tmp_path), writable=False)
    assert len(store._index.segments) == 3
    assert store.find_numbers(asked) == one_by_one(store, asked)
    second = store.find_numbers(healed)
    assert not set(first) & set(second)
    assert [place.number for one in healed for place in store.locate([one]) if place is not None] == second
    open_store(Volume(tmp_path), rebuild_index=True).close()
    store = open_store(Volume(tmp_path), writable=False)
    assert len(store._index.segments) == 1
    assert store.find_numbers(asked) == one_by_one(store, asked)
    assert store.find_numbers(healed) == second


def test_an_older_segment_does_not_answer_for_what_a_newer_one_has_twice(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids = session(tmp_path, range(20))
    store = open_store(Volume(tmp_path))
    for _ in range(2):
        (number,) = store.find_numbers([ids[5]])
        assert number is not None
        store._index.note_damaged(number)
        put_noise(store, range(5, 6), LENGTH)
    store.close()
    store = open_store(Volume(tmp_path), writable=False)
    assert [len(segment.find(ids[5])) for segment in store._index.segments] == [2, 1]
    asked = list(ids.values())
    assert store.find_numbers(asked) == one_by_one(store, asked)


def test_what_is_in_memory_counts_and_what_is_condemned_does_not(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids = session(tmp_path, range(40))
    store = open_store(Volume(tmp_path))
    ids |= put_noise(store, range(40, 80), LENGTH)
    asked = list(ids.values())
    before = store.find_numbers(asked)
    assert None not in before
    assert before == one_by_one(store, asked)
    store._index.condemn(BitMap64(number for number in (before[3], before[50]) if number is not None))
    after = store.find_numbers(asked)
    assert [item for item, number in enumerate(after) if number is None] == [3, 50]
    assert after == one_by_one(store, asked)
    store.close()


def test_holes_that_the_index_misses_are_seen(tmp_path: Path) -> None:
    """The segment is older than the punch: its stamp of the pack does not hold."""
    new_volume(tmp_path)
    ids = session(tmp_path, range(60))
    store = open_store(Volume(tmp_path))
    places = [place for place in store.locate([ids[seed] for seed in range(10, 30)]) if place is not None]
    dead = BitMap64(place.number for place in places)
    assert store.condemn(dead) == dead
    start, end = places[0].offset, places[-1].offset + places[-1].stored_length
    store.punch(pack_of(places[0].number), [(start, end - start)])
    store.close()
    asked = list(ids.values())
    store = open_store(Volume(tmp_path), writable=False)
    found = store.find_numbers(asked)
    assert [item for item, number in enumerate(found) if number is None] == list(range(10, 30))
    assert found == one_by_one(open_store(Volume(tmp_path), writable=False), asked)


@pytest.mark.logs("index.segment_discarded")
def test_rot_in_the_columns_hides_nothing(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids = session(tmp_path, range(100))
    expected = open_store(Volume(tmp_path), writable=False).find_numbers(list(ids.values()))
    (path,) = (tmp_path / "index").iterdir()
    content = bytearray(path.read_bytes())
    for at in range(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + 100 * 8, 24):
        content[at] ^= 0x40
    path.write_bytes(content)
    store = open_store(Volume(tmp_path), writable=False)
    assert store.find_numbers(list(ids.values())) == expected
    assert not store._index.segments
