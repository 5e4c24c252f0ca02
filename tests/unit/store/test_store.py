"""Records in and out: deduplication, leases, claims, streams, healing."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pyroaring import BitMap64

from repository.codec import Codec
from repository.errors import DamagedError, MissingRecordError, ReadOnlyError
from repository.format.pack import Stream, pack_path
from repository.format.record import HEADER_BYTES, Place, RecordKind
from repository.ids import RecordId, RecordNumber, pack_of
from repository.store import RecordStore
from repository.units import KIB, MIB
from tests.support.calls import RecordingCalls
from tests.support.stores import CONFIG, chunk, new_volume, noise, open_store, put_noise


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return open_store(new_volume(tmp_path))


def _flip(root: Path, place: Place, at: int) -> None:
    path = root / pack_path(pack_of(place.number))
    with path.open("r+b") as file:
        file.seek(place.offset + at)
        old = file.read(1)
        file.seek(place.offset + at)
        file.write(bytes((old[0] ^ 0xFF,)))


def _place(store: RecordStore, record_id: RecordId) -> Place:
    (place,) = store.locate([record_id])
    assert place is not None
    return place


def test_what_was_put_is_read_before_and_after_closing(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    payloads = [b"", b"x", b"text " * 5_000, noise(1, 300), noise(2, 300 * KIB)]
    with_store = open_store(volume)
    lease = with_store.lease()
    stored = with_store.put(RecordKind.XATTRS, payloads, lease)
    for _ in range(2):
        for item, payload in zip(stored, payloads, strict=True):
            assert with_store.read(item.id) == (RecordKind.XATTRS, payload)
            assert _place(with_store, item.id)[::2] == (item.number, item.stored_length)
            assert item.raw_length == len(payload)
        assert [record.payload for record in with_store.read_many([item.id for item in stored])] == payloads
        with_store.close()
        with_store = open_store(volume)
    assert stored[2].stored_length < 1 * KIB
    assert stored[4].stored_length == HEADER_BYTES + 300 * KIB


def test_known_bytes_are_not_stored_again(store: RecordStore) -> None:
    lease = store.lease()
    first = store.put(RecordKind.CHUNK, [b"a" * 100, b"b" * 100, b"a" * 100], lease)
    assert [item.new for item in first] == [True, True, False]
    assert first[0].number == first[2].number
    second = store.put(RecordKind.CHUNK, [b"b" * 100], store.lease())
    assert (second[0].new, second[0].number) == (False, first[1].number)


def test_a_chunk_and_a_tree_of_the_same_bytes_are_two_records(store: RecordStore) -> None:
    lease = store.lease()
    (one,) = store.put(RecordKind.CHUNK, [b"same"], lease)
    (two,) = store.put(RecordKind.XATTRS, [b"same"], lease)
    (three,) = store.put(RecordKind.MANIFEST, [b"same"], lease)
    assert len({one.id, two.id, three.id}) == 3


def test_journal_records_are_never_shared(store: RecordStore) -> None:
    lease = store.lease()
    stored = store.put(RecordKind.JOURNAL, [b"flush", b"flush"], lease)
    stored += store.put(RecordKind.JOURNAL, [b"flush"], lease)
    assert len({item.number for item in stored}) == 3
    assert all(item.new for item in stored)


def test_records_gather_by_what_dies_together(store: RecordStore) -> None:
    lease = store.lease()
    (bulk,) = store.put(RecordKind.CHUNK, [noise(1, 16 * KIB)], lease)
    (small,) = store.put(RecordKind.CHUNK, [noise(2, 8 * KIB)], lease)
    (journal,) = store.put(RecordKind.JOURNAL, [noise(3, 100)], lease)
    (tree,) = store.put(RecordKind.DIR_CONTENT, [noise(4, 100)], lease)
    stream = {info.index: info.stream for info in store.packs()}
    assert [stream[pack_of(item.number)] for item in (bulk, small, journal, tree)] == [
        Stream.BULK,
        Stream.SMALL,
        Stream.SMALL,
        Stream.TREE,
    ]


def test_a_batch_is_one_write(tmp_path: Path) -> None:
    calls = RecordingCalls()
    store = open_store(new_volume(tmp_path, calls))
    lease = store.lease()
    store.put(RecordKind.CHUNK, [noise(0, 20 * KIB)], lease)
    calls.counts.clear()
    store.put(RecordKind.CHUNK, [noise(seed, 20 * KIB) for seed in range(1, 30)], lease)
    assert calls.counts == {"pwritev": 1}
    calls.counts.clear()
    store.put(RecordKind.CHUNK, [noise(seed, 20 * KIB) for seed in range(1, 30)], lease)
    assert not calls.counts
    store.read(store.put(RecordKind.CHUNK, [noise(1, 20 * KIB)], lease)[0].id)
    calls.counts.clear()
    store.read(store.put(RecordKind.CHUNK, [noise(2, 20 * KIB)], lease)[0].id)
    assert calls.counts == {"pread": 1}


def test_a_sync_is_one_fdatasync_for_each_pack_written_to(tmp_path: Path) -> None:
    calls = RecordingCalls()
    store = open_store(new_volume(tmp_path, calls))
    put_noise(store, range(5), 1000)
    store.sync()
    calls.counts.clear()
    put_noise(store, range(5, 9), 1000)
    store.sync()
    assert calls.counts == {"pwritev": 1, "fdatasync": 1}
    calls.counts.clear()
    store.sync()
    assert not calls.counts


def test_a_new_pack_is_named_durably_by_the_first_sync(tmp_path: Path) -> None:
    calls = RecordingCalls()
    store = open_store(new_volume(tmp_path, calls))
    put_noise(store, range(1), 1000)
    assert calls.counts["fsync"] == 0
    store.sync()
    synced = [operation.path for operation in calls.log if operation.name == "fsync"]
    assert synced == [str(tmp_path / f"packs/{low:02x}") for low in range(3)], "with the spare pack and its stub"


def test_results_are_leased_until_the_lease_closes(store: RecordStore) -> None:
    first, second = store.lease(), store.lease()
    (stored,) = store.put(RecordKind.CHUNK, [b"x" * 100], first)
    store.put(RecordKind.CHUNK, [b"x" * 100], second)
    assert stored.number in store.leased()
    first.close()
    assert store.leased() == BitMap64([stored.number])
    second.close()
    assert not store.leased()


def test_condemned_records_are_not_shared_and_stored_anew(store: RecordStore) -> None:
    with store.lease() as lease:
        (old,) = store.put(RecordKind.CHUNK, [b"x" * 100], lease)
        assert not store.condemn(BitMap64([old.number])), "a leased number was condemned"
    assert store.condemn(BitMap64([old.number])) == BitMap64([old.number])
    assert store.locate([old.id]) == [None]
    with pytest.raises(MissingRecordError):
        store.read(old.id)
    (new,) = store.put(RecordKind.CHUNK, [b"x" * 100], store.lease())
    assert new.new
    assert new.number != old.number
    assert store.read(new.id) == chunk(b"x" * 100)


def test_bytes_are_cut_and_zeros_are_holes(store: RecordStore) -> None:
    data = noise(1, 200 * KIB) + bytes(512 * KIB) + noise(2, 100 * KIB)
    lease = store.lease()
    refs, used = store.put_bytes(data, final=False, lease=lease)
    more, rest = store.put_bytes(memoryview(data)[used:], final=True, lease=lease)
    refs += more
    assert used + rest == len(data) == sum(ref.raw_length for ref in refs)
    back = b"".join(bytes(ref.raw_length) if ref.id is None else store.read(ref.id).payload for ref in refs)
    assert back == data
    assert sum(ref.raw_length for ref in refs if ref.id is None) >= 384 * KIB
    assert store.put_bytes(b"", final=True, lease=lease) == ([], 0)


@pytest.mark.logs("record.damaged")
@pytest.mark.parametrize("at", [0, 20, 60, HEADER_BYTES, HEADER_BYTES + 99])
def test_damage_is_found_and_healed_by_the_same_bytes(tmp_path: Path, at: int) -> None:
    volume = new_volume(tmp_path)
    store = open_store(volume)
    lease = store.lease()
    payload = noise(1, 100)
    (old,) = store.put(RecordKind.CHUNK, [payload], lease)
    _flip(tmp_path, _place(store, old.id), at)
    with pytest.raises(DamagedError, match=r"packs/00/00000000.pack at byte 256"):
        store.read(old.id)
    assert store.locate([old.id]) != [None], "a damaged record is still located"
    (new,) = store.put(RecordKind.CHUNK, [payload], lease)
    assert new.new
    assert store.read(old.id) == chunk(payload)
    store.close()
    assert open_store(volume, writable=False).read(old.id) == chunk(payload)


@pytest.mark.logs("record.damaged")
def test_a_record_of_another_place_is_not_taken(tmp_path: Path) -> None:
    """Copying a record's bytes over another one of the same length must not read as that other one."""
    store = open_store(new_volume(tmp_path))
    first, second = put_noise(store, range(2), 500).values()
    one, two = _place(store, first), _place(store, second)
    path = tmp_path / pack_path(pack_of(one.number))
    content = bytearray(path.read_bytes())
    content[two.offset : two.offset + two.stored_length] = content[one.offset : one.offset + one.stored_length]
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        store.read(second)
    assert store.read(first).payload == noise(0, 500)


def test_many_threads_store_the_same_bytes_once(tmp_path: Path) -> None:
    store = open_store(new_volume(tmp_path))
    payloads = [noise(seed, 3_000 + seed) for seed in range(150)]
    answers: list[list[tuple[RecordNumber, bool]]] = []
    start = threading.Barrier(6)

    def work(shift: int) -> None:
        lease = store.lease()
        mine = payloads[shift:] + payloads[:shift]
        start.wait()
        out = []
        for first in range(0, len(mine), 10):
            group = mine[first : first + 10]
            for item, payload in zip(store.put(RecordKind.CHUNK, group, lease), group, strict=True):
                assert store.read(item.id).payload == payload
                out.append((item.number, item.new))
        answers.append(out)

    threads = [threading.Thread(target=work, args=(shift * 20,)) for shift in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    numbers = {number for answer in answers for number, _ in answer}
    assert len(numbers) == 150
    assert sum(new for answer in answers for _, new in answer) == 150


def test_packs_fill_seal_and_stay_readable(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    store = open_store(volume)
    ids: dict[int, RecordId] = {}
    for first in range(0, 400, 20):
        ids |= put_noise(store, range(first, first + 20), 60 * KIB)
    store.sync()
    infos = store.packs()
    assert sum(info.sealed for info in infos) >= 4
    for info in infos:
        if info.sealed:
            size = os.stat(tmp_path / pack_path(info.index)).st_size
            assert size <= 4 * MIB
            assert size > 4 * MIB - 130 * KIB
    store.close()
    again = open_store(volume, writable=False)
    assert all(info.sealed for info in again.packs())
    for seed, record_id in ids.items():
        assert again.read(record_id).payload == noise(seed, 60 * KIB)


@pytest.mark.slow
def test_a_pack_ends_after_65535_records(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    store = open_store(volume)
    lease = store.lease()
    for first in range(0, 66_000, 3_000):
        store.put(RecordKind.XATTRS, [b"%d" % item for item in range(first, first + 3_000)], lease)
    records = [info.records for info in store.packs()]
    assert sum(records) == 66_000
    assert max(records) <= 65_535
    store.close()
    again = open_store(volume, writable=False)
    last = Codec(CONFIG.id_key, CONFIG.seed).id_of(RecordKind.XATTRS, b"65999")
    assert again.read(last).payload == b"65999"


def test_directories_agree_with_what_was_put(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    store = open_store(volume)
    ids = put_noise(store, range(50), 2_000)
    (open_pack,) = [info.index for info in store.packs() if info.records]
    before = store.directory(open_pack)
    store.close()
    after = open_store(volume, writable=False).directory(open_pack)
    assert np.array_equal(before.ids, after.ids)
    assert np.array_equal(before.offset, after.offset)
    assert {after.id_at(row) for row in range(len(after))} == set(ids.values())
    assert before.written_ns == after.written_ns


def test_a_store_for_reading_refuses_changes_and_touches_nothing(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    writer = open_store(volume)
    ids = put_noise(writer, range(5), 2_000)
    calls = RecordingCalls()
    reader = open_store(type(volume)(tmp_path, calls), writable=False)
    for call in (
        lambda: reader.claim(1, 1),
        lambda: reader.put(RecordKind.CHUNK, [b"x"], reader.lease()),
        reader.seal_open,
    ):
        with pytest.raises(ReadOnlyError):
            call()
    assert reader.read(ids[3]).payload == noise(3, 2_000)
    more = put_noise(writer, range(5, 400), 20_000)
    writer.sync()
    assert reader.read(more[399]).payload == noise(399, 20_000), "a reader beside a mount sees what was added"
    reader.close()
    assert not calls.log


def test_a_session_without_records_leaves_no_pack(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    store = open_store(volume)
    store.forfeit(store.claim(3 * MIB, 10))
    assert all(not info.records and not info.sealed for info in store.packs()), "open packs are listed from birth on"
    store.close()
    assert store.packs() == []
    assert len(list((tmp_path / "packs").rglob("*.pack"))) == 2, "the spare pack and its stub"


def test_dropping_the_newest_pack_never_gives_its_index_again(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)
    store = open_store(volume)
    (record_id,) = put_noise(store, range(1), 2_000).values()
    store.close()
    store = open_store(volume)
    (info,) = store.packs()
    assert store.condemn(BitMap64([info.index << 16]))
    store.drop_pack(info.index)
    assert store.packs() == []
    store.close()
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    store = open_store(volume)
    assert store.locate([record_id]) == [None]
    (new,) = put_noise(store, range(1), 2_000).values()
    assert new == record_id
    assert pack_of(_place(store, new).number) == info.index + 1
    store.close()
    names = sorted(path.name for path in (tmp_path / "packs").rglob("*.pack"))
    assert names == ["00000001.pack", "00000002.pack", "00000003.pack"], "it goes when it may"


def test_what_was_located_is_read_without_a_look_up_and_what_moved_since_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = new_volume(tmp_path)
    written = open_store(volume)
    ids = list(put_noise(written, range(40), 2000).values())
    written.close()
    store = open_store(volume, writable=False)
    places = store.locate(ids)
    gone = places[0]
    assert gone is not None
    looked_up: list[RecordId] = []
    find, candidates = store._index.find, store._index.candidates

    def counted(ids: Sequence[RecordId], *, to_share: bool) -> list[Place | None]:
        looked_up.extend(ids)
        return find(ids, to_share=to_share)

    def counted_one(record_id: RecordId) -> list[Place]:
        looked_up.append(record_id)
        return candidates(record_id)

    monkeypatch.setattr(store._index, "find", counted)
    monkeypatch.setattr(store._index, "candidates", counted_one)
    payloads = [noise(seed, 2000) for seed in range(40)]
    assert [record.payload for record in store.read_located(ids, places)] == payloads
    assert not looked_up
    # Another record lies there; a pack that is gone.
    moved = [places[1], places[0], gone._replace(number=RecordNumber(77 << 16)), *places[3:]]
    assert [record.payload for record in store.read_located(ids, moved)] == payloads
    assert set(looked_up) <= set(ids) and set(ids[:3]) <= set(looked_up)
