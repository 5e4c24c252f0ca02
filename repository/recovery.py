"""Recovery: drives the ladder for whoever met a full disk, and finds the way back.

One driver at a time, in the order in which they came (`Turns`): a climb, a collection on request, the giving back, the
monitor's look. What to do next is decided by `policy/ladder.py` and done by `steps.py`.

Locks, in the order in which they may be taken: the publisher's commit lock and bitmap lock (a `put` under them may
climb), the turn, the collector's lock, the snapshots' lock, the catalog's lock, the store's locks (sync, grow, state),
the ledger's and the reserve's. Nobody climbs with a lock from the collector's on downwards: the store calls `climb`
under no lock of its own, and `RecordStore.without_climbing` keeps whoever has the turn from asking for it again.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from repository.collect import Collector, CollectReport
from repository.errors import BallastError, DamagedError, NoSpaceError
from repository.events import EventRing
from repository.policy.collect import WINDOW_NS, Safety
from repository.policy.ladder import State, step
from repository.policy.levels import Level
from repository.policy.retention import Randomness
from repository.policy.room import Needs, Sight, least_bytes, return_bytes
from repository.policy.rungs import (
    Broke,
    Changed,
    Effect,
    Event,
    Interrupted,
    Mode,
    Purpose,
    Refuse,
    Refused,
    Rest,
    Retry,
    Seen,
    Step,
    Tidy,
)
from repository.ports import Clock, Progress
from repository.refusal import disk_full_text
from repository.snapshots import Snapshots
from repository.space import Space
from repository.status import MODE_EVENT, RECOVERY_EVENT
from repository.steps import RecoverySettings, Run, Steps
from repository.store import RecordStore
from repository.turns import Turns
from repository.units import NS_PER_S, format_size

log = logging.getLogger(__name__)

__all__ = ["Mode", "Recovery", "RecoverySettings"]

GAVE_UP_EVENT: Final = "job.gave_up"
_NOWHERE: Final = Sight(0, 0)


class Recovery:
    """Recovery of one repository. Thread safe.

    `settings`, `rng` and `on_change` may be set at any time. `on_change` is told each new mode, on whatever thread
    found it: it must neither block nor call back.
    """

    def __init__(
        self,
        *,
        store: RecordStore,
        space: Space,
        collector: Collector,
        snapshots: Snapshots,
        events: EventRing,
        clock: Clock,
    ) -> None:
        self.settings = RecoverySettings()
        self.rng: Randomness = random.SystemRandom()
        self.on_change: Callable[[Mode], None] | None = None
        self._store = store
        self._space = space
        self._collector = collector
        self._snapshots = snapshots
        self._events = events
        self._clock = clock
        self._turns = Turns()
        self._lock = threading.Lock()
        """Over steps of the machine and the counters; innermost, never held over a system call."""
        self._state = State(Needs(segment_bytes=0, margin_bytes=0))
        self._climbs = 0
        self._recovered = False
        """How many climbs have ended, and how the last one did."""
        self._waiting_bytes = 0
        self._refusal = ""
        self._level = Level.HEALTHY
        self._collection_due = False
        self._stopping = False
        self._steps = Steps(
            store=store,
            space=space,
            collector=collector,
            snapshots=snapshots,
            events=events,
            clock=clock,
            run=Run(0, self.settings, self.rng),
            hurry=self._hurried,
        )

    # --- what anybody may ask ----------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """The mode now. Never blocks."""
        return Mode.FAILED if self._store.failed else self._state.mode

    @property
    def level(self) -> Level:
        """The level that the last `look` found. Never blocks."""
        return self._level

    @property
    def refuses(self) -> bool:
        """Whether growth is refused at once: read-only, and nothing changed since. Never blocks."""
        return self._state.refuses

    @property
    def refused_bytes(self) -> int:
        """In READ_ONLY: the largest claim that was refused. Never blocks."""
        return self._state.refused_bytes

    @property
    def waiting(self) -> int:
        """How many threads wait for their turn."""
        return self._turns.waiting()

    @property
    def unfinished(self) -> bool:
        """Whether `finish` has something to do. Never blocks."""
        return self._state.owed

    def take_due_collection(self) -> bool:
        """True once after each time that the volume became critical: then one ordinary collection is due."""
        with self._lock:
            due, self._collection_due = self._collection_due, False
            return due

    def stop(self) -> None:
        """The repository is about to be closed: collections end between their rounds. Never blocks."""
        self._stopping = True

    def changed(self) -> None:
        """Something may have come free: the next allocation that fails is worth a climb. Never blocks."""
        self._step(Changed())

    # --- growth ------------------------------------------------------------------------------------------------

    def guard(self, nbytes: int) -> None:
        """Asked before a segment is allocated. Raises NoSpaceError; in READ_ONLY at once, without a system call; and
        ReadOnlyError in FAILED."""
        if self._state.refuses:
            self._store.check_writable()
            raise NoSpaceError(self._refusal, nbytes)
        self._watch_level()
        self._space.require_growth(nbytes)

    def _watch_level(self) -> None:
        level = self._space.level()
        with self._lock:
            self._collection_due |= level is Level.CRITICAL and self._level is not Level.CRITICAL
            self._level = level

    def climb(self, error: NoSpaceError) -> None:
        """Return when the allocation that met `error` may be tried again. Blocks; no lock of the store may be held.

        Who waits while another climbs shares its end. Raises NoSpaceError where there is no way, at once in READ_ONLY,
        and ReadOnlyError in FAILED.
        """
        if self._stopping or self._turns.mine():
            raise error
        needed = error.needed_bytes
        with self._lock:
            climbs = self._climbs
            self._waiting_bytes += needed
        queued = True
        try:
            if not self._state.refuses:
                self._turns.take()
                try:
                    with self._lock:
                        self._waiting_bytes -= needed
                        queued = False
                        shared = self._climbs != climbs
                        recovered, waiting = self._recovered, self._waiting_bytes
                    if not shared:
                        recovered = self._climb(error, waiting)
                finally:
                    self._turns.end()
                if recovered:
                    return
        finally:
            if queued:
                with self._lock:
                    self._waiting_bytes -= needed
        self._remember_refused(needed)
        self._store.check_writable()
        raise NoSpaceError(self._refusal or str(error), needed) from error

    def _remember_refused(self, needed: int) -> None:
        with self._lock:
            if self._state.refuses:
                self._state, _ = step(self._state, Refused(needed, _NOWHERE))

    def _climb(self, error: NoSpaceError, waiting_bytes: int) -> bool:
        """With the turn."""
        self._begin()
        recovered = False
        try:
            end = self._drive(Refused(error.needed_bytes, self._space.sight(), waiting_bytes))
            recovered = isinstance(end, Retry)
            if not recovered:
                self._refusal = self._space.shortage(error.needed_bytes or self._state.needs.segment_bytes)
        finally:
            with self._lock:
                self._climbs += 1
                self._recovered = recovered
        self._tell(error, "recovered" if recovered else "failed" if self.mode is Mode.FAILED else "read-only")
        return recovered

    # --- what frees --------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The background half of a climb: free the margin too. Gives way to whoever climbs. Does nothing if nothing
        is left to do. Raises DamagedError, VolumeError."""
        if not self._state.owed:
            return
        with self._turns:
            self._begin()
            self._drive(Rest(self._space.sight()))
            self._refill()

    def look(self) -> Mode:
        """The monitor's tick, also worth it after files were removed elsewhere: level, reserve, way back.

        Returns at once while somebody drives. Raises VolumeError.
        """
        if self._turns.try_take():
            try:
                self._look()
            finally:
                self._turns.end()
            self._prepare()
        return self.mode

    def _prepare(self) -> None:
        """While space is short, what the collector's decisions rest on stays in memory, so that a climb is quick."""
        if self.mode is Mode.NORMAL and self._level in (Level.HEALTHY, Level.INFO, Level.WARNING):
            self._collector.planner.forget()
            return
        try:
            self._collector.warm_up()
        except BallastError as error:  # a climb will meet it, and say so
            log.info("recovery.not_prepared", extra={"reason": str(error)})

    def _look(self) -> None:
        """With the turn."""
        self._watch_level()
        self._begin()
        self._drive(Seen(self._space.sight()))
        self._refill()

    def _refill(self) -> None:
        """With room to spare: what operations that shrink drew from. With the turn."""
        if self._state.mode is Mode.NORMAL:
            self._store.headroom.refill(allocate=True)

    def deleted(self) -> int:
        """After deletions: unless the reserve is whole and the mode normal, collect at once, whatever its age.

        Returns the bytes that came free. Raises SyncFailedError.
        """
        self.changed()
        with self._turns:
            self._space.measure()
            return self._tidy(trash=True)

    def give_up(self, needed_bytes: int = 0) -> int:
        """A large job ended in NoSpaceError and has closed its leases: free at once what it had stored.

        `needed_bytes`: what it would have taken in all, if that is known. Returns the bytes that came free.
        """
        with self._turns:
            freed = self._tidy(trash=False)
        self._events.add(GAVE_UP_EVENT, {"freed_bytes": freed, "needed_bytes": max(needed_bytes, freed)})
        return freed

    def _tidy(self, *, trash: bool) -> int:
        self._begin()
        self._drive(Tidy(self._space.sight(), trash))
        self._refill()
        return self._state.freed_bytes

    def emergency(self) -> bool:
        """Whether a collection should keep no window, unless told to: the reserve is missing and does not fit, or the
        last job that was given up for want of room (within a window's time) would still not fit. Writes nothing."""
        sight = self._space.sight()
        if not sight.whole and sight.available_bytes < sight.missing_bytes:
            return True
        given_up = [event for event in self._events.events() if event.name == GAVE_UP_EVENT]
        if not given_up or self._clock.now_ns() - given_up[-1].time_ns > WINDOW_NS:
            return False
        if any(slot.time_ns > given_up[-1].time_ns for slot in self._snapshots.listed()):
            return False
        needed = given_up[-1].fields.get("needed_bytes")
        return isinstance(needed, int) and sight.available_bytes - sight.missing_bytes < needed

    def collect(
        self, safety: Safety, progress: Progress | None = None, *, hurry: bool = False, trash: bool = True
    ) -> CollectReport:
        """A collection that somebody asked for: see `Collector.collect`. Then the reserve is given what it lacks.

        Bitmaps are made exact meanwhile only while nothing is short, and without `hurry`. Raises DamagedError,
        SyncFailedError, VolumeError.
        """
        with self._turns:
            self._begin()
            self._drive(Seen(self._space.sight()))
            calm = self._state.mode is Mode.NORMAL and not hurry
            try:
                with self._store.without_climbing():
                    report = self._collector.collect(
                        safety, exactness=calm, progress=progress, trash=trash, stop=self._ending
                    )
                self._space.freed(report.freed_bytes)
                if report.freed_bytes:
                    self.changed()
            finally:
                self._drive(Seen(self._last_sight()))
            self._refill()
        return report

    def _ending(self) -> bool:
        return self._stopping

    def refused_text(self) -> str | None:
        """In READ_ONLY: what is needed, which snapshots would free most, the command. None in any other mode.

        Looks at every snapshot: for a thread. Raises VolumeError.
        """
        if self._state.mode is not Mode.READ_ONLY:
            return None
        listed = [slot for slot in self._snapshots.listed() if not slot.pinned]
        try:
            freed = self._collector.unique_bytes(listed)
        except DamagedError:
            freed = [0] * len(listed)
        sight = self._space.sight()
        more = return_bytes(self._state.needs, self._state.refused_bytes)
        needed = least_bytes(more, sight, self._state.phantom_bytes)
        largest = sorted(zip(freed, listed, strict=True), key=lambda found: found[0], reverse=True)
        return disk_full_text(
            self._space.root, max(needed, 0), sight.missing_bytes, [(slot.name, nbytes) for nbytes, slot in largest]
        )

    # --- driving -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._steps.begin(self.settings, self.rng)
        needs = self._space.needs()
        margin = self.settings.margin_bytes
        if margin is not None:
            needs = replace(needs, margin_bytes=margin)
        with self._lock:
            self._state = replace(self._state, needs=needs, auto_delete=self.settings.auto_delete)

    def _step(self, event: Event) -> tuple[Effect, ...]:
        with self._lock:
            before = self._state.mode
            self._state, effects = step(self._state, event)
            mode = self._state.mode
        if mode is not before:
            self._changed_mode(before, mode)
        return effects

    def _changed_mode(self, before: Mode, mode: Mode) -> None:
        log.info("recovery.mode", extra={"mode": mode.value, "before": before.value})
        self._store.allow_caches(mode is Mode.NORMAL)
        if self.on_change is not None:
            self.on_change(mode)

    def _drive(self, event: Event) -> Effect | None:
        """From an event to the end, one effect after the other. With the turn."""
        before = self._state.mode
        if self._store.failed and self._state.mode is not Mode.FAILED:
            self._step(Broke())
        try:
            with self._store.without_climbing():
                while True:
                    effects = self._step(event)
                    if not effects:
                        return None
                    if isinstance(effects[0], Retry | Refuse):
                        return effects[0]
                    event = self._steps.carry_out(effects[0])
        finally:
            if self._state.step is not Step.IDLE:
                self._step(Interrupted(self._last_sight()))
            mode = self._state.mode
            if mode is not before and {mode, before} & {Mode.READ_ONLY, Mode.FAILED}:
                self._events.add(MODE_EVENT, {"mode": mode.value, "before": before.value})

    def _last_sight(self) -> Sight:
        """When something went wrong that is not about room: a volume that does not answer lacks everything."""
        try:
            return self._space.sight()
        except BallastError:
            return Sight(0, 1)

    def _hurried(self) -> bool:
        """Whether a collection should end early: at the end of all, or the margin's when somebody climbs."""
        return self._stopping or (self._state.purpose is Purpose.REST and self._turns.waiting() > 0)

    # --- telling -----------------------------------------------------------------------------------------------

    def _tell(self, error: NoSpaceError, outcome: str) -> None:
        """One event for a climb, unless there turned out to be room without it."""
        run = self._steps.run
        if not run.steps:
            return
        pause_s = max(0, self._clock.now_ns() - run.began_ns) / NS_PER_S
        trigger = f"{format_size(error.needed_bytes)} did not fit" if error.needed_bytes else str(error)
        freed = self._state.freed_bytes
        log.info("recovery.done", extra={"outcome": outcome, "freed_bytes": freed, "pause_s": round(pause_s, 3)})
        self._events.add(
            RECOVERY_EVENT,
            {
                "trigger": trigger,
                "steps": list(run.steps),
                "freed_bytes": freed,
                "deleted_snapshots": list(run.thinned),
                "pause_s": round(pause_s, 3),
                "outcome": outcome,
            },
        )
