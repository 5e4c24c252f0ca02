"""Making a written tree a snapshot, or the head of `live`: manifest, bitmap, sync, slot, sync.

Owner of the invariant *a listed snapshot is complete and durable*: its slot is written only after everything that it
needs was synced. The bitmap is what the parent needed and what was leased since: it errs towards keeping, and a
collection makes it exact.
"""

import logging
import socket
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pyroaring import BitMap64

from repository.bitmaps import BitmapReader, SnapshotBitmap, store_bitmap
from repository.catalog import Catalog
from repository.errors import DamagedError, NoSpaceError
from repository.format.catalog import Head, Slot, SlotState, SnapshotKind
from repository.format.inode import Inode, Totals
from repository.format.journal import JournalMark
from repository.format.manifest import Manifest, encode_manifest
from repository.format.record import RecordKind, Stored
from repository.ids import NO_ID, FileId, PackIndex, RecordId, SnapshotId
from repository.leases import Lease
from repository.ledger import Claim
from repository.policy.naming import distinct, implicit_name
from repository.ports import Clock
from repository.reach import walk
from repository.snapshots import LIVE_SOURCE, Snapshots
from repository.store import RecordStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that was written into the store: what a manifest says.

    `root`: the root directory's inode, with its listing. `totals` None: those of the root (right where nothing is
    hard-linked). `source`: `live`, or `host:path`. `time_ns`: of the snapshot.
    """

    root: Inode
    links: RecordId | None
    next_file_id: FileId
    time_ns: int
    source: str
    totals: Totals | None = None


@dataclass(frozen=True, slots=True)
class SnapshotWish:
    """How a new snapshot is called: `name` None takes the UTC time."""

    kind: SnapshotKind
    name: str | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class _Written:
    """Manifest and bitmap of a tree, durable."""

    manifest: Stored
    bitmap: Stored
    totals: Totals


class Publisher:
    """Publishes trees of one store in one catalog. Thread safe; commits of `live` come one at a time."""

    def __init__(self, store: RecordStore, catalog: Catalog, snapshots: Snapshots, clock: Clock) -> None:
        self._store = store
        self._catalog = catalog
        self._snapshots = snapshots
        self._clock = clock
        self._bitmaps = BitmapReader(store)
        self._bitmap_lock = threading.Lock()
        self._commit_lock = threading.Lock()

    def publish(
        self, tree: Tree, wish: SnapshotWish, lease: Lease, *, parent: Slot | None = None, claim: Claim | None = None
    ) -> Slot:
        """Make `tree` a snapshot of its own. Durable on return.

        `lease` holds every number that the tree needs beyond those of `parent`, from which unchanged parts were
        taken over without a look-up. Raises NameTakenError, UsageError, NoSpaceError, and what syncing raises.
        """
        if wish.name is not None:
            self._snapshots.require_name(wish.name)
        with ExitStack() as stack:
            if parent is not None:
                stack.enter_context(self._snapshots.need(parent.snapshot_id))
            while True:
                moves, now = self._standing(parent)
                written = self._write(tree, wish, lease, now, claim)
                with self._snapshots.lock:
                    if self._snapshots.moves == moves:  # else the bitmap speaks of places that are left
                        return self._add(self._slot(tree, wish, written), None)

    def commit(
        self,
        tree: Tree,
        lease: Lease,
        *,
        journal: JournalMark,
        journal_floor: PackIndex,
        wish: SnapshotWish | None,
        clean: bool = False,
        claim: Claim | None = None,
    ) -> Slot | None:
        """Make `tree` the head of `live`, and a snapshot where `wish` says so, in one durable step.

        `journal` is the last flush that the tree includes, `journal_floor` as asked at the freeze. `lease` holds
        every number that the tree needs beyond the present head's; close it after this returns. `clean`: nothing
        will be written after this until the next mount. Without room for another slot (see `Catalog.add`) a
        snapshot that nobody named is left for later, and the head written alone. Raises as `publish`.
        """
        if wish is not None and wish.name is not None:
            self._snapshots.require_name(wish.name)
        with self._commit_lock:
            while True:
                with self._snapshots.lock:
                    moves, before = self._snapshots.moves, self._catalog.head()
                written = self._write(tree, wish, lease, before, claim)
                now_ns = self._clock.now_ns()
                head = replace(
                    before,
                    manifest=written.manifest.id,
                    manifest_number=written.manifest.number,
                    bitmap=written.bitmap.id,
                    bitmap_number=written.bitmap.number,
                    exact=False,
                    commit_serial=before.commit_serial + 1,
                    journal=journal,
                    journal_floor=journal_floor,
                    next_file_id=tree.next_file_id,
                    committed_ns=now_ns,
                    clean=clean or before.clean,
                    unmounted_ns=now_ns if clean else before.unmounted_ns,
                )
                with self._snapshots.lock:
                    if self._snapshots.moves != moves:
                        continue
                    if wish is None:
                        self._catalog.set_head(head)
                        return None
                    try:
                        return self._add(self._slot(tree, wish, written), head)
                    except NoSpaceError as error:
                        if wish.kind is SnapshotKind.NAMED:
                            raise
                        _log.info("snapshot.postponed", extra={"reason": str(error)})
                        self._catalog.set_head(head)
                        return None

    def _standing(self, parent: Slot | None) -> tuple[int, Slot | None]:
        """The slot of `parent` as it is now: repacking gives slots other bitmaps. Its `need` is held."""
        with self._snapshots.lock:
            return self._snapshots.moves, None if parent is None else self._catalog.get(parent.snapshot_id)

    def numbers_of(self, root: Slot | Head) -> BitMap64:
        """A copy of what the bitmap of a root holds; found by walking where there is none."""
        with self._bitmap_lock:
            return self._bitmap_of(root)[1].numbers.copy()

    # --- writing -----------------------------------------------------------------------------------------------

    def _write(
        self, tree: Tree, wish: SnapshotWish | None, lease: Lease, parent: Slot | Head | None, claim: Claim | None
    ) -> _Written:
        base = None if parent is None or parent.manifest == NO_ID else parent
        totals = tree.root.totals if tree.totals is None else tree.totals
        manifest = Manifest(
            time_ns=tree.time_ns,
            source=tree.source,
            host=socket.gethostname(),
            kind=SnapshotKind.PROVISIONAL if wish is None else wish.kind,
            root=tree.root,
            links=tree.links,
            totals=totals,
            next_file_id=tree.next_file_id,
            parent=None if base is None else base.manifest,
            name="" if wish is None or wish.name is None else wish.name,
        )
        manifest_stored = self._store.put(RecordKind.MANIFEST, [encode_manifest(manifest)], lease, claim)[0]
        with self._bitmap_lock:
            before = None if base is None else self._bitmap_of(base)
            numbers = lease.snapshot()
            if before is not None:
                numbers |= before[1].numbers
            bitmap_stored, bitmap = store_bitmap(
                self._store,
                lease,
                manifest_stored.id,
                numbers,
                exact=False,
                parent=before if before is not None and before[0] != NO_ID else None,
                claim=claim,
            )
            self._bitmaps.remember(bitmap_stored.id, bitmap)
        self._store.sync()
        return _Written(manifest_stored, bitmap_stored, totals)

    def _bitmap_of(self, root: Slot | Head) -> tuple[RecordId, SnapshotBitmap]:
        """The bitmap of an earlier root; found by walking where it cannot be read."""
        if root.bitmap != NO_ID:
            try:
                return root.bitmap, self._bitmaps.read(root.bitmap, root=root.manifest)
            except DamagedError:
                pass  # a bitmap is only a shorter way to what walking tells
        numbers = walk(self._store, [root.manifest])
        return NO_ID, SnapshotBitmap(root.manifest, True, 0, numbers, BitMap64())

    def _slot(self, tree: Tree, wish: SnapshotWish, written: _Written) -> Slot:
        """The slot to add; under the snapshots' lock, so that its name is free."""
        taken = {slot.name for slot in self._snapshots.listed()}
        if wish.name is None:
            name = implicit_name(tree.time_ns, taken)
        elif wish.kind is SnapshotKind.NAMED:
            self._snapshots.require_name(wish.name)
            name = wish.name
        else:
            name = distinct(wish.name, taken)
        return Slot(
            snapshot_id=SnapshotId(0),
            state=SlotState.LIVE,
            name=name,
            time_ns=tree.time_ns,
            source=tree.source,
            kind=wish.kind,
            manifest=written.manifest.id,
            manifest_number=written.manifest.number,
            bitmap=written.bitmap.id,
            bitmap_number=written.bitmap.number,
            exact=False,
            totals=written.totals,
            next_file_id=tree.next_file_id,
            pinned=wish.pinned,
        )

    def _add(self, slot: Slot, head: Head | None) -> Slot:
        """Write the slot. The last provisional one of `live` gives its place to whatever of `live` comes next."""
        old = None
        if slot.source == LIVE_SOURCE:
            provisional = [
                one.snapshot_id
                for one in self._catalog.slots()
                if one.kind == SnapshotKind.PROVISIONAL and one.state == SlotState.LIVE
            ]
            old = provisional[-1] if provisional else None
        return self._catalog.add(slot, head=head, instead_of=old)
