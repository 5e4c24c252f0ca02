"""The writable half of a mount: live tree, flusher and commits put together; what the committer and mount see of it.

What an `await` may change is said where it is: `_commit` freezes in the same step in which the journal captures, and
installs the new root in one step afterwards; writers go on in between.
"""

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import trio

from fusefs.failure import Failure
from fusefs.flusher import Flusher, PendingFlush
from fusefs.jobs import Jobs
from fusefs.live_neighbours import LiveNeighbours
from fusefs.live_ops import LiveOps
from fusefs.neighbours import Neighbours
from fusefs.readpath import ReadPath
from fusefs.snapshots import is_of_live
from fusefs.spaceguard import DEADLINE_DEFAULT_S, NAMES_WAIT_S, SpaceGuard
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import BallastError, NoSpaceError
from repository.format.catalog import Slot, SnapshotKind
from repository.ids import FileId, PackIndex
from repository.journal import JournalWriter
from repository.leases import Lease
from repository.live.filedata import Span
from repository.live.head import Frozen, HeadCommitter, Outcome, Recovery
from repository.live.node import Node
from repository.live.tree import Base
from repository.policy.schedule import Activity
from repository.repo import Repository
from repository.units import NS_PER_S

_log = logging.getLogger(__name__)

FLUSH_EVERY_S: Final = 4.0
"""With the time that a round takes, what is written without fsync survives a crash after five seconds."""
OVERLAY_NODES_MAX: Final = 25_000
"""Changed inodes in memory, at roughly 1.5 kB each; beyond it the head is committed (no snapshot comes of it)."""
NAMES_MAX: Final = 200_000
"""Changes of names in memory, some 150 bytes each: files made and removed again leave nothing else behind."""
LOOK_EVERY_S: Final = 0.25
"""How often a change is looked for: short beside --settle, and nothing beside a wake-up a second."""
TURN_WAIT_S: Final = 2.0
"""How long a climb waits for a commit that is under way: several times what one takes."""
FREE_AFTER_S: Final = 1.0
"""While room is short, what was removed is committed once nothing more has been removed for so long: the end of an
`rm -r`, in the usual case."""


@dataclass(frozen=True, slots=True)
class _Generation:
    """What is fixed at the moment of a freeze; `flush` has its mark when the generation's journal is durable."""

    nodes: dict[FileId, Node]
    gone_links: set[FileId]
    leases: tuple[Lease, Lease]
    next_file_id: FileId
    floor: PackIndex
    flush: PendingFlush
    removals: int


class LiveSession:
    """One writable mount's live tree. Loop thread only, except where a worker is named."""

    def __init__(
        self,
        repository: Repository,
        reads: ReadPath,
        trees: Trees,
        neighbours: Neighbours,
        workers: Workers,
        nursery: trio.Nursery,
        write_deadline_s: float = DEADLINE_DEFAULT_S,
    ) -> None:
        """Opens the head, replaying the journal: reads and may write; before anything is served."""
        self._head: Final = HeadCommitter(repository)
        self.tree, self.recovery, mark = self._head.open()
        self.tree.reader = trees.reader
        self._repository: Final = repository
        self._store: Final = repository.store
        self._journal: Final = JournalWriter(repository.store, repository.clock, mark)
        self._workers: Final = workers
        self.guard: Final = SpaceGuard(repository.store, repository.recovery, workers, nursery, write_deadline_s)
        self.guard.commit_head = self._commit_quietly
        self._failure: Final = Failure(repository.store)
        self.jobs: Final = Jobs(self.tree, repository.store, workers, nursery, self.guard, self._failure)
        self.flusher: Final = Flusher(
            self.tree, repository.store, self._journal, workers, nursery, self.guard, self.jobs, self._failure
        )
        self.ops: Final = LiveOps(
            self.tree,
            trees,
            reads,
            LiveNeighbours(self.tree, trees, neighbours),
            self.jobs,
            self.flusher,
            self.guard,
        )
        self._activity = Activity()
        self._seen_changes = self.tree.changes
        self._changed = trio.Event()
        self._turn = trio.Lock()
        self._frozen: _Generation | None = None
        """Ended and not yet the committed root: under way, or kept after a failure to be written first next time."""
        self._orphans: Lease = repository.store.lease()
        if self.recovery.changes or self._is_unlisted():
            self._mark_changed()

    # --- what the committer sees --------------------------------------------------------------------------------

    def activity(self) -> Activity:
        """What changed and was committed so far, on trio's clock."""
        if self.tree.changes != self._seen_changes:
            self._seen_changes = self.tree.changes
            now_s = trio.current_time()
            seen = self._activity
            self._activity = replace(
                seen,
                last_change_s=now_s,
                changed_since_s=now_s if seen.changed_since_s is None else seen.changed_since_s,
                unsaved_since_s=now_s if seen.unsaved_since_s is None else seen.unsaved_since_s,
            )
        return self._activity

    def _is_unlisted(self) -> bool:
        """Whether the head was committed after the last snapshot of `live`: a mount ended on a full disk."""
        head = self._repository.manifest(self._repository.catalog.head())
        made = [slot.time_ns for slot in self._repository.catalog.slots() if is_of_live(slot)]
        return head is not None and head.time_ns > max(made, default=0)

    def _is_listed_as_it_is(self) -> bool:
        """Whether nothing changed since the last snapshot of `live`, or ever where there is none."""
        activity = self.activity()
        return activity.changed_since_s is None and activity.unsaved_since_s is None and self._frozen is None

    def _mark_changed(self) -> None:
        """The head may hold something that no listed snapshot does."""
        now_s = trio.current_time()
        self._activity = replace(self._activity, last_change_s=now_s, changed_since_s=now_s)

    async def wait_for_change(self) -> None:
        """Returns soon after the next change of `live`, or at once where one is in no listed snapshot."""
        if self.activity().changed_since_s is None:
            self._changed = trio.Event()
            await self._changed.wait()

    def may_commit(self) -> bool:
        """Whether a snapshot that nobody asked for may be made now: not while room is short, when it would only keep
        what its owner is about to remove."""
        return self.guard.calm

    async def commit(self, kind: SnapshotKind, name: str | None) -> Slot | None:
        """Makes `live` as it is now a snapshot; durable on return.

        None where it would equal the last listed one and no name was asked for. Raises BallastError; where room is
        short, NoSpaceError within a second if `name` was asked for.
        """
        self._failure.check()
        patience_s = None
        if name is not None:
            patience_s = NAMES_WAIT_S  # the kernel keeps snapshots/ locked meanwhile
            if not self.guard.calm:
                await self.guard.relief(NoSpaceError("The disk is full: no snapshot can be made now."), patience_s)
        return await self._commit(kind, name, patience_s)

    async def checkpoint(self) -> None:
        """Commits the head without a snapshot: memory is free afterwards, the journal starts anew."""
        await self._commit(None, None, None)

    async def _commit_quietly(self) -> None:
        """For a climb: what was removed becomes garbage. It goes on without, if that is refused, or if a commit that
        is under way takes long (it may be waiting for this climb)."""
        with trio.move_on_after(TURN_WAIT_S) as patience:
            await self._turn.acquire()
        if patience.cancelled_caught:
            return
        try:
            with trio.CancelScope(shield=True):
                await self._commit_once(None, None)
        except BallastError as error:
            _log.info("commit.not_before_climb", extra={"error": str(error)})
        finally:
            self._turn.release()

    async def _commit(self, kind: SnapshotKind | None, name: str | None, patience_s: float | None) -> Slot | None:
        async with self._turn:
            before = self.activity()
            listed = kind in _LISTED
            self._activity = replace(
                before, unsaved_since_s=None, changed_since_s=None if listed else before.changed_since_s
            )
            try:
                with trio.CancelScope(shield=True):
                    slot = await self._commit_or_climb(kind, name, patience_s)
            except BallastError:
                self._activity = replace(
                    self.activity(),
                    changed_since_s=before.changed_since_s,
                    unsaved_since_s=before.unsaved_since_s,
                    failed_s=trio.current_time(),
                )
                raise
            listed_s = trio.current_time() if listed else before.last_listed_s
            self._activity = replace(self.activity(), failed_s=None, last_listed_s=listed_s)
            return slot

    async def _commit_or_climb(
        self, kind: SnapshotKind | None, name: str | None, patience_s: float | None
    ) -> Slot | None:
        """A commit draws on the headroom. If that is used up, one climb may make room for it."""
        try:
            return await self._commit_once(kind, name)
        except NoSpaceError as error:
            await self.guard.relief(error, patience_s, commit_first=False)
        return await self._commit_once(kind, name)

    async def _commit_once(self, kind: SnapshotKind | None, name: str | None) -> Slot | None:
        if self._frozen is not None:
            await self._write(None, None)
        await self.flusher.checkpoint(self._freeze)
        return await self._write(kind, name)

    def _freeze(self, flush: PendingFlush) -> None:
        """The step without an `await`: from here on writers are in the next generation."""
        floor = self._journal.floor()  # first: it asks the disk, and an error must leave nothing frozen
        nodes, gone = self.tree.freeze()
        leases = self.flusher.next_generation()
        removals = self.guard.removals
        self._frozen = _Generation(nodes, gone, leases, self.tree.next_file_id, floor, flush, removals)

    async def _write(self, kind: SnapshotKind | None, name: str | None) -> Slot | None:
        """Writes and installs the frozen generation. One that fails is kept, and goes first the next time."""
        generation = self._frozen
        assert generation is not None
        if generation.flush.mark is None:
            await self.flusher.flush_once()
        mark = generation.flush.mark
        assert mark is not None
        nodes, gone = generation.nodes, generation.gone_links
        frozen = Frozen(nodes, gone, generation.leases, generation.next_file_id, mark, generation.floor)
        orphans = [node.data.spans(0, node.size) for node in self.tree.orphans.values() if node.data is not None]
        outcome = await self._workers.slow(self._store_commit, orphans, frozen, self.tree.base, kind, name)
        self.tree.install(outcome.base, outcome.inodes)
        self._frozen = None
        self.guard.committed(generation.removals)
        for lease in frozen.leases:
            lease.close()
        if not self.tree.orphans:
            self._orphans.close()
            self._orphans = self._store.lease()
        return outcome.slot

    def _store_commit(
        self, orphans: list[list[Span]], frozen: Frozen, base: Base, kind: SnapshotKind | None, name: str | None
    ) -> Outcome:
        """On a worker thread. What has no other room comes out of the headroom; climbing is the guard's business."""
        with self._store.closing():
            self._head.hold(orphans, self._orphans)
            return self._head.commit(frozen, base, kind, name)

    # --- tasks and the end --------------------------------------------------------------------------------------

    async def flush_now_and_then(self) -> None:
        """Makes what was acknowledged durable, again and again, and keeps the overlay small. Runs until cancelled."""
        flushed_s = trio.current_time()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if self.activity().changed_since_s is not None:
                self._changed.set()
            try:
                if self._must_commit():
                    await self.checkpoint()
                elif trio.current_time() - flushed_s >= FLUSH_EVERY_S:
                    flushed_s = trio.current_time()
                    await self.flusher.sync()
            except NoSpaceError as error:
                _log.info("flush.no_space", extra={"error": str(error)})
                await trio.sleep(FLUSH_EVERY_S)
            except BallastError as error:
                _log.error("flush.failed", extra={"error": str(error)})
                await trio.sleep(FLUSH_EVERY_S)

    def _must_commit(self) -> bool:
        if len(self.tree.overlay) > OVERLAY_NODES_MAX or self.tree.names_changed > NAMES_MAX:
            return True
        return not self.guard.calm and self.guard.has_removals and self.guard.quiet_s() >= FREE_AFTER_S

    async def stop(self) -> None:
        """The last commit; nothing is admitted any more. Raises BallastError where it could not be made durable.

        Who still writes gets the error that the end of the mount will give him a moment later. On a full disk the head
        is committed without a snapshot, which the next mount makes. Where nothing changed nothing is written.
        """
        self.tree.ended = True
        self.jobs.end_soon()
        if self._is_listed_as_it_is():
            self._failure.check()
        elif self.guard.calm:
            await self.commit(SnapshotKind.IMPLICIT, None)
        else:
            await self.checkpoint()
        self.flusher.close()
        self.jobs.close()
        self._orphans.close()
        await self._workers.slow(self._repository.marks.unmounted)


_LISTED: Final = (SnapshotKind.IMPLICIT, SnapshotKind.NAMED)


def recovery_lines(recovery: Recovery) -> list[str]:
    """What `mount` says of the last mount, where that did not end well."""
    if recovery.was_clean:
        return []
    ended = recovery.last_ns or recovery.mounted_ns
    when = datetime.fromtimestamp(ended / NS_PER_S).astimezone()
    day = "" if when.date() == datetime.now().astimezone().date() else f"{when:%Y-%m-%d} "
    found = f"Recovered {recovery.changes:,} changes; up to 5 s may be missing."
    return [f"Last mount ended without unmounting ({day}{when:%H:%M}). {found}"]
