"""What the store does when the operating system refuses."""

import errno
import threading
from pathlib import Path

import pytest
from pyroaring import BitMap64

from repository.errors import NoSpaceError, ReadOnlyError, SyncFailedError, VolumeError
from repository.format.pack import Stream
from repository.format.record import RecordKind
from repository.ids import pack_of
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import KIB, MIB
from tests.support.calls import Fault, FaultyCalls, SmallVolumeCalls
from tests.support.stores import new_volume, noise, open_store, put_noise

pytestmark = pytest.mark.logs("store.failed")


def _begun(root: Path, calls: FaultyCalls) -> RecordStore:
    """A store whose packs are there: the next write is of a record."""
    store = open_store(new_volume(root, calls))
    put_noise(store, range(900, 901), 1000)
    return store


def _files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "packs").rglob("*.pack"))


def test_no_room_for_a_pack_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    calls = FaultyCalls()
    store = open_store(new_volume(tmp_path, calls))
    before = _files(tmp_path)
    calls.faults.append(Fault("fallocate", errno.ENOSPC, times=2))  # for another spare pack, and for a segment
    with pytest.raises(NoSpaceError):
        store.claim(100, 1)
    assert _files(tmp_path) == before
    store.forfeit(store.claim(100, 1))
    calls.check()
    assert not store.failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_without_room_is_no_failure_of_the_store(tmp_path: Path, number: int) -> None:
    """Copy-on-write volumes may refuse a write into allocated room. The batch is void; the next one is not."""
    calls = FaultyCalls()
    store = _begun(tmp_path, calls)
    calls.faults.append(Fault("pwritev", number))
    lease = store.lease()
    with pytest.raises(NoSpaceError):
        store.put(RecordKind.CHUNK, [noise(1, 1000)], lease)
    (stored,) = store.put(RecordKind.CHUNK, [noise(1, 1000)], lease)
    assert stored.new
    assert stored.number == 2, "the place of the failed record stays empty"
    assert store.read(stored.id).payload == noise(1, 1000)
    directory = store.directory(pack_of(stored.number))
    assert directory.kind.tolist() == [RecordKind.CHUNK, 0, RecordKind.CHUNK]
    store.close()
    again = open_store(Volume(tmp_path), writable=False)
    assert again.directory(pack_of(stored.number)).kind.tolist() == directory.kind.tolist()
    assert again.read(stored.id).payload == noise(1, 1000)
    calls.check()


def test_a_failed_write_ends_writing_but_not_reading(tmp_path: Path) -> None:
    calls = FaultyCalls()
    store = open_store(new_volume(tmp_path, calls))
    ids = put_noise(store, range(3), 1000)
    calls.faults.append(Fault("pwritev", errno.EIO))
    with pytest.raises(VolumeError):
        put_noise(store, range(3, 6), 1000)
    assert store.failed
    with pytest.raises(ReadOnlyError):
        put_noise(store, range(6, 9), 1000)
    with pytest.raises(ReadOnlyError):
        store.claim(1, 1)
    with pytest.raises(SyncFailedError):
        store.sync()
    assert store.read(ids[2]).payload == noise(2, 1000)
    store.close()
    calls.check()


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    calls = FaultyCalls([Fault("fdatasync", errno.EIO)])
    store = open_store(new_volume(tmp_path, calls))
    ids = put_noise(store, range(3), 1000)
    for _ in range(2):
        with pytest.raises(SyncFailedError):
            store.sync()
    assert calls.faults[0].seen == 1
    with pytest.raises(ReadOnlyError):
        put_noise(store, range(3, 6), 1000)
    assert store.read(ids[0]).payload == noise(0, 1000)
    store.close()
    again = open_store(Volume(tmp_path))
    assert put_noise(again, range(3, 6), 1000)
    again.sync()


def test_short_writes_and_reads_are_continued(tmp_path: Path) -> None:
    calls = FaultyCalls()
    store = _begun(tmp_path, calls)
    calls.faults += [Fault("pwritev", short=700), Fault("pread", short=100)]
    ids = put_noise(store, range(5), 1000)
    for seed, record_id in ids.items():
        assert store.read(record_id).payload == noise(seed, 1000)
    calls.check()


@pytest.mark.logs("record.damaged")
def test_an_unreadable_record_is_stored_anew_by_the_same_bytes(tmp_path: Path) -> None:
    calls = FaultyCalls()
    store = open_store(new_volume(tmp_path, calls))
    (record_id,) = put_noise(store, range(1), 1000).values()
    calls.faults.append(Fault("pread", errno.EIO))
    with pytest.raises(VolumeError) as caught:
        store.read(record_id)
    assert caught.value.errno == errno.EIO
    assert not store.failed
    calls.check()
    (stored,) = store.put(RecordKind.CHUNK, [noise(0, 1000)], store.lease())
    assert stored.new
    assert store.read(record_id).payload == noise(0, 1000)


def test_who_met_an_id_whose_writing_failed_stores_it_again(tmp_path: Path) -> None:
    """Thread B looks an id up that thread A is writing; A's write fails with ENOSPC; B must not trust A's place."""
    calls = FaultyCalls()
    store = _begun(tmp_path, calls)
    calls.faults.append(Fault("pwritev", errno.ENOSPC))
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread() is first and not go_on.is_set():
            reached.set()
            go_on.wait()

    calls.before["pwritev"] = hold
    failures: list[BaseException] = []

    def work() -> None:
        try:
            put_noise(store, range(1), 1000)
        except NoSpaceError as error:
            failures.append(error)

    first = threading.Thread(target=work)
    first.start()
    reached.wait()
    answers = []
    second = threading.Thread(target=lambda: answers.append(put_noise(store, range(1), 1000)))
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert len(failures) == 1
    assert store.read(answers[0][0]).payload == noise(0, 1000)
    calls.check()


def test_claimed_bytes_have_a_home_on_a_full_volume(tmp_path: Path) -> None:
    """The heart of the design: what was claimed can be stored when nothing can be allocated any more."""
    calls = SmallVolumeCalls(room_bytes=20 * MIB)
    store = open_store(new_volume(tmp_path, calls))
    claims = []
    with pytest.raises(NoSpaceError):
        while True:
            claims.append(store.claim(200 * KIB, 40))
    assert len(claims) > 50
    assert store.try_claim(200 * KIB, 40) is None
    lease = store.lease()
    calls.room_bytes = 0
    ids = {}
    for index, claim in enumerate(claims):
        kind = list(RecordKind)[index % 12]
        payloads = [noise(index * 100 + part, (200 * KIB - 40 * 64) // 40 - 1) for part in range(38)]
        payloads.append(noise(index * 100 + 99, 2 * ((200 * KIB - 40 * 64) // 40)))
        for item, payload in zip(store.put(kind, payloads, lease, claim), payloads, strict=True):
            ids[item.id] = payload
        store.forfeit(claim)
    store.sync()
    for record_id, payload in ids.items():
        assert store.read(record_id).payload == payload
    store.close()
    again = open_store(Volume(tmp_path), writable=False)
    for record_id, payload in ids.items():
        assert again.read(record_id).payload == payload


def test_a_full_stream_uses_the_room_of_others(tmp_path: Path) -> None:
    calls = SmallVolumeCalls(room_bytes=8 * MIB)
    store = open_store(new_volume(tmp_path, calls))
    claim = store.claim(2 * MIB, 100)
    calls.room_bytes = 0
    lease = store.lease()
    (stored,) = store.put(RecordKind.DIR_CONTENT, [noise(1, 500)], lease, claim)
    (info,) = [info for info in store.packs() if info.index == pack_of(stored.number)]
    assert info.stream is Stream.BULK


def test_sealing_keeps_claimed_room(tmp_path: Path) -> None:
    calls = SmallVolumeCalls(room_bytes=100 * MIB)
    store = open_store(new_volume(tmp_path, calls))
    claim = store.claim(1 * MIB, 100)
    put_noise(store, range(10), 20 * KIB)
    store.seal_open()
    assert any(info.sealed for info in store.packs())
    calls.room_bytes = 0
    store.put(RecordKind.CHUNK, [noise(seed, 60 * KIB) for seed in range(20, 36)], store.lease(), claim)


@pytest.mark.logs("pack.not_sealed")
def test_sealing_leaves_a_pack_open_that_claims_need_on_a_full_volume(tmp_path: Path) -> None:
    calls = SmallVolumeCalls(room_bytes=8 * MIB)
    store = open_store(new_volume(tmp_path, calls))
    claim = store.claim(1 * MIB, 100)
    ids = put_noise(store, range(10), 20 * KIB)
    calls.room_bytes = 0
    store.seal_open()
    assert not any(info.sealed for info in store.packs() if info.records)
    store.put(RecordKind.CHUNK, [noise(seed, 60 * KIB) for seed in range(20, 36)], store.lease(), claim)
    assert store.read(ids[5]).payload == noise(5, 20 * KIB)


def test_trying_a_claim_never_waits_for_allocation(tmp_path: Path) -> None:
    """The event loop asks while a worker thread hangs in fallocate."""
    calls = FaultyCalls()
    store = open_store(new_volume(tmp_path, calls))
    store.forfeit(store.claim(10, 1))
    hanging, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        go_on.wait()

    calls.before["fallocate"] = hang
    worker = threading.Thread(target=lambda: store.forfeit(store.claim(8 * MIB, 1)))
    worker.start()
    hanging.wait()
    claim = store.try_claim(10, 1)
    assert claim is not None
    store.forfeit(claim)
    assert store.try_claim(8 * MIB, 1) is None
    go_on.set()
    worker.join()


@pytest.mark.logs("index.not_written")
def test_an_index_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    calls = FaultyCalls([Fault("create", errno.ENOSPC, path="/index/", times=99)])
    store = open_store(new_volume(tmp_path, calls))
    ids = put_noise(store, range(5), 1000)
    store.close()
    calls.check()
    assert not list((tmp_path / "index").iterdir())
    assert open_store(Volume(tmp_path), writable=False).read(ids[3]).payload == noise(3, 1000)


def test_a_punch_that_fails_is_said(tmp_path: Path) -> None:
    calls = FaultyCalls([Fault("punch", errno.EIO)])
    store = open_store(new_volume(tmp_path, calls))
    put_noise(store, range(5), 10_000)
    store.seal_open()
    (pack,) = [info.index for info in store.packs() if info.sealed]
    store.condemn(BitMap64([0]))
    with pytest.raises(VolumeError):
        store.punch(pack, [(4096, 4096)])
    calls.check()


@pytest.mark.logs("pack.not_sealed")
def test_a_full_volume_after_a_crash_is_read_without_sealing(tmp_path: Path) -> None:
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(5), 1000)
    store.sync()
    calls = FaultyCalls([Fault("pwritev", errno.ENOSPC)])
    again = open_store(Volume(tmp_path, calls))
    calls.check()
    assert [info.sealed for info in again.packs()] == [False]
    assert again.read(ids[4]).payload == noise(4, 1000)
    assert put_noise(again, range(5), 1000) == ids
    again.close()
    assert [info.sealed for info in open_store(Volume(tmp_path)).packs()] == [True]
