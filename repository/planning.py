"""What would come free: now, with some snapshots gone, with as few of them gone as possible. Frees nothing itself.

Two ways to the same answers. A *census* (`census.py`) is kept while space is short: a decision is arithmetic on it.
Where there is none (a reader, a repository too large for it, a disk with room), bitmaps are read and united, and the
columns of packs that are not wholly needed are read.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from pyroaring import BitMap64

from repository.catalog import Catalog
from repository.census import Census
from repository.format.catalog import Head, Slot
from repository.format.intent import Punch
from repository.format.journal import JournalMark
from repository.ids import PackIndex, SnapshotId
from repository.intent import block_bytes_of
from repository.lock import LOCK_FILE
from repository.packcensus import facts_of
from repository.policy.collect import CollectPlan, Safety, packs_of, plan_dead
from repository.policy.columns import PackFacts, join
from repository.policy.figures import PackFigures
from repository.policy.gains import gains
from repository.policy.repack import repack_gains
from repository.ports import Clock
from repository.roots import all_kept, journal_numbers, union_of, unique_numbers
from repository.storage.volume import Volume
from repository.store import RecordStore

log = logging.getLogger(__name__)

ROWS_AT_ONCE: Final = 1_000_000
"""Records whose columns are in memory together without a census: about 100 MB while a plan is made."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a plan is asked for. `enough_bytes` None: everything. `sealed_only`: nothing that has to be sealed first."""

    safety: Safety = Safety.NONE
    enough_bytes: int | None = None
    sealed_only: bool = False


class Prefix(NamedTuple):
    """How many of an order go, and what the volume has back then; `enough` False: all of them, and it is too little."""

    steps: int
    nbytes: int
    enough: bool


class Planner:
    """Plans for one repository. Thread safe. Raises DamagedError where what is needed cannot be told, VolumeError."""

    def __init__(self, *, store: RecordStore, catalog: Catalog, volume: Volume, clock: Clock) -> None:
        self._store = store
        self._catalog = catalog
        self._volume = volume
        self._clock = clock
        self._lock = threading.RLock()
        self._census: Census | None = None
        self._journal: tuple[JournalMark, PackIndex, BitMap64] | None = None
        self.journal_is_leased = False
        """Set by whoever writes the journal, once the head includes what was there before: all that it writes stays in
        leases until the head includes that too, so nothing has to be read to know what the journal needs."""

    @property
    def punches(self) -> bool:
        """Whether the volume gives back parts of packs; else only whole ones come back."""
        return self._volume.punches(LOCK_FILE if self._store.writable else None)

    # --- the census ------------------------------------------------------------------------------------------------

    def warm_up(self) -> bool:
        """Take the census, or bring it up to date. False where there can be none."""
        with self._lock:
            census = self._census or Census(self._store, self._catalog, self._volume)
            is_new, self._census = self._census is None, None
            if not census.refresh():
                return False
            if is_new:
                log.info("census.taken", extra={"nbytes": census.nbytes})
            self._census = census
            return True

    def forget(self) -> None:
        """Let go of the census: there is room again."""
        with self._lock:
            self._census = None

    def look_closer(self, stop: Callable[[], bool], gone: Collection[SnapshotId]) -> bool:
        """See `Collector.look_closer`. `gone`: what is collected first."""
        before = self.dead_bytes(gone)
        with self._lock:
            census = self._census if self.warm_up() else None
        if census is None:
            return False
        census.look_closer(self._lock, stop)
        after = self.dead_bytes(gone)
        log.info("census.looked_closer", extra={"before_bytes": before, "after_bytes": after})
        return after > before

    def punched(self, punches: Iterable[Punch]) -> None:
        """These ranges were given back."""
        with self._lock:
            if self._census is not None:
                self._census.packs.punched(punches)

    def later_copies(self) -> BitMap64 | None:
        """Records of which an earlier copy exists; None without a census."""
        with self._lock:
            return None if self._census is None else self._census.packs.later_copies

    # --- what would come free ----------------------------------------------------------------------------------------

    def dead_bytes(self, gone: Iterable[SnapshotId] = ()) -> int:
        """What the volume has back when everything is collected that nobody needs once `gone` are gone."""
        return self._after(frozenset(gone), ())[0]

    def fewest(self, order: Sequence[SnapshotId], enough_bytes: int, gone: Iterable[SnapshotId] = ()) -> Prefix:
        """How few of `order`, from its beginning, have to go besides `gone` so that `enough_bytes` come free."""
        without = frozenset(gone)
        curve = self._after(without, order, repacking=not self.punches)
        low, high = 0, len(order)
        if len(curve) <= high:  # no census: each step costs a union
            curve = {0: curve[0]}
            while low < high:
                middle = (low + high) // 2
                if self._at(curve, middle, without, order) >= enough_bytes:
                    high = middle
                else:
                    low = middle + 1
            nbytes = self._at(curve, low, without, order)
            return Prefix(low, nbytes, nbytes >= enough_bytes)
        for step in range(high + 1):
            if curve[step] >= enough_bytes:
                return Prefix(step, curve[step], True)
        return Prefix(high, curve[high], False)

    def _at(self, known: dict[int, int], step: int, gone: frozenset[SnapshotId], order: Sequence[SnapshotId]) -> int:
        if step not in known:
            known[step] = self._after(gone | frozenset(order[:step]), ())[0]
        return known[step]

    def _after(
        self, gone: frozenset[SnapshotId], order: Sequence[SnapshotId], *, repacking: bool = False
    ) -> dict[int, int]:
        """What the volume has back after each step of `order`; without a census only after step 0, and without
        `repacking`."""
        with self._lock:
            if self._census is not None and self.warm_up():
                census = self._census
                columns = census.packs.columns(sealed_only=False)
                ranks = {snapshot: step for step, snapshot in enumerate(order, 1)} | dict.fromkeys(gone, 0)
                fates = census.fates(columns, ranks, self._held())
                block_bytes = block_bytes_of(self._volume)
                curve = gains(columns, fates, len(order), block_bytes, punch=self.punches)
                if repacking:
                    curve = curve + repack_gains(columns, fates, len(order))
                return dict(enumerate(curve.tolist()))
        return {0: self.plan_from(all_kept(self._store, self._catalog, gone), Wish()).reclaimable_bytes}

    def unique_bytes(self, slots: Sequence[Slot]) -> list[int]:
        """For each of `slots` what the volume gets back besides when only it is gone."""
        with self._lock:
            if self._census is not None and self.warm_up():
                census = self._census
                columns = census.packs.columns(sealed_only=False)
                held = self._held()
                alive = census.fates(columns, {}, held) > 0
                unique = [columns.numbers_of(rows) for rows in census.only_needed_by(columns, slots, held)]
                kept = columns.numbers_of(np.flatnonzero(alive))
                return self._gains(unique, kept, census.packs.facts)
        everything = self._catalog.slots()
        places = {slot.snapshot_id: at for at, slot in enumerate(everything)}
        others = self._store.leased() | union_of(self._store, [self._catalog.head()])
        found = unique_numbers(self._store, everything, others)
        kept = all_kept(self._store, self._catalog)
        infos = {info.index: info for info in self._store.packs()}

        def facts(pack: PackIndex) -> PackFacts | None:
            info = infos.get(pack)
            return None if info is None else facts_of(self._volume, info, self._store.directory(pack))

        wanted = [places.get(slot.snapshot_id) for slot in slots]
        return self._gains([BitMap64() if at is None else found[at] for at in wanted], kept, facts)

    def _gains(
        self, unique: Iterable[BitMap64], kept: BitMap64, facts: Callable[[PackIndex], PackFacts | None]
    ) -> list[int]:
        block_bytes = block_bytes_of(self._volume)
        packs: dict[PackIndex, PackFigures | None] = {}
        gains: list[int] = []
        for numbers in unique:
            gain = 0
            for pack in packs_of(numbers):
                if pack not in packs:
                    found = facts(pack)
                    packs[pack] = None if found is None else PackFigures(found, kept, block_bytes, punch=self.punches)
                figures = packs[pack]
                gain += 0 if figures is None else figures.gain_bytes(numbers)
            gains.append(gain)
        return gains

    # --- plans -------------------------------------------------------------------------------------------------------

    def plan(self, gone: Iterable[SnapshotId], spared: BitMap64, wish: Wish) -> CollectPlan | None:
        """What to free when `gone` are gone and `spared` stays besides all that is needed; None without a census."""
        with self._lock:
            if self._census is None or not self.warm_up():
                return None
            columns = self._census.packs.columns(sealed_only=wish.sealed_only)
            fates = self._census.fates(columns, dict.fromkeys(gone, 0), self._held() | spared)
        return plan_dead(
            columns,
            fates == 0,
            now_ns=self._clock.now_ns(),
            safety=wish.safety,
            block_bytes=block_bytes_of(self._volume),
            enough_bytes=wish.enough_bytes,
            punch=self.punches,
        )

    def plan_from(self, kept: BitMap64, wish: Wish) -> CollectPlan:
        """What to free when `kept` is all that is needed; reads the columns of packs that are not wholly kept.

        Pieces are chosen largest first among ROWS_AT_ONCE records at a time.
        """
        done, young_bytes, scattered_bytes = CollectPlan(), 0, 0
        for facts in _batches(self._facts(kept, sealed_only=wish.sealed_only)):
            missing = None if wish.enough_bytes is None else wish.enough_bytes - done.reclaimable_bytes
            if missing is not None and missing <= 0:
                break
            columns = join(facts)
            plan = plan_dead(
                columns,
                ~columns.mask(kept),
                now_ns=self._clock.now_ns(),
                safety=wish.safety,
                block_bytes=block_bytes_of(self._volume),
                enough_bytes=missing,
                punch=self.punches,
            )
            done = done.followed_by(plan)
            young_bytes += plan.young_bytes
            scattered_bytes += plan.scattered_bytes
        return replace(done, young_bytes=young_bytes, scattered_bytes=scattered_bytes)

    def _facts(self, kept: BitMap64, *, sealed_only: bool) -> Iterable[PackFacts]:
        for info in self._store.packs():
            start = info.index << 16
            if kept.range_cardinality(start, start + info.records) == info.records or (sealed_only and not info.sealed):
                continue
            yield facts_of(self._volume, info, self._store.directory(info.index))

    def _held(self) -> BitMap64:
        """What leases and the journal need."""
        leased = self._store.leased()
        return leased if self.journal_is_leased else leased | self._journal_numbers(self._catalog.head())

    def _journal_numbers(self, head: Head) -> BitMap64:
        known = self._journal
        if known is None or known[:2] != (head.journal, head.journal_floor):
            known = self._journal = (head.journal, head.journal_floor, journal_numbers(self._store, head))
        return known[2]


def _batches(packs: Iterable[PackFacts]) -> Iterator[list[PackFacts]]:
    """Some packs at a time, of ROWS_AT_ONCE records and a pack's more together."""
    batch: list[PackFacts] = []
    rows = 0
    for facts in packs:
        batch.append(facts)
        rows += len(facts.stored)
        if rows >= ROWS_AT_ONCE:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch
