"""Rounds that make everything durable, and the room in the journal for what they will write.

A round (for fsync, the timer, a commit) takes whatever is in memory into jobs and captures everything that changed, in
one step without an `await`; then it waits for the jobs, writes one journal flush and syncs: so what a crash leaves is a
prefix of the operations. Rounds run one at a time; who asks during one waits for the next, all together (group commit).

A full disk fails none: what a round captured stays captured until it is written, before anything else is captured. Who
waits for it is told ENOSPC meanwhile.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from fusefs.bank import Bank
from fusefs.failure import Failure
from fusefs.jobs import Admitted, Jobs
from fusefs.spaceguard import NAMES_WAIT_S, SpaceGuard
from fusefs.workers import Workers
from repository.errors import BallastError, NoSpaceError
from repository.format.journal import JournalMark
from repository.ids import FileId
from repository.journal import JournalWriter
from repository.leases import Lease
from repository.ledger import Claim
from repository.live.journaling import CHUNK_CLAIM_BYTES, NODE_CLAIM_BYTES, Capture, capture, changes_of
from repository.live.tree import NAME_BYTES_MAX, LiveTree
from repository.store import RecordStore
from repository.units import KIB, MIB

_log = logging.getLogger(__name__)

STEP_BYTES: Final = 256 * KIB
"""Journal room is claimed in steps of this size, so that most operations are a subtraction."""
CHANGE_COST: Final = 4 * NODE_CLAIM_BYTES + 3 * NAME_BYTES_MAX
"""Journal bytes of one operation on names: at most four inodes and three names."""
JOURNAL_TAKEN_MAX: Final = 16 * MIB
"""Claimed journal bytes at which a round begins by itself, before its time."""
HEADROOM_TAKEN_PART: Final = 4
"""While room is short: as soon as one part in so many of the headroom is taken, for a flush gives most of it back."""


@dataclass(slots=True)
class PendingFlush:
    """What one round captured. `landed`: the last job it waits for. `mark`: where the journal stands, once durable."""

    captured: Capture
    claim: Claim | None
    landed: trio.Event
    lease: Lease
    serial: int
    changes: int
    mark: JournalMark | None = None


class Flusher:
    """Owner of the order of rounds. Loop thread only, except where a worker is named."""

    def __init__(
        self,
        tree: LiveTree,
        store: RecordStore,
        journal: JournalWriter,
        workers: Workers,
        nursery: trio.Nursery,
        guard: SpaceGuard,
        jobs: Jobs,
        failure: Failure,
    ) -> None:
        self._tree: Final = tree
        self._store: Final = store
        self._journal: Final = journal
        self._workers: Final = workers
        self._nursery: Final = nursery
        self._guard: Final = guard
        self._jobs: Final = jobs
        self._failure: Final = failure
        self._room: Final = Bank(store, guard, STEP_BYTES)
        self._taken_max_short: Final = min(JOURNAL_TAKEN_MAX, store.headroom.wanted_bytes // HEADROOM_TAKEN_PART)
        self._lease: Lease = store.lease()
        """The generation's flushes; the commit, which makes them needless, lets go of it."""
        self._pending: PendingFlush | None = None
        """Captured and not yet durable: goes first in the next round."""
        self._running = False
        self._begun = 0
        self._done = 0
        self._round_over: Final = trio.lowlevel.ParkingLot()
        self._durable_changes = tree.changes

    # --- admission ----------------------------------------------------------------------------------------------

    async def admit_change(self, extra_bytes: int = 0, *, shrinks: bool = False) -> None:
        """Room in the journal for one operation on names or attributes. `shrinks`: it must work on a full disk too.

        Raises NoSpaceError.
        """
        cost = CHANGE_COST + extra_bytes
        if not self._is_calm():
            self._failure.check()
            if not shrinks:
                await self._guard.leave_read_only(NAMES_WAIT_S)
        while not self._room.try_take(cost):
            await self._more_for_changes(cost, shrinks=shrinks)
            self._failure.check()
        if self._room.taken > self._taken_max_short and self._room.taken > self._taken_max() and not self._running:
            self._nursery.start_soon(self._early_round)

    async def admit_again(self, file_id: FileId, extra_bytes: int = 0, *, shrinks: bool = False) -> None:
        """`admit_change`, for a change of the inode `file_id` alone: where the next flush will tell of it anyway, what
        that claimed is enough for all but `extra_bytes`. Raises NoSpaceError."""
        if file_id in self._tree.journal_nodes and self._is_calm() and self._room.try_take(extra_bytes):
            return
        await self.admit_change(extra_bytes, shrinks=shrinks)

    @property
    def taken_bytes(self) -> int:
        """Room in the journal that was admitted and that no round has captured yet."""
        return self._room.taken

    def _is_calm(self) -> bool:
        """Whether everything may change, and nobody has to wait for a climb first."""
        return self._guard.calm and not self._failure.happened

    async def _more_for_changes(self, cost: int, *, shrinks: bool) -> None:
        try:
            claim = await self._guard.change(cost, STEP_BYTES, shrinks=shrinks)
        except NoSpaceError:
            if not shrinks or not self._room.taken:
                raise
            await self.sync()  # a flush needs a small part of what was claimed for it
            claim = await self._guard.change(cost, STEP_BYTES, shrinks=shrinks)
        self._room.add(claim)

    def _taken_max(self) -> int:
        return JOURNAL_TAKEN_MAX if self._guard.calm else self._taken_max_short

    async def _early_round(self) -> None:
        try:
            await self.sync()
        except NoSpaceError as error:
            _log.info("round.no_space", extra={"error": str(error)})
        except BallastError as error:
            _log.error("round.failed", extra={"error": str(error)})

    async def admit_write(self, length: int, journal_bytes: int) -> Admitted:
        """All room that `length` written bytes need, on disk, in the journal and in memory.

        `journal_bytes`: beside what describes the bytes. The answer goes to `Jobs.took_in` once the tree has the bytes.
        Raises NoSpaceError: nothing was taken then.
        """
        wanted = self._jobs.sized(length)
        journal_cost = wanted.records * CHUNK_CLAIM_BYTES + journal_bytes
        if self._is_calm() and self._jobs.try_admit(wanted):
            if self._room.try_take(journal_cost):
                return wanted
            self._jobs.took_in(wanted)  # somebody may have to wait after all: from the beginning, in line
        self._failure.check()
        await self._guard.leave_read_only()
        with self._jobs.admitting(wanted):
            await self._jobs.take_room(wanted)
            if not self._room.try_take(journal_cost):
                await self._room.take(journal_cost)
            await self._jobs.wait_for_memory(wanted)
            self._failure.check()
        return wanted

    # --- rounds -------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Returns when everything acknowledged before the call is durable.

        Raises NoSpaceError where there was no room for it (it is tried again), VolumeError where it failed for good.
        """
        self._failure.check()
        if not self._running and self._is_durable():
            return
        ticket = self._begun + 1
        while self._done < ticket:
            if self._running:
                await self._round_over.park()
            else:
                try:
                    await self._round(_nothing)
                except NoSpaceError as error:
                    await self._guard.relief(error)
            self._failure.check()

    def _is_durable(self) -> bool:
        idle = self._pending is None and not self._tree.run_bytes
        return idle and self._tree.changes == self._durable_changes

    async def checkpoint(self, at_capture: Callable[[PendingFlush], None]) -> None:
        """A round whose moment of capture also runs `at_capture` (a freeze); returns when that is durable.

        Raises as `sync`, but climbs for nothing, and what `at_capture` raises. Where that was called before
        NoSpaceError, a later round sees to it that its flush gets a mark.
        """
        while self._running:
            await self._round_over.park()
        self._failure.check()
        await self._round(at_capture)

    async def flush_once(self) -> None:
        """One round, what is pending first. Raises as `checkpoint`."""
        await self.checkpoint(_nothing)

    def next_generation(self) -> tuple[Lease, Lease]:
        """From now on everything goes under new leases; returns those of data and journal up to here."""
        lease, self._lease = self._lease, self._store.lease()
        return self._jobs.next_lease(), lease

    async def _round(self, at_capture: Callable[[PendingFlush], None]) -> None:
        self._running = True
        self._begun += 1
        ticket = self._begun
        try:
            with trio.CancelScope(shield=True):
                if self._pending is not None:
                    await self._make_durable(self._pending)
                flush = self._capture()
                at_capture(flush)
                await self._make_durable(flush)
                self._done = ticket
        finally:
            self._running = False
            self._round_over.unpark_all()

    def _capture(self) -> PendingFlush:
        """Everything in memory and everything that changed, as it is at this moment; pending until it is durable."""
        landed = self._jobs.take_all()
        changes, serial = self._tree.changes, self._tree.base.serial
        claim = self._room.split(self._room.taken)
        self._pending = PendingFlush(capture(self._tree), claim, landed, self._lease, serial, changes)
        return self._pending

    async def _make_durable(self, flush: PendingFlush) -> None:
        """Writes what was captured. Raises NoSpaceError, and keeps it; any other error is the end of writing."""
        await self._jobs.wait_for(flush.landed)
        self._failure.check()
        try:
            flush.mark = await self._workers.write(self._write, flush)
        except NoSpaceError:
            raise
        except BallastError as error:
            self._failure.declare(error)
            raise
        self._pending = None
        if flush.claim is not None:
            self._store.forfeit(flush.claim)
        self._durable_changes = flush.changes
        if not self._guard.calm:
            self._room.let_go()  # the headroom has the first claim to it

    def _write(self, flush: PendingFlush) -> JournalMark:
        """One journal flush, durable with everything before it. On a worker thread."""
        mark = self._journal.mark
        with self._store.closing():  # where the claim is too small after all: the headroom, and no climb on this thread
            if flush.captured.count:
                mark = self._journal.write(changes_of(flush.captured), flush.lease, flush.serial, flush.claim)
            self._store.sync()
        return mark

    def close(self) -> None:
        """Gives back room and lease. After the last round."""
        self._room.close()
        self._lease.close()


def _nothing(_: PendingFlush) -> None:
    return None
