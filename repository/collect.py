"""Collecting: what is garbage is known beforehand, and freed without needing a byte.

Order, and what each step protects: deleted snapshots give up their slots (durable) before their records go; numbers
are condemned, so that no look-up can land on what goes; the intent is durable before anything is freed; packs are
unlinked and ranges punched, and synced; then the intent is cleared. A crash after the intent is replayed at the next
opening for writing; one before it leaves garbage that the next collection finds.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
from pyroaring import BitMap64

from repository.catalog import Catalog
from repository.errors import DamagedError, NoSpaceError, SyncFailedError
from repository.events import EventRing
from repository.format.catalog import Slot
from repository.format.config import Config
from repository.format.pack import pack_path
from repository.ids import PackIndex, SnapshotId, number_of
from repository.intent import IntentFile, block_bytes_of
from repository.packs.table import PackInfo
from repository.policy.collect import CollectPlan, PackFacts, Round, Safety, live_rows, packs_of, plan_collection
from repository.policy.figures import PackFigures
from repository.ports import Clock, Progress
from repository.roots import all_kept, journal_numbers, make_exact, union_of, unique_numbers
from repository.snapshots import Snapshots
from repository.status import Json
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import NS_PER_S, format_size

log = logging.getLogger(__name__)

PLAN_TRIES: Final = 4
"""How often a plan is made again because a lease took something out of it; then it is left to the next collection."""
EXACTNESS_NS: Final = 120 * NS_PER_S
"""Time that one collection spends on making bitmaps exact, about 10,000 snapshots; the next one goes on from there."""


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection did, or (`dry_run`) would do. `expired`: names of deleted snapshots that are gone for good."""

    plan: CollectPlan
    freed_bytes: int
    expired: tuple[str, ...]
    made_exact: int
    seconds: float
    dry_run: bool

    def text(self) -> str:
        """The report for people."""
        lines = [f"{'would collect' if self.dry_run else 'collected'} {len(self.expired)} deleted snapshots"]
        lines.append(self.plan.text())
        if not self.dry_run:
            lines.append(f"freed {format_size(self.freed_bytes)} in {self.seconds:.1f} s")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Json]:
        """The document of `gc --json`. Sizes in bytes; `young_bytes` wait for the window to pass."""
        return {
            "dry_run": self.dry_run,
            "snapshots": list(self.expired),
            "reclaimable_bytes": self.plan.reclaimable_bytes,
            "freed_bytes": self.freed_bytes,
            "young_bytes": self.plan.young_bytes,
            "packs_removed": len(self.plan.drops),
            "ranges_freed": len(self.plan.cuts),
            "seconds": round(self.seconds, 3),
        }


class Collector:
    """Collects in one repository, one collection at a time; also while others put, publish and delete."""

    def __init__(
        self,
        *,
        volume: Volume,
        config: Config,
        store: RecordStore,
        catalog: Catalog,
        snapshots: Snapshots,
        events: EventRing,
        clock: Clock,
    ) -> None:
        self._volume = volume
        self._store = store
        self._catalog = catalog
        self._snapshots = snapshots
        self._events = events
        self._clock = clock
        self._intent = IntentFile(volume, config.seed)
        self._lock = threading.Lock()

    # --- figures -----------------------------------------------------------------------------------------------

    def reclaimable_bytes(self, deleting: Iterable[Slot] = ()) -> int:
        """What the volume would get back if `deleting` and the trash were collected now, whatever their age.

        Exact in whole blocks, as far as bitmaps are: an inexact one makes it too small. Raises DamagedError.
        """
        gone = {slot.snapshot_id for slot in deleting}
        gone |= {slot.snapshot_id for slot in self._snapshots.expired(Safety.NONE, self._clock.now_ns())}
        kept = all_kept(self._store, self._catalog, frozenset(gone))
        return self._plan(kept, Safety.NONE).reclaimable_bytes

    def unique_bytes(self, slots: Sequence[Slot]) -> list[int]:
        """For each slot what the volume gets back when only it is deleted and collected, in whole blocks."""
        wanted = {slot.snapshot_id for slot in slots}
        everything = self._catalog.slots()
        others = self._store.leased() | union_of(self._store, [self._catalog.head()])
        unique = unique_numbers(self._store, everything, others)
        kept = all_kept(self._store, self._catalog)
        block_bytes = block_bytes_of(self._volume)
        infos = {info.index: info for info in self._store.packs()}
        packs: dict[PackIndex, PackFigures] = {}
        found: dict[SnapshotId, int] = {}
        for slot, numbers in zip(everything, unique, strict=True):
            if slot.snapshot_id not in wanted:
                continue
            gain = 0
            for pack in packs_of(numbers):
                if pack in infos and pack not in packs:
                    packs[pack] = PackFigures(self._facts_of(infos[pack]), kept, block_bytes)
                gain += packs[pack].gain_bytes(numbers) if pack in packs else 0
            found[slot.snapshot_id] = gain
        return [found.get(slot.snapshot_id, 0) for slot in slots]

    # --- collecting --------------------------------------------------------------------------------------------

    def collect(
        self,
        safety: Safety = Safety.FULL,
        *,
        dry_run: bool = False,
        exactness: bool = True,
        progress: Progress | None = None,
    ) -> CollectReport:
        """Free what no root needs. FULL keeps the window of 24 hours; NONE frees the trash and all that is dead.

        `exactness` False leaves inexact bitmaps alone: nothing is written but what frees. Raises DamagedError where a
        tree or a slot of the catalog cannot be read (nothing is freed then), SyncFailedError, VolumeError.
        """
        with self._lock:
            began_ns = self._clock.now_ns()
            if not dry_run:
                self._store.check_writable()
            if self._catalog.has_lost_slots:
                raise DamagedError(
                    "The catalog has unreadable slots, and a snapshot may have been there: nothing is freed. "
                    "'ballast check' names them, 'ballast rebuild' looks for their snapshots."
                )
            expired = self._snapshots.expired(safety, began_ns)
            if dry_run:
                kept = all_kept(self._store, self._catalog, frozenset(slot.snapshot_id for slot in expired))
                return self._report(self._plan(kept, safety), 0, expired, 0, began_ns, dry_run=True)
            made = 0
            if exactness:
                until_ns = self._clock.now_ns() + EXACTNESS_NS
                made = make_exact(
                    self._store, self._catalog, self._snapshots.lock, lambda: self._clock.now_ns() > until_ns
                )
            expired = self._expire(safety, began_ns)
            plan, freed = self._free(safety, progress)
            report = self._report(plan, freed, expired, made, began_ns, dry_run=False)
        if freed or expired:
            self._events.add(
                "collect.done",
                {
                    "safety": safety.value,
                    "freed_bytes": freed,
                    "snapshots": list(report.expired),
                    "seconds": report.seconds,
                },
            )
        log.info("collect.done", extra={"freed_bytes": freed, "snapshots": len(expired)})
        return report

    def _report(
        self,
        plan: CollectPlan,
        freed: int,
        expired: Sequence[Slot],
        made: int,
        began_ns: int,
        *,
        dry_run: bool,
    ) -> CollectReport:
        seconds = max(0, self._clock.now_ns() - began_ns) / NS_PER_S
        return CollectReport(plan, freed, tuple(slot.name for slot in expired), made, seconds, dry_run)

    def _expire(self, safety: Safety, now_ns: int) -> list[Slot]:
        """Free the slots of deleted snapshots whose time is over: durable before anything of theirs goes."""
        with self._snapshots.lock:
            expired = self._snapshots.expired(safety, now_ns)
            if expired:
                self._catalog.change([self._catalog.free(slot) for slot in expired])
        return expired

    def _free(self, safety: Safety, progress: Progress | None) -> tuple[CollectPlan, int]:
        plan = self._settle(safety)
        if plan.is_empty:
            return plan, 0
        if progress is not None:
            progress.start("collecting", plan.reclaimable_bytes)
        freed = 0
        for one in plan.rounds():
            self._carry_out(one)
            freed += one.nbytes
            if progress is not None:
                progress.advance(one.nbytes, 0)
        if progress is not None:
            progress.finish()
        return plan, freed

    def _settle(self, safety: Safety) -> CollectPlan:
        """A plan all of whose records are condemned: from here on nobody can come to need them."""
        known = {slot.snapshot_id for slot in self._catalog.slots()}
        kept = all_kept(self._store, self._catalog)
        plan = self._plan(kept, safety)
        if plan.seal:
            try:
                self._store.seal_open()
            except NoSpaceError as error:
                log.info("collect.not_sealed", extra={"error": str(error)})
        kept |= self._healing(plan.condemned, kept)
        for _ in range(PLAN_TRIES):
            with self._snapshots.lock:
                # Publishing holds this lock while it writes a slot, and its lease until after that: what a root came
                # to need since `kept` was gathered is in one of the two.
                kept |= self._newly_kept(known)
                plan = self._plan(kept, safety, sealed_only=True)
                condemned = self._store.condemn(plan.condemned)
            if condemned == plan.condemned:
                return plan
            kept |= plan.condemned - condemned
        return CollectPlan()

    def _healing(self, numbers: BitMap64, kept: BitMap64) -> BitMap64:
        """Those of `numbers` that are later copies of records that some root needs: damage may have made them so.

        A root's bitmap names the copy of its time. While it does, the copy that healed it has to stay.
        """
        found = BitMap64()
        for pack in packs_of(numbers):
            directory = self._store.directory(pack)
            rows = live_rows(numbers, pack, len(directory))
            for position in np.flatnonzero(rows).tolist():
                number = number_of(pack, position)
                copies = self._store.copies(directory.id_at(position))
                if len(copies) > 1 and any(copy.number < number and copy.number in kept for copy in copies):
                    found.add(number)
        if found:
            log.info("collect.healing_kept", extra={"records": len(found)})
        return found

    def _newly_kept(self, known: set[SnapshotId]) -> BitMap64:
        """What roots need that came since `known` was all there were; under the snapshots' lock."""
        head = self._catalog.head()
        added = [slot for slot in self._catalog.slots() if slot.snapshot_id not in known]
        return self._store.leased() | union_of(self._store, [*added, head]) | journal_numbers(self._store, head)

    def _carry_out(self, one: Round) -> None:
        try:
            self._carry_out_durably(one)
        except SyncFailedError as error:
            self._store.fail(error)
            raise

    def _carry_out_durably(self, one: Round) -> None:
        self._intent.write(one.intent(self._intent.next_serial()))
        for drop in one.drops:
            self._store.drop_pack(drop.pack)
        punches = sorted(cut.punch for cut in one.cuts)
        for pack, group in groupby(punches, key=lambda punch: punch.pack):
            self._store.punch(pack, [(punch.offset, punch.length) for punch in group])
        for low in sorted({drop.pack & 0xFF for drop in one.drops}):
            self._volume.fsync_dir(f"packs/{low:02x}")
        self._intent.clear()

    # --- planning ----------------------------------------------------------------------------------------------

    def _plan(self, kept: BitMap64, safety: Safety, *, sealed_only: bool = False) -> CollectPlan:
        facts = [fact for fact in self._facts(kept) if fact.sealed or not sealed_only]
        return self._plan_of(facts, kept, safety)

    def _plan_of(self, facts: Sequence[PackFacts], kept: BitMap64, safety: Safety) -> CollectPlan:
        return plan_collection(
            facts, kept, now_ns=self._clock.now_ns(), safety=safety, block_bytes=block_bytes_of(self._volume)
        )

    def _facts(self, kept: BitMap64) -> Iterable[PackFacts]:
        """Every pack as the plan wants it, but for those that are wholly alive."""
        for info in self._store.packs():
            start = info.index << 16
            if kept.range_cardinality(start, start + info.records) == info.records:
                continue
            yield self._facts_of(info)

    def _facts_of(self, info: PackInfo) -> PackFacts:
        directory = self._store.directory(info.index)
        return PackFacts(
            info.index,
            info.sealed,
            directory.written_ns,
            info.allocated_bytes,
            directory.offset,
            directory.stored,
            directory.kind,
            self._holes(info) if info.sealed else (),
        )

    def _holes(self, info: PackInfo) -> tuple[tuple[int, int], ...]:
        with self._volume.open(pack_path(info.index)) as handle:
            return tuple(handle.holes(handle.size()))
