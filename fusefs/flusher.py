"""From the live tree's memory to the disk: jobs that store bytes, and rounds that make everything durable.

Two things run here. *Jobs* store written bytes on worker threads, several at once, and land in the order of taking.
*Rounds* (fsync, the timer, a commit) take whatever is in memory and everything that changed, in one step without an
`await`, then wait for the jobs, write one journal flush and sync: so what a crash leaves is a prefix of the operations.
Rounds run one at a time; who asks during one waits for the next, all together (group commit).

A full disk fails neither: a job that finds no room waits and is tried again, and what a round captured stays captured
until it is written, before anything else is captured. Who waits for it is told ENOSPC meanwhile.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from fusefs.bank import Bank
from fusefs.spaceguard import NAMES_WAIT_S, SpaceGuard
from fusefs.workers import Workers
from repository.chunker import Chunker
from repository.errors import BallastError, NoSpaceError, VolumeError
from repository.format.journal import JournalMark
from repository.format.record import HEADER_BYTES
from repository.ids import FileId
from repository.journal import JournalWriter
from repository.leases import Lease
from repository.ledger import Claim
from repository.live.filedata import Piece
from repository.live.journaling import CHUNK_CLAIM_BYTES, NODE_CLAIM_BYTES, Capture, capture, changes_of
from repository.live.tree import LiveTree
from repository.live.writing import Job, land, run_job, take
from repository.store import RecordStore
from repository.units import KIB, MIB

_log = logging.getLogger(__name__)

JOB_TRIGGER_BYTES: Final = 4 * MIB
"""Bytes in memory, not yet in a job, at which one is taken."""
JOB_TRIGGER_FILES: Final = 512
"""The same for files: a job of many small ones costs one hand-over."""
JOBS_MAX: Final = 4
"""Jobs under way: two threads work, two more keep them from waiting."""
MEMORY_BYTES_MAX: Final = 32 * MIB
"""Written bytes in memory, in jobs or not; beyond it `write` waits for a job to land."""
DATA_STEP_BYTES: Final = 1 * MIB
JOURNAL_STEP_BYTES: Final = 256 * KIB
CHANGE_COST: Final = 4 * NODE_CLAIM_BYTES + 3 * 255
"""Journal bytes of one operation on names: at most four inodes and three names of 255 bytes."""
JOURNAL_TAKEN_MAX: Final = 16 * MIB
"""Claimed journal bytes at which a round begins by itself, before its time."""
HEADROOM_TAKEN_PART: Final = 4
"""While room is short: as soon as one part in so many of the headroom is taken, for a flush gives most of it back."""
SHORT_LOOK_S: Final = 1.0
"""How often a round that waits for jobs looks whether one of them waits for room."""
RETRY_S: Final = 5.0
"""Between two tries of a job that finds no room and no way to it: as often as the monitor looks."""


class Admitted(NamedTuple):
    """A write that has its room: what that costs, and its length in bytes."""

    cost: int
    length: int


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
    """Owner of the order of jobs and rounds, and of the mode `failed`: after a failed write to the disk nothing more is
    acknowledged. Loop thread only."""

    def __init__(
        self,
        tree: LiveTree,
        store: RecordStore,
        journal: JournalWriter,
        workers: Workers,
        nursery: trio.Nursery,
        guard: SpaceGuard,
    ) -> None:
        self._tree: Final = tree
        self._store: Final = store
        self._chunker: Final = Chunker(store.config.chunker)
        self._journal: Final = journal
        self._workers: Final = workers
        self._nursery: Final = nursery
        self._guard: Final = guard
        self._data = Bank(store, DATA_STEP_BYTES)
        self._log_room = Bank(store, JOURNAL_STEP_BYTES)
        self._position_cost: Final = store.claim_cost(0, 1)
        self.lease: Lease = store.lease()
        self.journal_lease: Lease = store.lease()
        """The generation's data, and its journal: the one is kept by the commit, the other is dead with it."""
        self.closed: set[FileId] = set()
        """Files with bytes in memory that nobody has open: they need not wait for more."""
        self.failed: BallastError | None = None
        self._admitted_cost = 0
        self._admitted_bytes = 0
        """Of writes that have their room, on disk and in memory, and are not in the tree yet."""
        self._flying_bytes = 0
        self._jobs = 0
        self._last_landed = trio.Event()
        self._last_landed.set()
        self._memory = trio.lowlevel.ParkingLot()
        self._short_jobs = 0
        """Jobs that found no room and wait."""
        self._patience_ends_s = float("inf")
        self._pending: PendingFlush | None = None
        """Captured and not yet durable: goes first in the next round."""
        self._running = False
        self._begun = 0
        self._done = 0
        self._round_over = trio.lowlevel.ParkingLot()
        self._durable_changes = tree.changes

    # --- admission ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises where nothing may be acknowledged any more."""
        if self.failed is None and self._store.failed:
            self.fail(VolumeError("writing to the repository has ended"))
        if self.failed is not None:
            raise VolumeError("the disk failed while writing; unmount and mount again", errno.EIO)

    async def admit_change(self, extra_bytes: int = 0, *, shrinks: bool = False) -> None:
        """Room in the journal for one operation on names or attributes. `shrinks`: it must work on a full disk too.

        Raises NoSpaceError.
        """
        self.check()
        cost = CHANGE_COST + extra_bytes
        if not shrinks:
            await self._guard.leave_read_only(NAMES_WAIT_S)
        while not self._log_room.try_take(cost):
            await self._more_for_changes(cost, shrinks=shrinks)
            self.check()
        if self._log_room.taken > self._journal_bound() and not self._running:
            self._nursery.start_soon(self._early_round)

    async def _more_for_changes(self, cost: int, *, shrinks: bool) -> None:
        step = self._log_room.step_bytes
        try:
            claim = await self._guard.change(cost, step, shrinks=shrinks)
        except NoSpaceError:
            if not shrinks or not self._log_room.taken:
                raise
            await self.sync()  # a flush needs a small part of what was claimed for it
            claim = await self._guard.change(cost, step, shrinks=shrinks)
        self._log_room.add(claim)

    def _journal_bound(self) -> int:
        if self._guard.calm:
            return JOURNAL_TAKEN_MAX
        return min(JOURNAL_TAKEN_MAX, self._store.headroom.wanted_bytes // HEADROOM_TAKEN_PART)

    async def admit_write(self, length: int, journal_bytes: int) -> Admitted:
        """Room for `length` written bytes, on disk and in memory, for `took_in` once the tree has them.

        `journal_bytes`: beside what describes the bytes. Raises NoSpaceError: nothing was taken then.
        """
        self.check()
        records = 1 + length // self._chunker.parameters.min_bytes
        cost = self._data_cost(length, records)
        await self._guard.leave_read_only()
        self._admitted_cost += cost
        try:
            if self._guard.queueing or not self._data.try_take(cost):
                self._settle()
                await self._grow(self._data, cost)
            journal = records * CHUNK_CLAIM_BYTES + journal_bytes
            if not self._log_room.try_take(journal):
                await self._grow(self._log_room, journal)
            await self._wait_for_memory(length)
            self.check()
        except BaseException:
            self._admitted_cost -= cost
            self._settle()
            raise
        self._admitted_bytes += length
        return Admitted(cost, length)

    async def _grow(self, bank: Bank, cost: int) -> None:
        """Takes `cost`, in line with all others who need room."""
        while True:
            bank.add(await self._guard.grow(cost, bank.step_bytes))
            if bank.try_take(cost):
                return

    async def _wait_for_memory(self, length: int) -> None:
        """Until the bytes fit below the bound. No deadline for a slow disk; for a full one there is."""
        while (held := self._tree.run_bytes + self._admitted_bytes) and held + length > MEMORY_BYTES_MAX:
            self.pump(force=True)
            with trio.move_on_after(self._guard.deadline_s) as patience:
                await self._memory.park()
            self.check()
            if patience.cancelled_caught and self._short_jobs:
                raise NoSpaceError("The disk is full, and what was written before waits for room.", length)

    def took_in(self, admitted: Admitted) -> None:
        """A write that was admitted is in the tree now, or failed."""
        self._admitted_cost -= admitted.cost
        self._admitted_bytes -= admitted.length
        if not self._tree.run_bytes:
            self._memory.unpark_all()

    def _settle(self) -> None:
        """Gives back what is claimed for bytes that were overwritten or cut off while they were in memory.

        Before more is allocated: otherwise a file that is written again and again would fill the disk with claims.
        """
        idle = self._tree.run_bytes - self._flying_bytes
        runs = sum(len(node.data.runs) for node in self._tree.with_runs.values() if node.data is not None)
        records = runs + idle // self._chunker.parameters.min_bytes
        self._data.settle(self._data_cost(idle, records) + self._admitted_cost)

    def _data_cost(self, length: int, records: int) -> int:
        return length + records * (HEADER_BYTES + self._position_cost)

    def next_generation(self) -> tuple[Lease, Lease]:
        """From now on everything goes under new leases; returns those of data and journal up to here."""
        leases = (self.lease, self.journal_lease)
        self.lease, self.journal_lease = self._store.lease(), self._store.lease()
        return leases

    # --- jobs ---------------------------------------------------------------------------------------------------

    def pump(self, *, force: bool = False) -> None:
        """Starts jobs if enough is in memory for one (or anything, with `force`)."""
        tree = self._tree
        while self._jobs < JOBS_MAX and tree.with_runs:
            idle = tree.run_bytes - self._flying_bytes
            if idle < JOB_TRIGGER_BYTES and len(tree.with_runs) < JOB_TRIGGER_FILES and not force:
                return
            job = take(tree, self._chunker, final=False, closed=self.closed)
            if job is None:
                return
            self._launch(job)

    def _launch(self, job: Job) -> None:
        self.closed.intersection_update(self._tree.with_runs)
        self._flying_bytes += job.data_bytes
        self._jobs += 1
        before, self._last_landed = self._last_landed, trio.Event()
        records = job.runs + job.data_bytes // self._chunker.parameters.min_bytes
        claim = self._data.split(self._data_cost(job.data_bytes, records))
        self._nursery.start_soon(self._fly, job, claim, self.lease, before, self._last_landed)

    async def _fly(self, job: Job, claim: Claim | None, lease: Lease, before: trio.Event, landed: trio.Event) -> None:
        """Stores one job and lands it behind those before it. Never cancelled: its bytes are acknowledged."""
        with trio.CancelScope(shield=True):
            try:
                answers = await self._store_job(job, claim, lease)
                await before.wait()
                if self.failed is None:
                    land(self._tree, job, answers)
            except BallastError as error:
                self.fail(error)
            except Exception as error:
                _log.exception("job.crashed")
                self.fail(VolumeError(str(error)))
            finally:
                if claim is not None:
                    self._store.forfeit(claim)
                self._flying_bytes -= job.data_bytes
                self._jobs -= 1
                landed.set()
                self._memory.unpark_all()
        if not self._tree.run_bytes:
            self._settle()
        self.pump()

    async def _store_job(self, job: Job, claim: Claim | None, lease: Lease) -> list[tuple[Piece, ...]]:
        """The job's bytes in the store. A claim covers them; where the volume refuses all the same, it waits."""
        while True:
            try:
                return await self._workers.write(self._run_job, job, claim, lease)
            except NoSpaceError as error:
                if trio.current_time() > self._patience_ends_s:
                    raise
                _log.warning("job.no_space", extra={"nbytes": job.data_bytes, "error": str(error)})
                self._short_jobs += 1
                try:
                    await self._guard.relief(error)
                except NoSpaceError:
                    await trio.sleep(RETRY_S)
                finally:
                    self._short_jobs -= 1

    def _run_job(self, job: Job, claim: Claim | None, lease: Lease) -> list[tuple[Piece, ...]]:
        """On a worker thread."""
        with self._store.without_climbing():
            return run_job(job, self._store, self._chunker, lease, claim)

    def fail(self, error: BallastError) -> None:
        """From now on nothing is acknowledged any more; reading goes on. Only a new mount leaves this."""
        if self.failed is None:
            _log.error("session.failed error=%s", error)
            self.failed = error
            self._store.fail(error)

    # --- rounds -------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Returns when everything acknowledged before the call is durable.

        Raises NoSpaceError where there was no room for it (it is tried again), VolumeError where it failed for good.
        """
        self.check()
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
            self.check()

    def _is_durable(self) -> bool:
        idle = self._pending is None and not self._tree.run_bytes
        return idle and self._tree.changes == self._durable_changes

    async def checkpoint(self, at_capture: Callable[[PendingFlush], None]) -> None:
        """A round whose moment of capture also runs `at_capture` (a freeze); returns when that is durable.

        What is written after that moment goes under a new lease. Raises as `sync`, but climbs for nothing; where
        `at_capture` was called before NoSpaceError, a later round sees to it that its flush gets a mark.
        """
        while self._running:
            await self._round_over.park()
        self.check()
        await self._round(at_capture)

    async def flush_once(self) -> None:
        """One round, what is pending first. Raises as `checkpoint`."""
        await self.checkpoint(_nothing)

    async def _round(self, at_capture: Callable[[PendingFlush], None]) -> None:
        self._running = True
        self._begun += 1
        ticket = self._begun
        try:
            with trio.CancelScope(shield=True):
                if self._pending is not None:
                    await self._make_durable(self._pending)
                changes = self._tree.changes
                while (job := take(self._tree, self._chunker, final=True)) is not None:
                    self._launch(job)
                captured = capture(self._tree)
                claim = self._log_room.split(self._log_room.taken)
                serial = self._tree.base.serial
                flush = PendingFlush(captured, claim, self._last_landed, self.journal_lease, serial, changes)
                self._pending = flush
                at_capture(flush)
                await self._make_durable(flush)
                self._done = ticket
        finally:
            self._running = False
            self._round_over.unpark_all()

    async def _make_durable(self, flush: PendingFlush) -> None:
        """Writes what was captured. Raises NoSpaceError, and keeps it; any other error is the end of writing."""
        await self._wait_for_jobs(flush.landed)
        self.check()
        try:
            flush.mark = await self._workers.write(self._write, flush)
        except NoSpaceError:
            raise
        except BallastError as error:
            self.fail(error)
            raise
        self._pending = None
        if flush.claim is not None:
            self._store.forfeit(flush.claim)
        self._durable_changes = flush.changes
        if not self._guard.calm:
            self._log_room.let_go()  # the headroom has the first claim to it

    async def _wait_for_jobs(self, landed: trio.Event) -> None:
        while not landed.is_set():
            with trio.move_on_after(SHORT_LOOK_S):
                await landed.wait()
            if self._short_jobs and not landed.is_set():
                raise NoSpaceError("The disk is full, and what was written before waits for room.")

    def _write(self, flush: PendingFlush) -> JournalMark:
        """One journal flush, durable with everything before it. On a worker thread."""
        mark = self._journal.mark
        with self._store.closing():  # where the claim is too small after all: the headroom, and no climb on this thread
            if flush.captured.count:
                mark = self._journal.write(changes_of(flush.captured), flush.lease, flush.serial, flush.claim)
            self._store.sync()
        return mark

    async def _early_round(self) -> None:
        try:
            await self.sync()
        except NoSpaceError as error:
            _log.info("round.no_space", extra={"error": str(error)})
        except BallastError as error:
            _log.error("round.failed error=%s", error)

    def end_soon(self) -> None:
        """The mount ends: what finds no room within the deadline from now on will not find any."""
        self._patience_ends_s = trio.current_time() + self._guard.deadline_s

    def close(self) -> None:
        """Gives back room and lease. After the last round."""
        self._data.close()
        self._log_room.close()
        self.lease.close()
        self.journal_lease.close()


def _nothing(_: PendingFlush) -> None:
    return None
