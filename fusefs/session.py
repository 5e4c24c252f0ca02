"""The writable half of a mount: live tree, flusher and commits put together; what the committer and mount see of it.

What an `await` may change is said where it is: `_commit` freezes in the same step in which the journal captures, and
installs the new root in one step afterwards; writers go on in between.
"""

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import trio

from fusefs.flusher import Flusher
from fusefs.live_ops import LiveOps
from fusefs.readpath import ReadPath
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import BallastError
from repository.format.catalog import Slot, SnapshotKind
from repository.format.journal import JournalMark
from repository.ids import FileId, PackIndex
from repository.journal import JournalWriter
from repository.leases import Lease
from repository.live.head import Frozen, HeadCommitter, Recovery
from repository.live.node import Node
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


@dataclass(frozen=True, slots=True)
class _Generation:
    """What is fixed at the moment of a freeze."""

    nodes: dict[FileId, Node]
    gone_links: set[FileId]
    leases: tuple[Lease, Lease]
    next_file_id: FileId
    floor: PackIndex


class LiveSession:
    """One writable mount's live tree. Loop thread only, except where a worker is named."""

    def __init__(
        self, repository: Repository, reads: ReadPath, trees: Trees, workers: Workers, nursery: trio.Nursery
    ) -> None:
        """Opens the head, replaying the journal: reads and may write; before anything is served."""
        self._head: Final = HeadCommitter(repository)
        self.tree, self.recovery, mark = self._head.open()
        self.tree.reader = trees.reader
        self._repository: Final = repository
        self._store: Final = repository.store
        self._journal: Final = JournalWriter(repository.store, repository.clock, mark)
        self._workers: Final = workers
        self.flusher: Final = Flusher(self.tree, repository.store, self._journal, workers, nursery)
        self.ops: Final = LiveOps(self.tree, trees, reads, self.flusher)
        self._activity = Activity()
        self._seen_changes = self.tree.changes
        self._changed = trio.Event()
        self._turn = trio.Lock()
        self._stuck: Frozen | None = None
        self._orphans: Lease = repository.store.lease()
        if self.recovery.changes:
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

    def _mark_changed(self) -> None:
        """The head holds something that no listed snapshot does (after a recovery)."""
        now_s = trio.current_time()
        self._activity = replace(self._activity, last_change_s=now_s, changed_since_s=now_s)

    async def wait_for_change(self) -> None:
        """Returns soon after the next change of `live`, or at once where one is in no listed snapshot."""
        if self.activity().changed_since_s is None:
            self._changed = trio.Event()
            await self._changed.wait()

    async def commit(self, kind: SnapshotKind, name: str | None) -> Slot | None:
        """Makes `live` as it is now a snapshot; durable on return.

        None where it would equal the last listed one and no name was asked for. Raises BallastError.
        """
        return await self._commit(kind, name)

    async def checkpoint(self) -> None:
        """Commits the head without a snapshot: memory is free afterwards, the journal starts anew."""
        await self._commit(None, None)

    async def _commit(self, kind: SnapshotKind | None, name: str | None) -> Slot | None:
        async with self._turn:
            before = self.activity()
            listed = kind in _LISTED
            self._activity = replace(
                before, unsaved_since_s=None, changed_since_s=None if listed else before.changed_since_s
            )
            try:
                with trio.CancelScope(shield=True):
                    if self._stuck is not None:
                        await self._write(self._stuck, None, None)
                    slot = await self._write(await self._freeze(), kind, name)
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

    async def _freeze(self) -> Frozen:
        """Ends the generation; returns when it is stored and its journal durable."""
        generation = await self.flusher.checkpoint(self._generation)
        nodes, gone = generation.nodes, generation.gone_links
        mark: JournalMark = self._journal.mark
        return Frozen(nodes, gone, generation.leases, generation.next_file_id, mark, generation.floor)

    def _generation(self) -> _Generation:
        """The step without an `await`: from here on writers are in the next generation."""
        nodes, gone = self.tree.freeze()
        return _Generation(nodes, gone, self.flusher.next_generation(), self.tree.next_file_id, self._journal.floor())

    async def _write(self, frozen: Frozen, kind: SnapshotKind | None, name: str | None) -> Slot | None:
        """Writes and installs a generation. One that fails is kept, and goes first the next time."""
        self._stuck = frozen
        orphans = [node.data.spans(0, node.size) for node in self.tree.orphans.values() if node.data is not None]
        await self._workers.slow(self._head.hold, orphans, self._orphans)
        outcome = await self._workers.slow(self._head.commit, frozen, self.tree.base, kind, name)
        self.tree.install(outcome.base, outcome.inodes)
        self._stuck = None
        for lease in frozen.leases:
            lease.close()
        if not self.tree.orphans:
            self._orphans.close()
            self._orphans = self._store.lease()
        return outcome.slot

    # --- tasks and the end --------------------------------------------------------------------------------------

    async def flush_now_and_then(self) -> None:
        """Makes what was acknowledged durable, again and again, and keeps the overlay small. Runs until cancelled."""
        flushed_s = trio.current_time()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            if self.activity().changed_since_s is not None:
                self._changed.set()
            try:
                if len(self.tree.overlay) > OVERLAY_NODES_MAX or self.tree.names_changed > NAMES_MAX:
                    await self.checkpoint()
                elif trio.current_time() - flushed_s >= FLUSH_EVERY_S:
                    flushed_s = trio.current_time()
                    await self.flusher.sync()
            except BallastError as error:
                _log.error("flush.failed error=%s", error)
                await trio.sleep(FLUSH_EVERY_S)

    async def stop(self) -> None:
        """The last commit; nothing is admitted any more. Raises BallastError where it could not be made durable.

        Who still writes gets the error that the end of the mount will give him a moment later.
        """
        self.tree.ended = True
        await self.commit(SnapshotKind.IMPLICIT, None)
        self.flusher.close()
        self._orphans.close()
        await self._workers.slow(self._repository.mark_unmounted)


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
