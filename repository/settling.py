"""Settling on what to free: a plan all of whose records are condemned, so that nobody can come to need them any more.

Two rules meet here. Condemning is atomic with look-ups: what a lease holds is not condemned, and comes out of the plan.
Publishing holds the snapshots' lock while it writes a slot, and its lease until after that: so under that lock, what a
root has come to need meanwhile is in a slot or in a lease.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from pyroaring import BitMap64

from repository.catalog import Catalog
from repository.errors import NoSpaceError
from repository.ids import RecordNumber, SnapshotId, number_of
from repository.planning import Planner, Wish
from repository.policy.collect import CollectPlan, live_rows, packs_of
from repository.roots import all_kept, journal_numbers, union_of
from repository.snapshots import Snapshots
from repository.store import RecordStore

log = logging.getLogger(__name__)

PLAN_TRIES: Final = 4
"""How often a plan is made again because a lease took something out of it; then it is left to the next collection."""


class Settler:
    """Settles for one collector, which calls it one at a time; others put, publish and delete meanwhile."""

    def __init__(self, *, store: RecordStore, catalog: Catalog, snapshots: Snapshots, planner: Planner) -> None:
        self._store = store
        self._catalog = catalog
        self._snapshots = snapshots
        self._planner = planner

    def settle(self, wish: Wish) -> CollectPlan:
        """A plan all of whose records are condemned: from here on nobody can come to need them."""
        if wish.enough_bytes is not None:
            plan = self._settle_by_census(wish)
            if plan is not None:
                return plan
        known = {slot.snapshot_id for slot in self._catalog.slots()}
        kept = all_kept(self._store, self._catalog)
        plan = self._planner.plan_from(kept, wish)
        if plan.seal:
            try:
                self._store.seal_open(allocate=wish.enough_bytes is None)
            except NoSpaceError as error:
                log.info("collect.not_sealed", extra={"error": str(error)})
        kept |= self._healing(plan.condemned, kept.__contains__)
        for _ in range(PLAN_TRIES):
            with self._snapshots.lock:
                # Publishing holds this lock while it writes a slot, and its lease until after that: what a root came
                # to need since `kept` was gathered is in one of the two.
                kept |= self._newly_kept(known)
                plan = self._planner.plan_from(kept, replace(wish, sealed_only=True))
                condemned = self._store.condemn(plan.condemned)
            if condemned == plan.condemned:
                return plan
            kept |= plan.condemned - condemned
        return CollectPlan()

    def _settle_by_census(self, wish: Wish) -> CollectPlan | None:
        """The same from what is in memory, allocating nothing; None without a census.

        Under the snapshots' lock the census takes in every root that came; what a lease holds is never condemned.
        """
        spared = BitMap64()
        may_seal = True
        for _ in range(2 * PLAN_TRIES):
            with self._snapshots.lock:
                plan = self._planner.plan((), spared, replace(wish, sealed_only=True))
                if plan is None:
                    return None
                if not may_seal or plan.reclaimable_bytes >= (wish.enough_bytes or 0):
                    healing = self._healing_in(plan)
                    condemned = BitMap64() if healing else self._store.condemn(plan.condemned)
                    if condemned == plan.condemned:
                        return plan
                    spared |= healing or plan.condemned - condemned
                    continue
            may_seal = False
            self._seal_what_pays(wish, plan.reclaimable_bytes)
        return CollectPlan()

    def _seal_what_pays(self, wish: Wish, without_bytes: int) -> None:
        """Seal open packs with garbage that is wanted, where that needs no room."""
        plan = self._planner.plan((), BitMap64(), wish)
        if plan is not None and plan.seal and plan.reclaimable_bytes > without_bytes:
            self._store.seal_open(allocate=False, only=plan.seal)

    def _healing_in(self, plan: CollectPlan) -> BitMap64:
        """What of a plan by census has to stay for an earlier copy that stays."""
        copies = self._planner.later_copies()
        found = plan.condemned & copies if copies else BitMap64()
        return self._healing(found, lambda number: number not in plan.condemned) if found else found

    def _healing(self, numbers: BitMap64, stays: Callable[[RecordNumber], bool]) -> BitMap64:
        """Those of `numbers` that are later copies of records of which an earlier one `stays`: damage may have made
        them so.

        A root's bitmap names the copy of its time. While it does, the copy that healed it has to stay.
        """
        found = BitMap64()
        for pack in packs_of(numbers):
            directory = self._store.directory(pack)
            rows = live_rows(numbers, pack, len(directory))
            positions = np.flatnonzero(rows).tolist()
            for item in self._store.copied([directory.id_at(position) for position in positions]):
                number = number_of(pack, positions[item])
                copies = self._store.copies(directory.id_at(positions[item]))
                if len(copies) > 1 and any(copy.number < number and stays(copy.number) for copy in copies):
                    found.add(number)
        if found:
            log.info("collect.healing_kept", extra={"records": len(found)})
        return found

    def _newly_kept(self, known: set[SnapshotId]) -> BitMap64:
        """What roots need that came since `known` was all there were; under the snapshots' lock."""
        head = self._catalog.head()
        added = [slot for slot in self._catalog.slots() if slot.snapshot_id not in known]
        return self._store.leased() | union_of(self._store, [*added, head]) | journal_numbers(self._store, head)
