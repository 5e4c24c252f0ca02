"""Collecting: what is garbage is known beforehand, and freed without needing a byte.

Order, and what each step protects: deleted snapshots give up their slots (durable) before their records go; numbers
are condemned, so that no look-up can land on what goes; the intent is durable before anything is freed; packs are
unlinked and ranges punched, and synced; then the intent is cleared. A crash after the intent is replayed at the next
opening for writing; one before it leaves garbage that the next collection finds.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from pyroaring import BitMap64

from repository.catalog import Catalog
from repository.errors import DamagedError, SyncFailedError
from repository.events import EventRing
from repository.format.catalog import Slot
from repository.format.config import Config
from repository.ids import SnapshotId
from repository.intent import IntentFile
from repository.planning import Planner, Wish
from repository.policy.collect import CollectPlan, Round, Safety
from repository.ports import Clock, Progress
from repository.repack import Repacker
from repository.roots import all_kept, make_exact
from repository.settling import PLAN_TRIES, Settler
from repository.snapshots import Snapshots
from repository.status import Json
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import NS_PER_S, format_size

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class ThinPlan:
    """Snapshots to give up, in this order, and what the volume has back once they and the trash are collected."""

    snapshots: tuple[SnapshotId, ...]
    reclaimable_bytes: int


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
        self.planner: Final = Planner(store=store, catalog=catalog, volume=volume, clock=clock)
        self._settler = Settler(store=store, catalog=catalog, snapshots=snapshots, planner=self.planner)
        self._repacker = Repacker(volume=volume, store=store, catalog=catalog, snapshots=snapshots, clock=clock)
        self._lock = threading.Lock()

    # --- figures -----------------------------------------------------------------------------------------------

    def reclaimable_bytes(self, deleting: Iterable[Slot] = ()) -> int:
        """What the volume would get back if `deleting` and the trash were collected now, whatever their age.

        Exact in whole blocks, as far as bitmaps are: an inexact one makes it too small. Raises DamagedError.
        """
        gone = {slot.snapshot_id for slot in deleting}
        return self.planner.dead_bytes(gone.union(self._trash_ids()))

    def _trash_ids(self) -> list[SnapshotId]:
        return [slot.snapshot_id for slot in self._snapshots.expired(Safety.NONE, self._clock.now_ns())]

    def unique_bytes(self, slots: Sequence[Slot]) -> list[int]:
        """For each slot what the volume gets back when only it is deleted and collected, in whole blocks."""
        return self.planner.unique_bytes(slots)

    def warm_up(self) -> bool:
        """Have all that a decision needs in memory: call it while space is getting short. False where that is too much.

        Costs reading every pack's directory the first time, what changed since afterwards. `planner.forget` ends it.
        """
        return self.planner.warm_up()

    def look_closer(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Find out exactly what every root needs, in memory: nothing is written. Ends early where `stop` says so.

        True if that uncovered garbage, the trash counted as such; what follows plans with it. Raises DamagedError where
        a tree cannot be read.
        """
        return self.planner.look_closer(stop, self._trash_ids())

    def plan_thinning(self, order: Sequence[SnapshotId], enough_bytes: int) -> ThinPlan | None:
        """The shortest beginning of `order` whose deletion, with all that is garbage already, gives `enough_bytes`.

        None where even all of them give less. Exact in whole blocks, as far as bitmaps are. Raises DamagedError.
        """
        self.planner.warm_up()
        found = self.planner.fewest(order, enough_bytes, self._trash_ids())
        return ThinPlan(tuple(order[: found.steps]), found.nbytes) if found.enough else None

    # --- collecting --------------------------------------------------------------------------------------------

    def collect(
        self,
        safety: Safety = Safety.FULL,
        *,
        dry_run: bool = False,
        exactness: bool = True,
        progress: Progress | None = None,
        enough_bytes: int | None = None,
        trash: bool = True,
        stop: Callable[[], bool] | None = None,
    ) -> CollectReport:
        """Free what no root needs. FULL keeps the window of 24 hours; NONE frees the trash and all that is dead.

        With `enough_bytes` only until so much is freed: the largest pieces first, and no more deleted snapshots than
        that takes, longest deleted first. `trash` False leaves all deleted snapshots alone. `stop` is asked between
        rounds: what is left then is garbage for the next collection.

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
                return self._rehearse(Wish(safety, enough_bytes), expired if trash else [], began_ns)
            made = 0
            if exactness:
                going = expired if trash and enough_bytes is None else []
                made = self._make_exact({slot.snapshot_id for slot in going})
            if enough_bytes is None:
                expired = self._expire(safety, began_ns) if trash else []
                plan, freed = self._free(Wish(safety), progress, stop)
            else:
                expired, plan, freed = self._free_enough(Wish(safety, enough_bytes), progress, stop, trash=trash)
            if not self.planner.punches:
                missing = None if enough_bytes is None else enough_bytes - freed
                freed += self._repacker.repack(
                    missing, safety=safety, free=lambda: self._free(Wish(safety), None, stop)[1], stop=stop
                )
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

    def _make_exact(self, going: Collection[SnapshotId]) -> int:
        """Of all but the snapshots `going`, whose slots are freed right afterwards."""
        until_ns = self._clock.now_ns() + EXACTNESS_NS
        return make_exact(
            self._store, self._catalog, self._snapshots.lock, lambda: self._clock.now_ns() > until_ns, going
        )

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

    def _rehearse(self, wish: Wish, expired: Sequence[Slot], began_ns: int) -> CollectReport:
        """What a collection would do."""
        if wish.enough_bytes is not None:
            wanted = [slot.snapshot_id for slot in expired]
            expired = expired[: self.planner.fewest(wanted, wish.enough_bytes).steps]
        gone = frozenset(slot.snapshot_id for slot in expired)
        plan = self.planner.plan(gone, BitMap64(), wish)
        if plan is None:
            plan = self.planner.plan_from(all_kept(self._store, self._catalog, gone), wish)
        return self._report(plan, 0, expired, 0, began_ns, dry_run=True)

    def _expire(self, safety: Safety, now_ns: int, only: Collection[SnapshotId] | None = None) -> list[Slot]:
        """Free the slots of deleted snapshots whose time is over: durable before anything of theirs goes."""
        with self._snapshots.lock:
            expired = self._snapshots.expired(safety, now_ns)
            if only is not None:
                expired = [slot for slot in expired if slot.snapshot_id in only]
            if expired:
                self._catalog.change([self._catalog.free(slot) for slot in expired])
        return expired

    def _free_enough(
        self, wish: Wish, progress: Progress | None, stop: Callable[[], bool] | None, *, trash: bool
    ) -> tuple[list[Slot], CollectPlan, int]:
        """Free `wish.enough_bytes`, giving up as few deleted snapshots as that takes. Allocates nothing."""
        assert wish.enough_bytes is not None
        self.planner.warm_up()
        expired: list[Slot] = []
        done, freed = CollectPlan(), 0
        for _ in range(PLAN_TRIES):
            missing = wish.enough_bytes - freed
            if missing <= 0 or (stop is not None and stop()):
                break
            now_ns = self._clock.now_ns()
            waiting = [slot.snapshot_id for slot in self._snapshots.expired(wish.safety, now_ns)] if trash else []
            going = set(waiting[: self.planner.fewest(waiting, missing).steps])
            gone = self._expire(wish.safety, now_ns, going) if going else []
            plan, more = self._free(replace(wish, enough_bytes=missing), progress, stop)
            expired += gone
            done, freed = done.followed_by(plan), freed + more
            if not gone and not more:
                break
        return expired, done, freed

    def _free(self, wish: Wish, progress: Progress | None, stop: Callable[[], bool] | None) -> tuple[CollectPlan, int]:
        plan = self._settler.settle(wish)
        if plan.is_empty:
            return plan, 0
        if progress is not None:
            progress.start("collecting", plan.reclaimable_bytes)
        freed = 0
        for one in plan.rounds():
            if stop is not None and stop():
                break
            self._carry_out(one)
            freed += one.nbytes
            if progress is not None:
                progress.advance(one.nbytes, 0)
        if progress is not None:
            progress.finish()
        return plan, freed

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
        self.planner.punched(punches)
        self._intent.clear()
        if self._volume.frees_late:
            self._volume.syncfs()
