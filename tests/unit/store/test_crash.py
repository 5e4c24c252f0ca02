"""Images that a power loss may leave, opened again: what was synced is there, and nothing that is found is wrong."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from pyroaring import BitMap64

from repository.errors import MissingRecordError, VolumeError
from repository.format.pack import pack_path
from repository.format.record import RecordKind
from repository.ids import PackIndex, RecordId
from repository.storage.calls import Calls
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import KIB
from tests.support.calls import Operation, RecordingCalls
from tests.support.crash import Image
from tests.support.stores import new_volume, noise, open_store, put_noise

KINDS: Final = (RecordKind.CHUNK, RecordKind.DIR_CONTENT, RecordKind.JOURNAL)

pytestmark = pytest.mark.logs("pack.header_damaged")


class _History:
    """A session's operations, and what had been promised after each number of them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.calls = RecordingCalls()
        self.payloads: dict[RecordId, bytes] = {}
        self.synced: list[tuple[int, set[RecordId]]] = [(0, set())]
        self.dropped: list[tuple[int, set[RecordId]]] = []
        rng = random.Random(seed)
        store = open_store(new_volume(root, self.calls))
        self.start = len(self.calls.log)
        lease = store.lease()
        unsynced: set[RecordId] = set()
        for step in range(40):
            kind = rng.choice(KINDS)
            length = rng.choice((50, 3_000, 60 * KIB))
            payloads = [noise(seed * 10_000 + step * 50 + item, length) for item in range(rng.randint(1, 12))]
            stored = store.put(kind, payloads, lease)
            self.payloads |= {item.id: payload for item, payload in zip(stored, payloads, strict=True)}
            unsynced |= {item.id for item in stored}
            if rng.random() < 0.3:
                self._sync(store, unsynced)
            if rng.random() < 0.1:
                store.seal_open()
                self._promise(unsynced)
            if rng.random() < 0.15:
                store.tend()
            if rng.random() < 0.2:
                lease.close()
                self._collect(store, rng)
                lease = store.lease()
        if rng.random() < 0.5:
            store.close()
            self._promise(unsynced)

    def _sync(self, store: RecordStore, unsynced: set[RecordId]) -> None:
        store.sync()
        self._promise(unsynced)

    def _promise(self, ids: set[RecordId]) -> None:
        self.synced.append((len(self.calls.log), self.synced[-1][1] | ids))

    def _collect(self, store: RecordStore, rng: random.Random) -> None:
        """Condemn some records of one sealed pack and punch them, or drop the pack."""
        sealed = [info.index for info in store.packs() if info.sealed]
        if not sealed:
            return
        pack = rng.choice(sealed)
        directory = store.directory(pack)
        rows = np.flatnonzero(directory.kind).tolist()
        drop = rng.random() < 0.3
        dead = rows if drop else rng.sample(rows, len(rows) // 2)
        self.dropped.append((len(self.calls.log), {directory.id_at(row) for row in dead}))
        store.condemn(BitMap64([int(directory.numbers[row]) for row in dead]))
        if drop:
            store.drop_pack(pack)
            return
        ranges = [(int(directory.offset[row]), int(directory.stored[row])) for row in dead]
        store.punch(pack, [(-(-offset // 4096) * 4096, length) for offset, length in _blocks(ranges)])

    def promised(self, cut: int) -> set[RecordId]:
        """Ids that must be readable after a crash behind the first `cut` operations."""
        durable = [ids for at, ids in self.synced if at <= cut][-1]
        gone = set().union(*(ids for at, ids in self.dropped if at <= cut))
        return durable - gone


def _blocks(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = []
    for offset, length in ranges:
        first, last = -(-offset // 4096) * 4096, (offset + length) // 4096 * 4096
        if first < last:
            found.append((first, last - first))
    return found


def _check(root: Path, history: _History, cut: int, *, index: bool) -> None:
    volume = Volume(root)
    for low in range(256):
        (root / f"packs/{low:02x}").mkdir(parents=True, exist_ok=True)
    (root / "index").mkdir(exist_ok=True)
    if not index:
        shutil.rmtree(root / "index")
    reader = open_store(volume, writable=False)
    for record_id in history.promised(cut):
        assert reader.read(record_id).payload == history.payloads[record_id]
    reader.close()
    store = open_store(volume)
    assert all(info.sealed for info in store.packs())
    for record_id in history.promised(cut):
        assert store.read(record_id).payload == history.payloads[record_id]
    ids = list(history.payloads)
    located = dict(zip(ids, store.locate(ids), strict=True))
    for record_id, place in located.items():
        if place is not None:
            assert store.read(record_id).payload == history.payloads[record_id]
    chunks = [payload for record_id, payload in history.payloads.items()]
    for item, payload in zip(store.put(RecordKind.CHUNK, chunks, store.lease()), chunks, strict=True):
        assert store.read(item.id).payload == payload
    used = [store.directory(info.index) for info in store.packs()]
    assert len({int(number) for one in used for number in one.numbers[one.kind != 0]}) == sum(
        int((one.kind != 0).sum()) for one in used
    )
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_power_loss_at_any_moment(tmp_path: Path, seed: int) -> None:
    history = _History(tmp_path / "session", seed)
    rng = random.Random(seed)
    log: list[Operation] = history.calls.log
    for trial in range(8):
        cut = rng.randint(history.start, len(log))
        target = tmp_path / f"image{trial}"
        target.mkdir()
        Image(tmp_path / "session", log[:cut], rng).write_to(target)
        _check(target, history, cut, index=rng.random() < 0.7)
        shutil.rmtree(target)


def test_a_killed_process_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """Without power loss the page cache survives: even records that were not synced are found."""
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(40), 5_000)
    again = open_store(Volume(tmp_path))
    for seed, record_id in ids.items():
        assert again.read(record_id).payload == noise(seed, 5_000)


def test_an_open_pack_of_another_process_is_never_appended_to(tmp_path: Path) -> None:
    store = open_store(new_volume(tmp_path))
    put_noise(store, range(4), 5_000)
    before = {info.index for info in store.packs()}
    again = open_store(Volume(tmp_path))
    put_noise(again, range(4, 8), 5_000)
    assert {info.index for info in again.packs() if not info.sealed}.isdisjoint(before)


@pytest.mark.parametrize("lost", [1, 40, 5_000, 60_000])
def test_a_truncated_pack_gives_what_is_left(tmp_path: Path, lost: int) -> None:
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(20), 5_000)
    store.close()
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    path = tmp_path / pack_path(PackIndex(0))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - lost)
    again = open_store(Volume(tmp_path))
    whole = [seed for seed, record_id in ids.items() if again.locate([record_id]) != [None]]
    assert whole == list(range(len(whole)))
    assert len(whole) >= 20 - 1 - lost // 5_000
    for seed in whole:
        assert again.read(ids[seed]).payload == noise(seed, 5_000)


def test_damage_in_the_middle_of_an_unsealed_pack_costs_only_what_it_hit(tmp_path: Path) -> None:
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(20), 5_000)
    (place,) = store.locate([ids[7]])
    assert place is not None
    path = tmp_path / pack_path(PackIndex(0))
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(3_000))
    again = open_store(Volume(tmp_path))
    assert [seed for seed in ids if again.locate([ids[seed]]) == [None]] == [7]


def test_content_that_quotes_a_pack_is_not_taken_for_records(tmp_path: Path) -> None:
    """Somebody stores a copy of a pack file; a scan past damage meets the quoted headers."""
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(10), 700)
    quoted = (tmp_path / pack_path(PackIndex(0))).read_bytes()[256:8_000]
    lease = store.lease()
    (whole,) = store.put(RecordKind.CHUNK, [quoted], lease)
    (place,) = store.locate([whole.id])
    assert place is not None
    with (tmp_path / pack_path(PackIndex(0))).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(64))
    again = open_store(Volume(tmp_path))
    (info,) = again.packs()
    assert int((again.directory(info.index).kind != 0).sum()) == 10
    assert again.locate([ids[3]]) != [None]


@pytest.mark.logs("pack.unreadable", "record.damaged")
def test_a_sector_that_cannot_be_read_costs_only_what_lies_in_it(tmp_path: Path) -> None:
    """Neither opening for reading nor for writing may fail, and nothing may be cut off."""
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(30), 5_000)
    (place,) = store.locate([ids[7]])
    assert place is not None
    size = (tmp_path / pack_path(PackIndex(0))).stat().st_size
    for writable in (False, True):
        again = open_store(Volume(tmp_path, BadSector(place.offset + 100)), writable=writable)
        missing = [seed for seed in ids if again.locate([ids[seed]]) == [None]]
        assert missing == ([7] if writable else [])
        assert again.read(ids[29]).payload == noise(29, 5_000)
        with pytest.raises((VolumeError, MissingRecordError)):
            again.read(ids[7])
    assert (tmp_path / pack_path(PackIndex(0))).stat().st_size == size
    assert open_store(Volume(tmp_path)).read(ids[7]).payload == noise(7, 5_000)


@pytest.mark.logs("pack.directory_damaged")
def test_a_sealed_pack_with_a_bad_directory_is_read_by_scanning_and_left_alone(tmp_path: Path) -> None:
    store = open_store(new_volume(tmp_path))
    ids = put_noise(store, range(30), 5_000)
    store.close()
    shutil.rmtree(tmp_path / "index")
    path = tmp_path / pack_path(PackIndex(0))
    content = bytearray(path.read_bytes())
    content[-600] ^= 1
    path.write_bytes(content)
    again = open_store(Volume(tmp_path))
    assert None not in again.locate(list(ids.values()))
    assert [info.sealed for info in again.packs()] == [True]
    assert path.read_bytes() == content


class BadSector(Calls):
    """Reading any range that includes byte `at` of a file fails with EIO."""

    def __init__(self, at: int) -> None:
        self._at = at

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if offset <= self._at < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().pread(fd, length, offset)
