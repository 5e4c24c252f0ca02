"""The index: segments, their filter, merging, and what makes them worthless."""

import os
import shutil
import subprocess
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from repository.errors import DamagedError
from repository.format.indexseg import (
    KEY_TYPE,
    ROW_BYTES,
    SEGMENT_HEADER_BYTES,
    checks_of,
    decode_segment_header,
    keys_of,
    place_in_row,
    rows_of,
    second_words_of,
    sequence_of,
)
from repository.format.pack import PackDirectory, pack_path
from repository.format.record import RecordKind
from repository.ids import PackIndex, RecordId, pack_of
from repository.index import build, keeper
from repository.index.filter import Filter, FilterBuilder, filter_bytes_for
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import KIB
from tests.support.calls import RecordingCalls
from tests.support.stores import new_volume, noise, open_store, put_noise


def _directory(ids: list[bytes], pack: int = 3) -> PackDirectory:
    count = len(ids)
    rng = np.random.default_rng(count)
    return PackDirectory(
        PackIndex(pack),
        0,
        offset=rng.integers(0, 2**32, count, np.uint32),
        stored=rng.integers(0, 2**32, count, np.uint32),
        raw=rng.integers(0, 2**32, count, np.uint32),
        kind=np.ones(count, np.uint8),
        flags=np.zeros(count, np.uint8),
        ids=np.frombuffer(b"".join(ids), np.uint8).reshape(count, 32),
    )


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=60), st.integers(0, ROW_BYTES * 8 - 1))
def test_a_row_gives_its_place_and_notices_every_flipped_bit(ids: list[bytes], bit: int) -> None:
    directory = _directory(ids)
    keys, rows = rows_of(directory)
    assert np.array_equal(checks_of(keys, rows), rows["check"])
    for position, record_id in enumerate(ids):
        row = bytearray(rows[position].tobytes())
        assert place_in_row(bytes(row), RecordId(record_id)) == directory.place(position)
        row[bit // 8] ^= 1 << bit % 8
        assert place_in_row(bytes(row), RecordId(record_id)) is None


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True, min_size=1, max_size=300))
def test_the_filter_never_denies_what_it_holds(ids: list[bytes]) -> None:
    builder = FilterBuilder(len(ids))
    keys, rows = rows_of(_directory(ids))
    builder.add(keys, second_words_of(rows))
    content = builder.tobytes()
    assert len(content) == filter_bytes_for(len(ids))
    built = Filter(content)
    assert all(built.may_hold(RecordId(record_id)) for record_id in ids)
    assert built.which_may_hold(keys, second_words_of(rows)).all()


def test_the_filter_denies_nearly_everything_else() -> None:
    def ids(seed: int) -> list[bytes]:
        return [noise(seed * 100_000 + item, 32) for item in range(5_000)]

    builder = FilterBuilder(5_000)
    keys, rows = rows_of(_directory(ids(1)))
    builder.add(keys, second_words_of(rows))
    built = Filter(builder.tobytes())
    others = ids(2)
    passed = [built.may_hold(RecordId(one)) for one in others]
    keys, rows = rows_of(_directory(others))
    assert built.which_may_hold(keys, second_words_of(rows)).tolist() == passed
    assert sum(passed) < 0.012 * len(others)


def test_keys_sort_as_ids_do() -> None:
    ids = [noise(item, 32) for item in range(200)]
    table = np.frombuffer(b"".join(ids), np.uint8).reshape(200, 32)
    assert [ids[row] for row in np.argsort(keys_of(table))] == sorted(ids)
    assert keys_of(table).dtype == KEY_TYPE


def _segments(root: Path) -> list[Path]:
    return sorted(path for path in (root / "index").iterdir() if sequence_of(path.name) is not None)


def _session(root: Path, seeds: range, length: int = 300) -> dict[int, RecordId]:
    store = open_store(Volume(root))
    ids = put_noise(store, seeds, length)
    store.close()
    return ids


def test_closing_writes_a_segment_and_the_next_open_reads_no_pack(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids = _session(tmp_path, range(500))
    assert len(_segments(tmp_path)) == 1
    calls = RecordingCalls()
    store = open_store(Volume(tmp_path, calls), writable=False)
    opened = 1 + 2  # the segment, the spare pack and its stub
    assert calls.counts["open"] == opened
    for seed in (0, 250, 499):
        assert store.read(ids[seed]).payload == noise(seed, 300)
    assert calls.counts["open"] == opened + 1


def test_batches_and_single_look_ups_agree(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids: dict[int, RecordId] = {}
    for first in range(0, 600, 200):
        ids |= _session(tmp_path, range(first, first + 200))
    store = open_store(Volume(tmp_path), writable=False)
    asked = [*ids.values(), *(RecordId(noise(9_999 + item, 32)) for item in range(200))]
    Random(1).shuffle(asked)
    batch = store.locate(asked)
    assert batch == [store.locate([one])[0] for one in asked]
    assert store.find_numbers(asked) == [None if place is None else place.number for place in batch]
    known = set(ids.values())
    assert [place is not None for place in batch] == [one in known for one in asked]


def test_many_segments_become_few_and_answer_alike(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids: dict[int, RecordId] = {}
    for session in range(30):
        ids |= _session(tmp_path, range(session * 20, session * 20 + 20))
        assert len(_segments(tmp_path)) <= build.MERGE_FROM
    store = open_store(Volume(tmp_path), writable=False)
    for seed, record_id in ids.items():
        assert store.read(record_id).payload == noise(seed, 300)


def test_merging_in_slices_keeps_every_row_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SLICE_ROWS", 7)
    monkeypatch.setattr(build, "MERGE_FROM", 2)
    new_volume(tmp_path)
    ids: dict[int, RecordId] = {}
    for session in range(4):
        ids |= _session(tmp_path, range(session * 50, session * 50 + 50))
    assert len(_segments(tmp_path)) <= 2
    store = open_store(Volume(tmp_path), writable=False)
    for segment in store._index.segments:
        segment.verify()
        assert (np.diff(segment.keys.astype(np.float64)) >= 0).all()
    assert None not in store.locate(list(ids.values()))


def test_a_full_memory_writes_a_segment_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FLUSH_ROWS", 100)
    store = open_store(new_volume(tmp_path))
    ids: dict[int, RecordId] = {}
    for first in range(0, 400, 10):
        ids |= put_noise(store, range(first, first + 10), 60 * KIB)
        if first % 50 == 0:
            store.sync()
    assert _segments(tmp_path)
    assert store._index.memory_count() < 300
    assert put_noise(store, range(400), 60 * KIB) == ids
    for seed, record_id in ids.items():
        assert store.read(record_id).payload == noise(seed, 60 * KIB)


@pytest.mark.logs("index.segment_discarded")
@pytest.mark.parametrize("part", ["header", "filter", "packs", "length", "garbage"])
def test_a_bad_segment_is_thrown_away_and_written_again(tmp_path: Path, part: str) -> None:
    new_volume(tmp_path)
    ids = _session(tmp_path, range(100))
    (path,) = _segments(tmp_path)
    content = bytearray(path.read_bytes())
    header = decode_segment_header(bytes(content[:SEGMENT_HEADER_BYTES]))
    match part:
        case "header":
            content[20] ^= 1
        case "filter":
            content[header.filter_offset + 3] ^= 1
        case "packs":
            content[header.packs_offset + 1] ^= 1
        case "length":
            del content[-1:]
        case _:
            content[:] = b"x" * 100
    path.write_bytes(content)
    reader = open_store(Volume(tmp_path), writable=False)
    assert None not in reader.locate(list(ids.values()))
    assert path.read_bytes() == content, "a reader removes nothing"
    store = open_store(Volume(tmp_path))
    assert None not in store.locate(list(ids.values()))
    store.close()
    (fresh,) = _segments(tmp_path)
    assert fresh != path


@pytest.mark.logs("index.segment_discarded")
def test_rot_in_the_columns_is_found_when_segments_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_volume(tmp_path)
    ids = _session(tmp_path, range(100)) | _session(tmp_path, range(100, 200))
    path = _segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[SEGMENT_HEADER_BYTES + 8] ^= 0xFF
    path.write_bytes(content)
    monkeypatch.setattr(build, "MERGE_FROM", 1)
    store = open_store(Volume(tmp_path))
    with pytest.raises(DamagedError):
        store._index.segments[-1].verify()
    store.tend()
    assert None not in store.locate(list(ids.values()))
    store.close()
    store = open_store(Volume(tmp_path), writable=False)
    assert None not in store.locate(list(ids.values()))


def _punch_half(store: RecordStore, ids: dict[int, RecordId]) -> tuple[set[int], PackIndex]:
    """Condemn and punch the records of odd seeds; returns those that lay in whole blocks, and the pack."""
    pairs = [(seed, store.locate([record_id])[0]) for seed, record_id in ids.items()]
    dead = {seed: place for seed, place in pairs if seed % 2 and place is not None}
    (pack,) = {pack_of(place.number) for place in dead.values()}
    assert len(store.condemn(BitMap64([place.number for place in dead.values()]))) == len(dead)
    ranges = []
    for place in dead.values():
        first, last = -(-place.offset // 4096) * 4096, (place.offset + place.stored_length) // 4096 * 4096
        ranges.append((first, last - first))
    store.punch(pack, ranges)
    return set(dead), pack


@pytest.mark.parametrize("how", ["index", "no index", "filled copy", "filled copy without index", "rebuild"])
def test_a_punched_record_is_never_found_again(tmp_path: Path, how: str) -> None:
    """A new file would be deduplicated against zeros."""
    root = tmp_path / "repository"
    new_volume(root)
    ids = _session(root, range(20), 30_000)
    store = open_store(Volume(root))
    dead, pack = _punch_half(store, ids)
    for path in [*_segments(root)] if how == "no index" else []:
        path.unlink()
    if how.startswith("filled"):
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", "--sparse=never", root, copy], check=True)
        root = copy
        if how.endswith("without index"):
            shutil.rmtree(root / "index")
    again = open_store(Volume(root), rebuild_index=how == "rebuild")
    for seed, record_id in ids.items():
        assert (again.locate([record_id]) == [None]) == (seed in dead), seed
    present = again.directory(pack)
    if not how.startswith("filled"):
        assert {present.id_at(row) for row in np.flatnonzero(present.kind).tolist()} == {
            record_id for seed, record_id in ids.items() if seed not in dead
        }
    lease = again.lease()
    stored = again.put(RecordKind.CHUNK, [noise(seed, 30_000) for seed in ids], lease)
    assert {seed for seed, item in zip(ids, stored, strict=True) if item.new} == dead
    for seed, item in zip(ids, stored, strict=True):
        assert again.read(item.id).payload == noise(seed, 30_000)


def test_a_pack_that_was_only_touched_keeps_its_records(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids = _session(tmp_path, range(10))
    os.utime(tmp_path / pack_path(PackIndex(0)), ns=(1, 1))
    store = open_store(Volume(tmp_path))
    assert None not in store.locate(list(ids.values()))
    assert put_noise(store, range(10), 300) == ids


def test_records_of_dropped_packs_are_gone_at_once_and_later(tmp_path: Path) -> None:
    new_volume(tmp_path)
    first = _session(tmp_path, range(10))
    second = _session(tmp_path, range(10, 20))
    store = open_store(Volume(tmp_path))
    place = store.locate([first[0]])[0]
    assert place is not None
    pack = pack_of(place.number)
    numbers = BitMap64()
    numbers.add_range(pack << 16, (pack + 1) << 16)
    store.condemn(numbers)
    store.drop_pack(pack)
    for _ in range(2):
        assert store.locate(list(first.values())) == [None] * 10
        assert None not in store.locate(list(second.values()))
        store.close()
        store = open_store(Volume(tmp_path))


def test_a_rebuilt_index_is_as_good(tmp_path: Path) -> None:
    new_volume(tmp_path)
    ids = _session(tmp_path, range(100)) | _session(tmp_path, range(100, 200))
    before = open_store(Volume(tmp_path), writable=False).locate(list(ids.values()))
    store = open_store(Volume(tmp_path), rebuild_index=True)
    assert store.locate(list(ids.values())) == before
    store.close()
    assert len(_segments(tmp_path)) == 1
    assert open_store(Volume(tmp_path), writable=False).locate(list(ids.values())) == before


def test_a_missing_directory_is_made_with_the_first_segment_and_not_before(tmp_path: Path) -> None:
    """Who opens in order to free room must not take a directory's block for a cache."""
    new_volume(tmp_path)
    ids = _session(tmp_path, range(20))
    shutil.rmtree(tmp_path / "index")
    store = open_store(Volume(tmp_path))
    assert not (tmp_path / "index").exists()
    assert None not in store.locate(list(ids.values()))
    store.close()
    assert len(_segments(tmp_path)) == 1
