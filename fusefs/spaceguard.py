"""Who waits when the disk is full, for how long, and who does not.

Owner of these rules. One climb of the ladder at a time, on a thread of its own, so that nothing else waits for it: no
job, no reader, no look-up. Whoever needs room for bytes queues in order, at most `WAITERS_MAX` of them and at most the
deadline long; names and attributes draw on the headroom and wait a second at most, counted from the moment at which the
trouble began, since the kernel holds their directory locked meanwhile. In read-only mode growth is refused at once.
Loop thread only.
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from fusefs.workers import Workers
from repository.errors import BallastError, NoSpaceError, VolumeError
from repository.ledger import Claim
from repository.recovery import Mode

_log = logging.getLogger(__name__)

FUSE_TASKS: Final = 160
"""Requests in work at once, each with a buffer of 1 MiB of which only what is touched takes memory."""
READER_TASKS: Final = 32
"""Of these, requests that never wait for room can always have so many."""
WAITERS_MAX: Final = FUSE_TASKS - READER_TASKS
NAMES_WAIT_S: Final = 1.0
"""How long, from the beginning of a climb on, an operation on names or attributes waits for it."""
DEADLINE_DEFAULT_S: Final = 30.0
GROWTH_KEEPS: Final = 2
"""Growth of names leaves one part in so many of the headroom to operations that shrink; what those leave to commits is
the headroom's own rule."""


class Headroom(Protocol):
    """Room that stays allocated for operations on names and for commits."""

    @property
    def wanted_bytes(self) -> int: ...

    def take(self, nbytes: int, records: int) -> Claim | None: ...

    def left_bytes(self) -> int: ...


class RoomStore(Protocol):
    """What the guard needs of the record store."""

    @property
    def headroom(self) -> Headroom: ...

    def try_claim(self, nbytes: int, records: int) -> Claim | None: ...

    def claim(self, nbytes: int, records: int, *, climb: bool = True) -> Claim: ...


class Climbing(Protocol):
    """What the guard needs of the repository's recovery."""

    @property
    def mode(self) -> Mode: ...

    @property
    def refuses(self) -> bool: ...

    def climb(self, error: NoSpaceError) -> None: ...

    def changed(self) -> None: ...


@dataclass(slots=True)
class _Climb:
    """One way through the ladder. `failure` None while it runs, and when it ended well."""

    began_s: float
    over: trio.Event
    failure: BallastError | None = None


async def _nothing_to_commit() -> None:
    await trio.lowlevel.checkpoint()


class SpaceGuard:
    """Admission of what grows, for one mount."""

    def __init__(
        self, store: RoomStore, recovery: Climbing, workers: Workers, nursery: trio.Nursery, deadline_s: float
    ) -> None:
        self._store: Final = store
        self._recovery: Final = recovery
        self._workers: Final = workers
        self._nursery: Final = nursery
        self.deadline_s: Final = deadline_s
        self._climb: _Climb | None = None
        self._failed: tuple[int, BallastError] = (0, NoSpaceError("nothing failed yet"))
        """The number of the last climb that failed, and how."""
        self._climbs = 0
        self._turn: Final = trio.Lock()
        self.waiting = 0
        """Requests that wait for room now."""
        self._removed = 0
        self._removed_committed = 0
        self._removed_s = 0.0
        self.commit_head: Callable[[], Awaitable[None]] = _nothing_to_commit
        """Commits `live` without a snapshot, so that what was removed there becomes garbage."""
        self.climbed: Callable[[], None] = lambda: None
        """Called after each climb, for what is left to do in the background."""
        self.freed: Callable[[], None] = lambda: None
        """Called when, while room is short, something was committed that may be garbage now."""

    # --- looking ------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """The repository's mode."""
        return self._recovery.mode

    @property
    def calm(self) -> bool:
        """Whether nothing is short: allocating is worth trying, and snapshots may be made."""
        return self._climb is None and self._recovery.mode is Mode.NORMAL

    @property
    def queueing(self) -> bool:
        """Whether somebody waits for room for bytes: who comes now gets in line."""
        return self.waiting > 0

    @property
    def removals(self) -> int:
        """Counts operations that took something away from `live`; noted at a freeze, handed to `committed`."""
        return self._removed

    def removed(self) -> None:
        """Something was taken away from `live`: once committed, it may be garbage."""
        self._removed += 1
        self._removed_s = trio.current_time()

    def quiet_s(self) -> float:
        """How long ago something was taken away for the last time."""
        return trio.current_time() - self._removed_s

    def committed(self, removals: int) -> None:
        """A commit holds everything up to `removals`."""
        if removals > self._removed_committed:
            self._removed_committed = removals
            if not self.calm:
                self._recovery.changed()
                self.freed()

    @property
    def has_removals(self) -> bool:
        """Whether something was taken away that no commit knows."""
        return self._removed > self._removed_committed

    async def leave_read_only(self, patience_s: float | None = None) -> None:
        """For whatever grows: in read-only mode raises NoSpaceError at once, unless something changed since the last
        climb; then it climbs once more, and waits as `relief` does. In any other mode returns at once."""
        if self._recovery.mode is Mode.READ_ONLY:
            await self.relief(NoSpaceError("The disk is full."), patience_s)  # a segment is what it will need

    def _refuse(self) -> None:
        if self._recovery.mode is Mode.FAILED:
            raise VolumeError("writing to the repository has ended; unmount and mount again", errno.EIO)
        if self._recovery.refuses and not self.has_removals:
            raise NoSpaceError("The disk is full; DISK-IS-FULL.txt in the mount's root says what helps.")

    # --- bytes --------------------------------------------------------------------------------------------------

    async def grow(self, cost: int, step: int) -> Claim:
        """Room for bytes of files: `step` of it, or as little as `cost` where that is all there is.

        Waits for its turn and for climbs, no longer than the deadline. Raises NoSpaceError, VolumeError.
        """
        climbs = self._climbs
        with self._queued(cost), trio.move_on_after(self.deadline_s):
            async with self._turn:
                return await self._get(cost, step, climbs)
        _log.warning("space.deadline", extra={"deadline_s": self.deadline_s, "waiting": self.waiting})
        raise NoSpaceError(f"No room came free within {self.deadline_s:g} s.", cost)

    async def _get(self, cost: int, step: int, climbs: int) -> Claim:
        """With the turn; `climbs`: how many had ended when the wish was made."""
        while True:
            number, failure = self._failed
            if number > climbs:
                raise _again(failure)
            claim = self._store.try_claim(max(cost, step), 0) or self._store.try_claim(cost, 0)
            if claim is not None:
                return claim
            climb = self._climb
            if climb is None:
                try:
                    return await self._allocate(max(cost, step))
                except NoSpaceError as error:
                    climb = self._begin(error)
            await climb.over.wait()

    async def _allocate(self, cost: int) -> Claim:
        return await self._workers.allocate(_claim, self._store, cost)

    # --- names and attributes -----------------------------------------------------------------------------------

    async def change(self, cost: int, step: int, *, shrinks: bool) -> Claim:
        """Journal room for an operation on names or attributes: ordinary room, else the headroom, else a short wait.

        Raises NoSpaceError, VolumeError.
        """
        if self.calm or (not shrinks and self._climb is None):
            try:
                return await self._allocate(max(cost, step))
            except NoSpaceError as error:
                if not shrinks:
                    self._begin(error)
        claim = self._drawn(cost, step, shrinks=shrinks)
        if claim is not None:
            return claim
        climb = self._climb
        if climb is not None and not shrinks:
            with self._queued(cost), trio.move_on_at(climb.began_s + NAMES_WAIT_S):
                await climb.over.wait()
            if climb.failure is not None:
                raise _again(climb.failure)
            if climb.over.is_set():
                return await self._allocate(max(cost, step))
            claim = self._drawn(cost, step, shrinks=shrinks)
        if claim is None:
            raise NoSpaceError("The disk is full, and the room kept for changes of names is used up.", cost)
        return claim

    def _drawn(self, cost: int, step: int, *, shrinks: bool) -> Claim | None:
        """Out of what is allocated already; what is kept for more important things stays."""
        claim = self._store.try_claim(cost, 0)
        if claim is not None:
            return claim
        headroom = self._store.headroom
        if not shrinks and headroom.left_bytes() - cost < headroom.wanted_bytes // GROWTH_KEEPS:
            return None
        return (headroom.take(step, 0) if shrinks and step > cost else None) or headroom.take(cost, 0)

    # --- everything else that can meet a full disk -------------------------------------------------------------

    async def relief(self, error: NoSpaceError, patience_s: float | None = None, *, commit_first: bool = True) -> None:
        """Returns when what met `error` may be tried again. Raises NoSpaceError where there is no way, or none within
        `patience_s` of the climb's beginning (None: the deadline, from now on). `commit_first` False: it is the commit
        that failed."""
        if self._climb is None:
            self._refuse()
        climb = self._begin(error, commit_first=commit_first)
        end_s = trio.current_time() + self.deadline_s if patience_s is None else climb.began_s + patience_s
        with self._queued(error.needed_bytes), trio.move_on_at(end_s):
            await climb.over.wait()
        if not climb.over.is_set():
            raise error
        if climb.failure is not None:
            raise _again(climb.failure)

    @contextmanager
    def _queued(self, cost: int) -> Iterator[None]:
        """Counts one who waits. Raises NoSpaceError where too many do."""
        if self.waiting >= WAITERS_MAX:
            raise NoSpaceError(f"The disk is full, and {self.waiting} requests wait already.", cost)
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    # --- climbing -----------------------------------------------------------------------------------------------

    def _begin(self, error: NoSpaceError, *, commit_first: bool = True) -> _Climb:
        """The climb under way, begun if there is none."""
        if self._climb is None:
            self._climb = _Climb(trio.current_time(), trio.Event())
            self._nursery.start_soon(self._drive, self._climb, error, commit_first)
        return self._climb

    async def _drive(self, climb: _Climb, error: NoSpaceError, commit_first: bool) -> None:
        """One climb, to its end; whoever waits for it looks at `failure` then."""
        with trio.CancelScope(shield=True):
            try:
                if commit_first and self.has_removals:
                    await self.commit_head()
                await self._workers.recover(self._recovery.climb, error)
            except BallastError as failure:
                climb.failure = failure
            except Exception as crash:
                _log.exception("climb.crashed")
                climb.failure = BallastError(f"recovering room failed: {crash!r}")
            finally:
                self._climbs += 1
                if climb.failure is not None:
                    self._failed = (self._climbs, climb.failure)
                self._climb = None
                climb.over.set()
                self.climbed()


def _claim(store: RoomStore, cost: int) -> Claim:
    """On a worker thread: a claim that leaves climbing to the guard."""
    return store.claim(cost, 0, climb=False)


def _again(failure: BallastError) -> BallastError:
    """For each who waited an error of his own: they may be many."""
    return NoSpaceError(str(failure), failure.needed_bytes) if isinstance(failure, NoSpaceError) else failure
