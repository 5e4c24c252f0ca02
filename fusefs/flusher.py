"""From the live tree's memory to the disk: jobs that store bytes, and rounds that make everything durable.

Two things run here. *Jobs* store written bytes on worker threads, several at once, and land in the order of taking.
*Rounds* (fsync, the timer, a commit) take whatever is in memory and everything that changed, in one step without an
`await`, then wait for the jobs, write one journal flush and sync: so what a crash leaves is a prefix of the operations.
Rounds run one at a time; who asks during one waits for the next, all together (group commit).
"""

import errno
import logging
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from fusefs.bank import Bank
from fusefs.workers import Workers
from repository.chunker import Chunker
from repository.errors import BallastError, VolumeError
from repository.format.record import HEADER_BYTES
from repository.ids import FileId
from repository.journal import JournalWriter
from repository.leases import Lease
from repository.ledger import Claim
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

R = TypeVar("R")


class Flusher:
    """Owner of the order of jobs and rounds, and of the mode `failed`: after a failed write to the disk nothing more is
    acknowledged. Loop thread only."""

    def __init__(
        self, tree: LiveTree, store: RecordStore, journal: JournalWriter, workers: Workers, nursery: trio.Nursery
    ) -> None:
        self._tree: Final = tree
        self._store: Final = store
        self._chunker: Final = Chunker(store.config.chunker)
        self._journal: Final = journal
        self._workers: Final = workers
        self._nursery: Final = nursery
        self._data = Bank(store, workers, DATA_STEP_BYTES)
        self._log_room = Bank(store, workers, JOURNAL_STEP_BYTES)
        self._position_cost: Final = store.claim_cost(0, 1)
        self.lease: Lease = store.lease()
        self.journal_lease: Lease = store.lease()
        """The generation's data, and its journal: the one is kept by the commit, the other is dead with it."""
        self.closed: set[FileId] = set()
        """Files with bytes in memory that nobody has open: they need not wait for more."""
        self.failed: BallastError | None = None
        self._admitted_cost = 0
        """Of writes that have their room and are not in the tree yet."""
        self._flying_bytes = 0
        self._jobs = 0
        self._last_landed = trio.Event()
        self._last_landed.set()
        self._memory = trio.lowlevel.ParkingLot()
        self._running = False
        self._begun = 0
        self._done = 0
        self._round_over = trio.lowlevel.ParkingLot()
        self._durable_changes = tree.changes

    # --- admission ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises where nothing may be acknowledged any more."""
        if self.failed is not None:
            raise VolumeError("the disk failed while writing; unmount and mount again", errno.EIO)

    async def admit_change(self, extra_bytes: int = 0) -> None:
        """Room in the journal for one operation on names or attributes. Raises NoSpaceError."""
        self.check()
        cost = CHANGE_COST + extra_bytes
        if not self._log_room.try_take(cost):
            await self._log_room.take(cost)
            self.check()
        if self._log_room.taken > JOURNAL_TAKEN_MAX and not self._running:
            self._nursery.start_soon(self._early_round)

    async def admit_write(self, length: int, journal_bytes: int) -> int:
        """Room for `length` written bytes, in memory and on disk; its cost, for `took_in` once the tree has them.

        `journal_bytes`: beside what describes the bytes. Raises NoSpaceError: nothing was taken then.
        """
        self.check()
        while self._tree.run_bytes + length > MEMORY_BYTES_MAX and self._tree.run_bytes:
            self.pump(force=True)
            await self._memory.park()
            self.check()
        records = 1 + length // self._chunker.parameters.min_bytes
        cost = self._data_cost(length, records)
        self._admitted_cost += cost
        try:
            if not self._data.try_take(cost):
                self._settle()
                await self._data.take(cost)
            journal = records * CHUNK_CLAIM_BYTES + journal_bytes
            if not self._log_room.try_take(journal):
                await self._log_room.take(journal)
            self.check()
        except BaseException:
            self._admitted_cost -= cost
            raise
        return cost

    def took_in(self, cost: int) -> None:
        """A write that was admitted at this cost is in the tree now, or failed."""
        self._admitted_cost -= cost

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
                answers = await self._workers.write(run_job, job, self._store, self._chunker, lease, claim)
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

    def fail(self, error: BallastError) -> None:
        """From now on nothing is acknowledged any more; reading goes on. Only a new mount leaves this."""
        if self.failed is None:
            _log.error("session.failed error=%s", error)
            self.failed = error

    # --- rounds -------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Returns when everything acknowledged before the call is durable. Raises VolumeError where that failed."""
        self.check()
        if not self._running and self._tree.changes == self._durable_changes and not self._tree.run_bytes:
            return
        ticket = self._begun + 1
        while self._done < ticket:
            if self._running:
                await self._round_over.park()
            else:
                await self._round(_nothing)
            self.check()

    async def checkpoint(self, at_capture: Callable[[], R]) -> R:
        """A round whose moment of capture also runs `at_capture` (a freeze); returns its answer when durable.

        What is written after that moment goes under a new lease.
        """
        while self._running:
            await self._round_over.park()
        self.check()
        return await self._round(at_capture)

    async def _round(self, at_capture: Callable[[], R]) -> R:
        self._running = True
        self._begun += 1
        ticket = self._begun
        try:
            with trio.CancelScope(shield=True):
                changes = self._tree.changes
                while (job := take(self._tree, self._chunker, final=True)) is not None:
                    self._launch(job)
                captured = capture(self._tree)
                claim = self._log_room.split(self._log_room.taken)
                landed, lease, serial = self._last_landed, self.journal_lease, self._tree.base.serial
                answer = at_capture()
                await landed.wait()
                self.check()
                try:
                    await self._workers.write(self._write, captured, lease, serial, claim)
                except BallastError as error:
                    self.fail(error)
                    raise
                finally:
                    if claim is not None:
                        self._store.forfeit(claim)
                self._durable_changes = changes
        finally:
            self._running = False
            self._done = ticket
            self._round_over.unpark_all()
        return answer

    def _write(self, captured: Capture, lease: Lease, serial: int, claim: Claim | None) -> None:
        """One journal flush, durable with everything before it. On a worker thread."""
        if captured.count:
            self._journal.write(changes_of(captured), lease, serial, claim)
        self._store.sync()

    async def _early_round(self) -> None:
        try:
            await self.sync()
        except BallastError as error:
            _log.error("round.failed error=%s", error)

    def close(self) -> None:
        """Gives back room and lease. After the last round."""
        self._data.close()
        self._log_room.close()
        self.lease.close()
        self.journal_lease.close()


def _nothing() -> None:
    return None
