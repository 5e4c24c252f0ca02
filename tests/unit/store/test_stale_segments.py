"""Index segments that a crash brings back, older than what was punched and dropped since."""

import shutil
from pathlib import Path

from pyroaring import BitMap64

from repository.ids import PackIndex, RecordId
from repository.storage.volume import Volume
from repository.store import RecordStore
from tests.support.stores import new_volume, noise, open_store, put_noise

LENGTH = 40_000


def _session(root: Path, seeds: range) -> dict[int, RecordId]:
    store = open_store(Volume(root))
    ids = put_noise(store, seeds, LENGTH)
    store.close()
    return ids


def _punch(store: RecordStore, pack: PackIndex, record_id: RecordId) -> None:
    (place,) = store.locate([record_id])
    assert place is not None
    store.condemn(BitMap64([place.number]))
    start = -(-place.offset // 4096) * 4096
    store.punch(pack, [(start, (place.offset + place.stored_length) // 4096 * 4096 - start)])


def test_a_merged_segment_whose_removal_was_lost_answers_with_nothing_that_was_punched(tmp_path: Path) -> None:
    """It was kept for a pack that was gone, and its rows for another pack were believed on the new segment's word."""
    new_volume(tmp_path)
    gone = _session(tmp_path, range(3))
    ids = _session(tmp_path, range(3, 9))
    shutil.rmtree(tmp_path / "index")
    open_store(Volume(tmp_path)).close()
    (old,) = (tmp_path / "index").iterdir()
    saved = old.read_bytes()

    store = open_store(Volume(tmp_path))
    store.condemn(BitMap64([place.number for place in store.locate(list(gone.values())) if place is not None]))
    store.drop_pack(PackIndex(0))
    _punch(store, PackIndex(1), ids[4])
    store.close()
    old.unlink()
    open_store(Volume(tmp_path)).close()
    (new,) = (tmp_path / "index").iterdir()
    new.rename(new.with_name("0000000000000007.seg"))
    old.write_bytes(saved)

    again = open_store(Volume(tmp_path))
    assert again.locate([ids[4]]) == [None]
    put_noise(again, range(9), LENGTH)
    for seed, record_id in (gone | ids).items():
        assert again.read(record_id).payload == noise(seed, LENGTH)


def test_small_records_at_the_edges_of_a_hole_are_gone_too(tmp_path: Path) -> None:
    """Their blocks are not part of the hole, only written over: each mount logged them as damaged."""
    new_volume(tmp_path)
    store = open_store(Volume(tmp_path))
    ids = put_noise(store, range(120), 300)
    store.close()
    store = open_store(Volume(tmp_path))
    places = {seed: place for seed, place in zip(ids, store.locate(list(ids.values())), strict=True) if place}
    dead = [places[seed] for seed in range(20, 100)]
    store.condemn(BitMap64([place.number for place in dead]))
    start, end = dead[0].offset, dead[-1].offset + dead[-1].stored_length
    store.punch(PackIndex(0), [(start, end - start)])
    shutil.rmtree(tmp_path / "index")
    store.close()
    open_store(Volume(tmp_path)).close()
    again = open_store(Volume(tmp_path))
    kinds = again.directory(PackIndex(0)).kind.tolist()
    assert [position for position, kind in enumerate(kinds) if not kind] == list(range(20, 100))
