"""Everything at once from several threads, for a moment: no answer may be wrong."""

import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pyroaring import BitMap64

from repository.format.record import RecordKind
from repository.ids import RecordId
from repository.index import keeper
from repository.units import KIB, MIB
from tests.support.stores import new_volume, noise, open_store

ROUNDS = 40


def test_puts_syncs_seals_collections_and_reads_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FLUSH_ROWS", 200)
    volume = new_volume(tmp_path)
    store = open_store(volume)
    kept: list[dict[RecordId, bytes]] = [{} for _ in range(4)]
    failures: list[BaseException] = []
    over = threading.Event()

    def write(worker: int) -> None:
        rng = random.Random(worker)
        lease = store.lease()
        for _ in range(ROUNDS):
            seeds = [rng.randrange(3_000) for _ in range(rng.randint(1, 12))]
            payloads = [noise(seed, (seed * 37) % (60 * KIB) + 1) for seed in seeds]
            claim = store.try_claim(2 * MIB, 12) if rng.random() < 0.5 else None
            stored = store.put(rng.choice((RecordKind.CHUNK, RecordKind.XATTRS)), payloads, lease, claim)
            if claim is not None:
                store.forfeit(claim)
            for item, payload in zip(stored, payloads, strict=True):
                kept[worker][item.id] = payload
            one = rng.choice(list(kept[worker]))
            assert store.read(one).payload == kept[worker][one]

    def tend() -> None:
        rng = random.Random(99)
        while not over.wait(0.002):
            match rng.randrange(4):
                case 0:
                    store.sync()
                case 1:
                    store.seal_open()
                case 2:
                    store.tend()
                case _:
                    everything = BitMap64()
                    for info in store.packs():
                        directory = store.directory(info.index)
                        everything.update(directory.numbers[directory.kind != 0].tolist())
                    dead = store.condemn(everything - store.leased())
                    assert not dead & store.leased()

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=run, args=(partial(write, worker),)) for worker in range(4)]
    tender = threading.Thread(target=run, args=(tend,))
    for thread in (*writers, tender):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    tender.join()
    assert not failures
    for known in kept:
        for record_id, payload in known.items():
            assert store.read(record_id).payload == payload
    assert store._ledger.claimed_bytes() == store.headroom.left_bytes() == store.headroom.wanted_bytes
    store.close()
    again = open_store(volume, writable=False)
    for known in kept:
        for record_id, payload in known.items():
            assert again.read(record_id).payload == payload
