"""The head of `live` on disk: loading it with its journal replayed, and committing a frozen generation.

A commit writes the tree records of what changed and hands the new root to the publisher, which writes the rest in its
order. It keeps every record that its generation stored or looked up (its lease): more than is reachable, never less.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from repository.errors import DamagedError, NoSpaceError
from repository.format.catalog import Slot, SnapshotKind
from repository.format.inode import Inode, NodeKind, Totals
from repository.format.journal import Flush, JournalMark
from repository.ids import ROOT_FILE_ID, FileId, PackIndex, RecordId, RecordNumber
from repository.journal import Pending, journal_floor, pending
from repository.leases import Lease
from repository.live.committing import build
from repository.live.filedata import Span
from repository.live.journaling import replay
from repository.live.node import Node
from repository.live.tree import Base, LiveTree
from repository.reach import locate_all
from repository.repo import ROOT_MODE, Repository, SnapshotWish, Tree
from repository.snapshots import LIVE_SOURCE
from repository.trees.writer import TreeWriter

_log = logging.getLogger(__name__)

_NO_ROOM: Final = (
    "The disk is full: live cannot be opened, as there is no room to commit what the last mount wrote. Nothing of it "
    "is lost. Free some room on this disk, or delete a snapshot (ballast snapshot list {path}); until then "
    "ballast mount --read-only shows the snapshots."
)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A generation to commit. All its bytes are stored, its journal up to `mark` is durable.

    `leases` hold every record that it stored or looked up: for the data and for the journal. `next_file_id` and `floor`
    are as of the freeze.
    """

    nodes: dict[FileId, Node]
    gone_links: set[FileId]
    leases: tuple[Lease, Lease]
    next_file_id: FileId
    mark: JournalMark
    floor: PackIndex


@dataclass(frozen=True, slots=True)
class Outcome:
    """A commit: the new base, the inodes as written, and the snapshot's slot where one was made."""

    base: Base
    inodes: dict[FileId, Inode]
    slot: Slot | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening the head found. `changes` were in the journal and are in the head now.

    `was_clean` False: the last mount, begun at `mounted_ns`, ended without unmounting; its last journal entry is of
    `last_ns` (0 for none). `stopped`: why the journal was not taken to its end.
    """

    was_clean: bool
    changes: int
    mounted_ns: int
    last_ns: int
    stopped: str | None


class HeadCommitter:
    """Reads and writes the head. One commit at a time; any thread."""

    def __init__(self, repository: Repository) -> None:
        self._repository: Final = repository
        self._store: Final = repository.store
        self._reader: Final = repository.reader
        latest = repository.latest()
        manifest = None if latest is None else repository.manifest(latest)
        self._listed = None if manifest is None else (manifest.root, manifest.links)
        """The root that the last listed snapshot of `live` holds."""

    # --- opening ------------------------------------------------------------------------------------------------

    def open(self) -> tuple[LiveTree, Recovery, JournalMark]:
        """The head with its journal replayed and committed, what that found, and where the journal goes on.

        The tree's reader is this object's own; the caller may give it another. Raises DamagedError, NoSpaceError.
        """
        head = self._repository.catalog.head()
        found = pending(self._store, head)
        recovery = Recovery(head.clean, found.changes, head.mounted_ns, found.last_ns, found.stopped)
        tree = self._replayed(found)
        if found.flushes:
            with self._store.lease() as lease, self._store.lease() as journal:
                lease.update(RecordNumber(number) for number in found.numbers)
                nodes, gone = tree.freeze()
                floor = journal_floor(self._store)
                frozen = Frozen(nodes, gone, (lease, journal), tree.next_file_id, found.mark, floor)
                outcome = self._commit_recovered(frozen, tree.base)
                tree.install(outcome.base, outcome.inodes)
        tree.places.clear()
        return tree, recovery, self._repository.marks.restart_journal()

    def _commit_recovered(self, frozen: Frozen, base: Base) -> Outcome:
        """On a full volume out of the headroom; only where that is used up, room is made for it.

        Raises NoSpaceError where there is no way: the journal stays as it is, and is replayed by the next opening.
        """
        try:
            return self.commit(frozen, base, None, None)
        except NoSpaceError:
            try:
                return self.commit(frozen, base, None, None, climb=True)
            except NoSpaceError as error:
                raise NoSpaceError(_NO_ROOM.format(path=self._repository.path), error.needed_bytes) from error

    def _replayed(self, found: Pending) -> LiveTree:
        flushes: Sequence[Flush] = found.flushes
        while True:
            tree = self._committed_tree()
            try:
                for flush in flushes:
                    replay(tree, flush)
            except DamagedError as error:
                _log.error("journal.refused", extra={"reason": str(error), "kept": len(flushes) - 1})
                flushes = flushes[:-1]
            else:
                return tree

    def _committed_tree(self) -> LiveTree:
        return LiveTree(self._reader, self.base(), self._repository.catalog.next_file_id(), self._repository.clock)

    def base(self) -> Base:
        """The committed root; an empty directory of the calling user where nothing was committed yet."""
        head = self._repository.catalog.head()
        manifest = self._repository.manifest(head)
        if manifest is not None:
            return Base(manifest.root, manifest.links, head.commit_serial)
        now = self._repository.clock.now_ns()
        root = Inode(
            NodeKind.DIRECTORY,
            ROOT_FILE_ID,
            mode=ROOT_MODE,
            uid=os.getuid(),
            gid=os.getgid(),
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
        )
        return Base(root, None, head.commit_serial)

    # --- committing ---------------------------------------------------------------------------------------------

    def commit(
        self, frozen: Frozen, base: Base, kind: SnapshotKind | None, name: str | None, *, climb: bool = False
    ) -> Outcome:
        """Writes the generation as the new head, and as a snapshot where `kind` says which; durable on return.

        A snapshot without a name that would equal the last listed one is not made. What is written has been
        acknowledged: where nothing can be allocated (with `climb`: and no room be made) it goes into the headroom.
        Raises NoSpaceError, SyncFailedError, DamagedError, NameTakenError; the head is the old one then.
        """
        with self._store.closing(climb=climb):
            return self._commit(frozen, base, kind, name)

    def _commit(self, frozen: Frozen, base: Base, kind: SnapshotKind | None, name: str | None) -> Outcome:
        lease = frozen.leases[0]
        writer = TreeWriter(self._store, self._reader, lease)
        written = build(frozen.nodes, frozen.gone_links, base, self._reader, writer)
        root = (written.root, written.links)
        wish = None if kind is None or (name is None and root == self._listed) else SnapshotWish(kind, name)
        links = self._reader.link_totals(written.links)
        tree = Tree(
            root=written.root,
            links=written.links,
            next_file_id=frozen.next_file_id,
            time_ns=self._repository.clock.now_ns(),
            source=LIVE_SOURCE,
            totals=Totals(written.root.totals.files, written.root.totals.content_bytes + links.content_bytes),
        )
        slot = self._repository.commit(tree, lease, journal=frozen.mark, journal_floor=frozen.floor, wish=wish)
        if slot is not None and slot.kind is not SnapshotKind.PROVISIONAL:
            self._listed = root
        serial = self._repository.catalog.head().commit_serial
        return Outcome(Base(written.root, written.links, serial), written.inodes, slot)

    def hold(self, orphans: Sequence[Sequence[Span]], lease: Lease) -> None:
        """Notes in `lease` every record that the bytes of files without a name are in."""
        ids: set[RecordId] = set()
        for spans in orphans:
            for span in spans:
                if isinstance(span.source, Inode):
                    ids.update(extent.chunk for extent in self._reader.extents(span.source, span.start, span.end))
                elif isinstance(span.source, tuple) and span.source.chunk is not None:
                    ids.add(span.source.chunk)
        lease.update(locate_all(self._store, sorted(ids)))
