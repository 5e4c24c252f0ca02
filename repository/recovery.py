"""Recovery: drives the ladder for whoever met a full disk, and finds the way back.

One driver at a time, in the order in which they came (`Turns`): a climb, a collection on request, the giving back, the
monitor's look. How one drives is said in `driving.py`.

Locks, in the order in which they may be taken: the publisher's commit lock and bitmap lock (a `put` under them may
climb), the turn, the collector's lock, the snapshots' lock, the catalog's lock, the store's locks (sync, grow, state),
the ledger's and the reserve's. Nobody climbs with a lock from the collector's on downwards: the store calls `climb`
under no lock of its own, and `RecordStore.without_climbing` keeps whoever has the turn from asking for it again.
"""

import logging
from typing import Final

from repository.collect import CollectReport
from repository.driving import Driver
from repository.errors import BallastError, DamagedError, NoSpaceError
from repository.policy.collect import WINDOW_NS, Safety
from repository.policy.levels import Level
from repository.policy.room import least_bytes, return_bytes
from repository.policy.rungs import Mode, Refused, Rest, Retry, Seen, Tidy
from repository.ports import Progress
from repository.refusal import disk_full_text
from repository.steps import Parts, RecoverySettings

log = logging.getLogger(__name__)

__all__ = ["Mode", "Recovery", "RecoverySettings"]

GAVE_UP_EVENT: Final = "job.gave_up"


class Recovery(Driver):
    """Recovery of one repository. Thread safe."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._climbs = 0
        self._recovered = False
        """How many climbs have ended, and how the last one did."""
        self._waiting_bytes = 0
        self._grown_bytes = 0
        """As of the end of the last climb."""
        self._refusal = ""
        self._level = Level.HEALTHY
        self._collection_due = False

    # --- what anybody may ask ----------------------------------------------------------------------------------

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
        self._note_refused(needed)
        self._store.check_writable()
        raise NoSpaceError(self._refusal or str(error), needed) from error

    def _climb(self, error: NoSpaceError, waiting_bytes: int) -> bool:
        """With the turn."""
        self._begin()
        recovered = False
        try:
            grown = self._store.grown_bytes > self._grown_bytes
            end = self._drive(Refused(error.needed_bytes, self._space.sight(), waiting_bytes, grown))
            recovered = isinstance(end, Retry)
            if not recovered:
                self._refusal = self._space.shortage(error.needed_bytes or self._state.needs.segment_bytes)
        except BallastError as broken:
            log.warning("recovery.broken_off", extra={"error": str(broken), "steps": list(self._steps.run.steps)})
            raise
        finally:
            self._grown_bytes = self._store.grown_bytes
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

    def look(self, *, prepare: bool = True) -> Mode:
        """The monitor's tick, also worth it after files were removed elsewhere: level, reserve, way back; and, with
        `prepare`, what a climb will rest on, which takes a second for a million records the first time.

        Returns at once while somebody drives. Raises VolumeError.
        """
        if self._turns.try_take():
            try:
                self._look()
            finally:
                self._turns.end()
            if prepare:
                self._prepare()
        return self.mode

    def _prepare(self) -> None:
        """While space gets short, what the collector's decisions rest on stays in memory: a climb is quick then."""
        if self.mode is Mode.NORMAL and self._level in (Level.HEALTHY, Level.INFO):
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
        if not sight.whole and not sight.refits:
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
