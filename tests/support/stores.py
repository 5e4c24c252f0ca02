"""Small record stores for tests."""

import random
from pathlib import Path
from typing import Final

from repository.format.config import ChunkerParameters, Config
from repository.format.record import Record, RecordKind
from repository.ids import RecordId
from repository.packs.load import create_pack_directories
from repository.storage.calls import Calls
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import KIB, MIB

CONFIG: Final = Config(
    repository_id=bytes(range(16)),
    id_key=bytes(range(32)),
    chunker=ChunkerParameters(4 * KIB, 16 * KIB, 64 * KIB),
    pack_bytes=4 * MIB,
    segment_bytes=1 * MIB,
    created_ns=1_700_000_000_000_000_000,
    volume_class="A",
)


def new_volume(root: Path, calls: Calls | None = None) -> Volume:
    """The directories of an empty repository under `root`."""
    root.mkdir(exist_ok=True)
    volume = Volume(root, calls)
    create_pack_directories(volume)
    volume.mkdir("index")
    return volume


def open_store(
    volume: Volume, *, writable: bool = True, config: Config = CONFIG, rebuild_index: bool = False
) -> RecordStore:
    return RecordStore.open(volume, config, writable=writable, rebuild_index=rebuild_index)


def noise(seed: int, length: int) -> bytes:
    """Incompressible bytes, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def put_noise(
    store: RecordStore, seeds: range, length: int, kind: RecordKind = RecordKind.CHUNK
) -> dict[int, RecordId]:
    """One record per seed, leased for as long as the store lives; their ids by seed."""
    lease = store.lease()
    stored = store.put(kind, [noise(seed, length) for seed in seeds], lease)
    return {seed: item.id for seed, item in zip(seeds, stored, strict=True)}


def chunk(payload: bytes) -> Record:
    return Record(RecordKind.CHUNK, payload)
