"""How long deciding takes on a full disk: what is garbage, what to free, whom to give up. Real code, made-up packs.

Makes a repository of a million chunks in memory (packs of 64 MiB, 500 snapshots, each of which adds and drops some),
takes the census once, and prints the CPU time of each decision.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.bitmaps import SnapshotBitmap, store_bitmap
from repository.catalog import Catalog
from repository.format.catalog import FREE_SLOT, Head, Slot, SlotState
from repository.format.pack import PACK_HEADER_BYTES, PackDirectory, Stream
from repository.format.record import HEADER_BYTES, Place, Record, RecordKind, Stored
from repository.ids import RECORD_ID_BYTES, PackIndex, RecordId, RecordNumber, SnapshotId, number_of
from repository.leases import Lease
from repository.ledger import Claim
from repository.packs.table import PackInfo
from repository.planning import Planner, Prefix, Wish
from repository.policy.collect import CollectPlan
from repository.policy.columns import as_numbers
from repository.policy.retention import Kept, thinning_order
from repository.ports import Clock
from repository.storage.calls import SystemClock
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import GIB, KIB, MIB, NS_PER_S, format_size

PACK_BYTES: Final = 64 * MIB
CHUNK_BYTES_MEAN: Final = 256 * KIB
DAY_NS: Final = 24 * 3600 * NS_PER_S
ENOUGH_BYTES: Final = 2 * GIB
"""A failed allocation, the reserve and the margin, rounded up."""
THIN_BYTES: Final = 16 * GIB
"""More than garbage and trash have, so that snapshots have to be given up."""
LEASED: Final = 5_000
TRASH_PART: Final = 20
"""One snapshot in so many is deleted and not collected yet."""

GARBAGE_PART: Final = 0.01
"""Of all chunks: they go with the snapshot that they came with, and half of them were never in one."""

_R = TypeVar("_R")


class Shape(NamedTuple):
    """How large the made-up repository is."""

    chunks: int = 1_000_000
    snapshots: int = 500
    packs: int = 4_200


class _NoFile:
    """A pack's file, as far as holes are asked of it."""

    def __enter__(self) -> "_NoFile":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def size(self) -> int:
        return PACK_BYTES

    def holes(self, end: int) -> list[tuple[int, int]]:
        return []


class SyntheticVolume(Volume):
    """A volume whose files are not there. `opened` counts how often one was asked for."""

    def __init__(self) -> None:
        super().__init__(Path("/"))
        self.opened = 0

    def open(self, path: str, *, writable: bool = False) -> _NoFile:  # type: ignore[override]
        self.opened += 1
        return _NoFile()

    def punches(self, try_on: str | None = None) -> bool:
        return True


class SyntheticStore:
    """What a planner asks of a record store. `directories` counts how many packs were read."""

    writable = True

    def __init__(self, packs: dict[PackIndex, PackDirectory], leased: BitMap64) -> None:
        self._packs = packs
        self._leased = leased
        self._records: dict[RecordId, Record] = {}
        self._numbers: dict[RecordId, RecordNumber] = {}
        self.directories = 0
        self.reads = 0

    def pack_indexes(self) -> frozenset[PackIndex]:
        return frozenset(self._packs)

    def pack_info(self, pack: PackIndex) -> PackInfo:
        directory = self._packs[pack]
        allocated = -(-int(directory.offset[-1] + directory.stored[-1]) // 4096) * 4096
        return PackInfo(pack, True, len(directory), allocated, allocated, Stream.BULK, 0, directory.written_ns)

    def directory(self, pack: PackIndex) -> PackDirectory:
        self.directories += 1
        return self._packs[pack]

    def copies(self, record_id: RecordId) -> list[Place]:
        return []

    def leased(self) -> BitMap64:
        return self._leased

    def put(
        self, kind: RecordKind, payloads: Sequence[bytes], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]:
        """Bitmaps: they have numbers beyond all packs."""
        stored: list[Stored] = []
        for payload in payloads:
            number = RecordNumber((1 << 40) + len(self._numbers))
            record_id = RecordId(number.to_bytes(RECORD_ID_BYTES, "big"))
            self._records[record_id] = Record(kind, payload)
            self._numbers[record_id] = number
            stored.append(Stored(record_id, number, len(payload), len(payload) + HEADER_BYTES, True))
        return stored

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        self.reads += len(ids)
        return [self._records[one] for one in ids]

    def locate(self, ids: Sequence[RecordId]) -> list[Place]:
        return [Place(self._numbers[one], 0, 0, 0) for one in ids]


class SyntheticCatalog:
    """Slots in a list."""

    def __init__(self, slots: Sequence[Slot], head: Head) -> None:
        self._slots = list(slots)
        self._head = head
        self.serial = 1

    def slots(self) -> list[Slot]:
        return self._slots.copy()

    def head(self) -> Head:
        return self._head

    def remove(self, snapshot: SnapshotId) -> None:
        """A snapshot is gone."""
        self._slots = [slot for slot in self._slots if slot.snapshot_id != snapshot]
        self.serial += 1


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A made-up repository. `needed`: what each snapshot's tree needs, in the order of the catalog's slots."""

    store: SyntheticStore
    catalog: SyntheticCatalog
    volume: SyntheticVolume
    needed: list[BitMap64]

    def planner(self, clock: Clock) -> Planner:
        made = Planner(
            store=cast(RecordStore, self.store), catalog=cast(Catalog, self.catalog), volume=self.volume, clock=clock
        )
        made.journal_is_leased = True
        return made


def make(shape: Shape, seed: int = 1) -> Synthetic:
    """Chunks come with some snapshot, in the order of packs, and go again with a later one, or never."""
    rng = np.random.default_rng(seed)
    packs, numbers = packs_of(shape, rng)
    born, died = lives_of(shape, len(numbers), rng)
    leased = as_numbers(np.sort(rng.choice(numbers, min(LEASED, len(numbers) // 10), replace=False)))
    store = SyntheticStore(packs, leased)
    slots: list[Slot] = []
    needed: list[BitMap64] = []
    lease = Lease(lambda _: None)
    parent: tuple[RecordId, SnapshotBitmap] | None = None
    for at in range(shape.snapshots):
        needed.append(as_numbers(numbers[(born <= at) & (died > at)]))
        manifest = RecordId((at + 1).to_bytes(RECORD_ID_BYTES, "little"))
        stored, bitmap = store_bitmap(cast(RecordStore, store), lease, manifest, needed[-1], exact=True, parent=parent)
        parent = stored.id, bitmap
        deleted = at % TRASH_PART == TRASH_PART // 2
        slots.append(
            replace(
                FREE_SLOT,
                snapshot_id=SnapshotId(at + 1),
                state=SlotState.TRASH if deleted else SlotState.LIVE,
                name=f"s{at}",
                time_ns=(at + 1) * DAY_NS,
                source="live",
                manifest=manifest,
                bitmap=stored.id,
                exact=True,
            )
        )
    head = Head(manifest=slots[-1].manifest, bitmap=slots[-1].bitmap, exact=True)
    return Synthetic(store, SyntheticCatalog(slots, head), SyntheticVolume(), needed)


def lives_of(shape: Shape, chunks: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each chunk the snapshot that it comes with, and the first one after that which does not need it."""
    born = np.sort(rng.integers(0, shape.snapshots, chunks))
    born[: len(born) // 5] = 0
    fate = rng.random(chunks)
    lasts = rng.exponential(np.where(fate < 0.25, 1.0, shape.snapshots / 10)).astype(np.int64) + (fate > GARBAGE_PART)
    return born, np.where(fate > 0.5, shape.snapshots + 1, born + lasts)


def packs_of(
    shape: Shape, rng: np.random.Generator, first: int = 0
) -> tuple[dict[PackIndex, PackDirectory], NDArray[np.uint64]]:
    """Directories of sealed packs from the index `first` on, and the numbers of their records."""
    bounds = np.linspace(0, shape.chunks, shape.packs + 1).astype(np.int64)
    packs: dict[PackIndex, PackDirectory] = {}
    numbers: list[NDArray[np.uint64]] = []
    for index, rows in enumerate(np.diff(bounds).tolist(), first):
        stored = np.clip(rng.exponential(CHUNK_BYTES_MEAN, rows), 16 * KIB, 1 * MIB).astype(np.uint32)
        offset = PACK_HEADER_BYTES + np.concatenate((np.zeros(1, np.uint32), np.cumsum(stored)[:-1]))
        ids = rng.integers(0, 256, (rows, RECORD_ID_BYTES), np.uint8)
        ones = np.ones(rows, np.uint8)
        directory = PackDirectory(PackIndex(index), 0, offset.astype(np.uint32), stored, stored, ones, ones, ids)
        packs[PackIndex(index)] = directory
        numbers.append(np.arange(rows, dtype=np.uint64) + np.uint64(number_of(PackIndex(index), 0)))
    return packs, np.concatenate(numbers)


class Decision(NamedTuple):
    """Everything that is decided before a snapshot is given up."""

    trash: Prefix
    plan: CollectPlan | None
    order: list[SnapshotId]
    thin: Prefix


class Stopwatch:
    """CPU time by step, in milliseconds."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], _R]) -> _R:
        began = time.process_time()
        done = work()
        self.steps[name] = self.steps.get(name, 0.0) + 1000 * (time.process_time() - began)
        return done


def decide(synthetic: Synthetic, planner: Planner, watch: Stopwatch, seed: int = 0) -> Decision:
    """What an emergency decides, the whole of it: mostly less is needed."""
    slots = synthetic.catalog.slots()
    trash = [slot.snapshot_id for slot in slots if slot.state is SlotState.TRASH]
    listed = [Kept(slot.snapshot_id, slot.source, slot.time_ns) for slot in slots if slot.state is SlotState.LIVE]
    prefix = watch.time("how much of the trash goes", lambda: planner.fewest(trash, ENOUGH_BYTES))
    gone = trash[: prefix.steps]
    wish = Wish(enough_bytes=ENOUGH_BYTES, sealed_only=True)
    plan = watch.time("what to free", lambda: planner.plan(gone, BitMap64(), wish))
    order = watch.time(
        "the order of thinning",
        lambda: thinning_order(listed, min_snapshots=1, exponent=2.0, rng=random.Random(seed)),
    )
    thin = watch.time("whom to give up", lambda: planner.fewest(order, THIN_BYTES, trash))
    return Decision(prefix, plan, order, thin)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/decision", description=__doc__)
    parser.add_argument("--chunks", type=int, default=Shape().chunks)
    parser.add_argument("--snapshots", type=int, default=Shape().snapshots)
    parser.add_argument("--packs", type=int, default=Shape().packs)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    arguments = parser.parse_args(argv)
    synthetic = make(Shape(arguments.chunks, arguments.snapshots, arguments.packs))
    planner = synthetic.planner(SystemClock())
    warming = Stopwatch()
    warming.time("taking the census, once", planner.warm_up)
    runs: list[dict[str, float]] = []
    for seed in range(arguments.rounds):
        watch = Stopwatch()
        decision = decide(synthetic, planner, watch, seed)
        runs.append(watch.steps)
    print(f"{arguments.chunks:,} chunks in {arguments.packs:,} packs, {arguments.snapshots} snapshots; CPU ms, median")
    print(f"{'taking the census, once':32}{warming.steps['taking the census, once']:10.0f}")
    for name in runs[0]:
        print(f"{name:32}{float(np.median([run[name] for run in runs])):10.1f}")
    print(f"{'all of it':32}{float(np.median([sum(run.values()) for run in runs])):10.1f}")
    garbage = format_size(planner.dead_bytes())
    print(
        f"{garbage} is garbage; {decision.trash.steps} deleted snapshots go for {format_size(ENOUGH_BYTES)}, ", end=""
    )
    print(f"{decision.thin.steps} of {len(decision.order)} are given up for {format_size(decision.thin.nbytes)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
