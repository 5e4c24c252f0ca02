"""Written bytes on their way to the store: room for them, on disk and in memory, and the jobs that store them.

Owner of two invariants: a written byte is covered by a claim from before `write` returns until its job has stored it;
jobs land in the order in which they were taken, though worker threads store several at once.

A full disk fails no job: one that finds no room keeps its bytes, readable as before, and is tried again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import trio

from fusefs.bank import Bank
from fusefs.failure import Failure
from fusefs.spaceguard import SpaceGuard
from fusefs.workers import Workers
from repository.chunker import Chunker
from repository.errors import BallastError, NoSpaceError, VolumeError
from repository.format.record import HEADER_BYTES
from repository.ids import FileId
from repository.leases import Lease
from repository.ledger import Claim
from repository.live.filedata import Piece
from repository.live.tree import LiveTree
from repository.live.writing import Job, land, run_job, take
from repository.store import RecordStore
from repository.units import MIB

_log = logging.getLogger(__name__)

JOB_TRIGGER_BYTES: Final = 4 * MIB
"""Bytes in memory, not yet in a job, at which one is taken."""
JOB_TRIGGER_FILES: Final = 512
"""The same for files: a job of many small ones costs one hand-over."""
JOBS_MAX: Final = 4
"""Jobs under way: two threads work, two more keep them from waiting."""
MEMORY_BYTES_MAX: Final = 32 * MIB
"""Written bytes in memory, in jobs or not; beyond it `write` waits for a job to land."""
STEP_BYTES: Final = 1 * MIB
"""Room for bytes is claimed in steps of this size, so that most writes are a subtraction."""
SHORT_LOOK_S: Final = 1.0
"""How often whoever waits for jobs looks whether one of them waits for room."""
RETRY_S: Final = 5.0
"""Between two tries of a job that finds no room and no way to it: as often as the monitor looks."""


class Admitted(NamedTuple):
    """A write that has its room, or gets it: `length` bytes, in `records` chunks at most, for `cost` of a claim."""

    length: int
    records: int
    cost: int


class Jobs:
    """What one mount's writers wrote and the store does not have yet. Loop thread only, except where a worker is
    named."""

    def __init__(
        self,
        tree: LiveTree,
        store: RecordStore,
        workers: Workers,
        nursery: trio.Nursery,
        guard: SpaceGuard,
        failure: Failure,
    ) -> None:
        self._tree: Final = tree
        self._store: Final = store
        self._workers: Final = workers
        self._nursery: Final = nursery
        self._guard: Final = guard
        self._failure: Final = failure
        self._chunker: Final = Chunker(store.config.chunker)
        self._chunk_min_bytes: Final = store.config.chunker.min_bytes
        self._record_cost: Final = HEADER_BYTES + store.claim_cost(0, 1)
        self._room: Final = Bank(store, guard, STEP_BYTES)
        self._lease: Lease = store.lease()
        self._closed: set[FileId] = set()
        """Files with bytes in memory that nobody has open: they need not wait for more."""
        self._admitted_cost = 0
        self._admitted_bytes = 0
        """Of writes that have their room, on disk and in memory, and are not in the tree yet."""
        self._flying_bytes = 0
        self._flying = 0
        self._last_landed = trio.Event()
        self._last_landed.set()
        self._memory: Final = trio.lowlevel.ParkingLot()
        self._short = 0
        """Jobs that found no room and wait."""
        self._patience_ends_s = float("inf")

    # --- admission ----------------------------------------------------------------------------------------------

    def sized(self, length: int) -> Admitted:
        """What a write of `length` bytes needs; nothing is taken yet."""
        records = 1 + length // self._chunk_min_bytes
        return Admitted(length, records, self._cost(length, records))

    def try_admit(self, wanted: Admitted) -> bool:
        """Takes room for a write where nobody has to wait for it, on disk and in memory; until `took_in`."""
        held = self._tree.run_bytes + self._admitted_bytes
        if (held and held + wanted.length > MEMORY_BYTES_MAX) or self._guard.queueing:
            return False
        if not self._room.try_take(wanted.cost):
            return False
        self._admitted_cost += wanted.cost
        self._admitted_bytes += wanted.length
        return True

    @contextmanager
    def admitting(self, wanted: Admitted) -> Iterator[None]:
        """While a write gets its room and may wait for it; the bytes count as held in memory from the end of it on,
        until `took_in`. A write that is refused on the way gives everything back."""
        self._admitted_cost += wanted.cost
        try:
            yield
        except BaseException:
            self._admitted_cost -= wanted.cost
            self._settle()
            raise
        self._admitted_bytes += wanted.length

    async def take_room(self, admitted: Admitted) -> None:
        """Room on disk, in line with all others who need some. Raises NoSpaceError."""
        if self._guard.queueing or not self._room.try_take(admitted.cost):
            self._settle()
            await self._room.take(admitted.cost)

    async def wait_for_memory(self, admitted: Admitted) -> None:
        """Until the bytes fit below the bound. No deadline for a slow disk; for a full one there is: NoSpaceError."""
        while (held := self._tree.run_bytes + self._admitted_bytes) and held + admitted.length > MEMORY_BYTES_MAX:
            self.pump(force=True)
            with trio.move_on_after(self._guard.deadline_s) as patience:
                await self._memory.park()
            self._failure.check()
            if patience.cancelled_caught and self._short:
                raise _waiting(admitted.length)

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
        records = runs + idle // self._chunk_min_bytes
        self._room.settle(self._cost(idle, records) + self._admitted_cost)

    def _cost(self, length: int, records: int) -> int:
        return length + records * self._record_cost

    # --- which files wait for more bytes ------------------------------------------------------------------------

    def opened(self, file_id: FileId) -> None:
        """More bytes may come."""
        self._closed.discard(file_id)

    def closed(self, file_id: FileId) -> None:
        """Nobody has the file open any more: what is in memory of it goes with the next job."""
        if file_id in self._tree.with_runs:
            self._closed.add(file_id)
            self.pump()

    def next_lease(self) -> Lease:
        """From now on what is stored goes under a new lease; returns the one up to here."""
        lease, self._lease = self._lease, self._store.lease()
        return lease

    # --- flying -------------------------------------------------------------------------------------------------

    def pump(self, *, force: bool = False) -> None:
        """Starts jobs if enough is in memory for one (or anything, with `force`)."""
        tree = self._tree
        while self._flying < JOBS_MAX and tree.with_runs:
            idle = tree.run_bytes - self._flying_bytes
            if idle < JOB_TRIGGER_BYTES and len(tree.with_runs) < JOB_TRIGGER_FILES and not force:
                return
            job = take(tree, self._chunker, final=False, closed=self._closed)
            if job is None:
                return
            self._launch(job)

    def take_all(self) -> trio.Event:
        """Starts jobs for everything in memory, however many; the event comes when all of it has landed."""
        while (job := take(self._tree, self._chunker, final=True)) is not None:
            self._launch(job)
        return self._last_landed

    async def wait_for(self, landed: trio.Event) -> None:
        """Waits for jobs as long as the disk takes for them. Raises NoSpaceError as soon as one waits for room."""
        while not landed.is_set():
            with trio.move_on_after(SHORT_LOOK_S):
                await landed.wait()
            if self._short and not landed.is_set():
                raise _waiting()

    def _launch(self, job: Job) -> None:
        self._closed.intersection_update(self._tree.with_runs)
        self._flying_bytes += job.data_bytes
        self._flying += 1
        before, self._last_landed = self._last_landed, trio.Event()
        records = job.runs + job.data_bytes // self._chunk_min_bytes
        claim = self._room.split(self._cost(job.data_bytes, records))
        self._nursery.start_soon(self._fly, job, claim, self._lease, before, self._last_landed)

    async def _fly(self, job: Job, claim: Claim | None, lease: Lease, before: trio.Event, landed: trio.Event) -> None:
        """Stores one job and lands it behind those before it. Never cancelled: its bytes are acknowledged."""
        with trio.CancelScope(shield=True):
            try:
                answers = await self._store_job(job, claim, lease)
                await before.wait()
                if not self._failure.happened:
                    land(self._tree, job, answers)
            except BallastError as error:
                self._failure.declare(error)
            except Exception as error:
                _log.exception("job.crashed")
                self._failure.declare(VolumeError(str(error)))
            finally:
                if claim is not None:
                    self._store.forfeit(claim)
                self._flying_bytes -= job.data_bytes
                self._flying -= 1
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
                self._short += 1
                try:
                    await self._guard.relief(error)
                except NoSpaceError:
                    await trio.sleep(RETRY_S)
                finally:
                    self._short -= 1

    def _run_job(self, job: Job, claim: Claim | None, lease: Lease) -> list[tuple[Piece, ...]]:
        """On a worker thread."""
        with self._store.without_climbing():
            return run_job(job, self._store, self._chunker, lease, claim)

    # --- the end ------------------------------------------------------------------------------------------------

    def end_soon(self) -> None:
        """The mount ends: what finds no room within the deadline from now on will not find any."""
        self._patience_ends_s = trio.current_time() + self._guard.deadline_s

    def close(self) -> None:
        """Gives back room and lease. After the last job."""
        self._room.close()
        self._lease.close()


def _waiting(needed_bytes: int = 0) -> NoSpaceError:
    return NoSpaceError("The disk is full, and what was written before waits for room.", needed_bytes)
