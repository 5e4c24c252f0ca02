"""The facade: one repository, opened for reading or for writing, and everything that can be asked of it.

Composes the parts and holds no rule of its own. Opening for writing takes the lock, carries out what a crash left in
the intent, seals packs of dead processes, mends the catalog and gives the reserve back what it lacks, in this order.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from repository.catalog import Catalog
from repository.collect import Collector, CollectReport
from repository.configfile import read_config
from repository.errors import BallastError, NoSpaceError
from repository.events import EventRing
from repository.format.catalog import Head, Slot, SnapshotKind
from repository.format.config import Config
from repository.format.inode import Inode, NodeKind
from repository.format.journal import JournalMark
from repository.format.manifest import Manifest, decode_manifest
from repository.founding import found
from repository.ids import NO_ID, ROOT_FILE_ID, PackIndex
from repository.intent import IntentFile
from repository.leases import Lease
from repository.ledger import Claim
from repository.lock import WriteLock, current_holder
from repository.marks import Marks
from repository.policy.collect import Safety
from repository.policy.rungs import Mode
from repository.ports import Clock, Progress, SpaceProbe
from repository.publish import Publisher, SnapshotWish, Tree
from repository.recovery import Recovery
from repository.snapshots import Snapshots
from repository.space import RESERVE_DEFAULT_BYTES, Space, reserve_of
from repository.status import Status, gather
from repository.steps import Parts
from repository.storage.calls import Calls, SystemClock
from repository.storage.room import RoomProbe
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.trees.reader import RecordCache, TreeReader
from repository.units import MIB

if TYPE_CHECKING:
    from repository.check.report import CheckReport

log = logging.getLogger(__name__)

CACHE_BYTES: Final = 32 * MIB
"""Decoded tree segments that the facade's own reader keeps: some hundred directories of ordinary size."""
ROOT_MODE: Final = 0o755

__all__ = ["Repository", "SnapshotWish", "Tree"]


class Repository:
    """A repository. Thread safe; a context manager. Made by `open`; `init` makes the files."""

    def __init__(
        self,
        *,
        volume: Volume,
        config: Config,
        store: RecordStore,
        catalog: Catalog,
        events: EventRing,
        clock: Clock,
        lock: WriteLock | None,
        probe: SpaceProbe | None = None,
    ) -> None:
        self.path: Final = volume.root
        self.volume: Final = volume
        self.config: Final = config
        self.store: Final = store
        self.catalog: Final = catalog
        self.events: Final = events
        self.clock: Final = clock
        self.lock: Final = lock
        self.cache: Final = RecordCache(store, CACHE_BYTES, inline=True)
        self.reader: Final = TreeReader(self.cache)
        self.space: Final = Space(volume, config, probe or RoomProbe(volume), _PackUsage(store), clock)
        self.snapshots: Final = Snapshots(catalog, events, clock)
        self.publisher: Final = Publisher(store, catalog, self.snapshots, clock)
        self.collector: Final = Collector(
            volume=volume,
            config=config,
            store=store,
            catalog=catalog,
            snapshots=self.snapshots,
            events=events,
            clock=clock,
        )
        self.recovery: Final = Recovery(Parts(store, self.space, self.collector, self.snapshots, events, clock))
        self.marks: Final = Marks(catalog, self.snapshots, store, self.collector.planner, clock, lock)
        self._closed = False

    # --- making, opening, closing ------------------------------------------------------------------------------

    @classmethod
    def init(
        cls,
        path: Path,
        *,
        reserve_bytes: int = RESERVE_DEFAULT_BYTES,
        headspace_bytes: int | None = None,
        quota_bytes: int | None = None,
        clock: Clock | None = None,
        calls: Calls | None = None,
    ) -> Config:
        """Make a repository in `path` (missing or empty). Raises UsageError, NoSpaceError, VolumeError."""
        return found(
            Volume(path, calls),
            reserve_bytes=reserve_bytes,
            headspace_bytes=headspace_bytes,
            quota_bytes=quota_bytes,
            clock=clock or SystemClock(),
        )

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        writable: bool,
        clock: Clock | None = None,
        calls: Calls | None = None,
        probe: SpaceProbe | None = None,
    ) -> Self:
        """Open what `init` made. For reading it writes nothing and takes no lock.

        `probe` None: the volume itself is asked about its room.

        Raises NoRepositoryError, LockedError, DamagedError (a lost head), VolumeError.
        """
        at = clock or SystemClock()
        volume = Volume(path, calls)
        config = read_config(volume)
        with ExitStack() as stack:
            lock = None
            if writable:
                lock = WriteLock.take(volume, at)
                stack.callback(lock.release)
                IntentFile(volume, config.seed).replay()
            catalog = Catalog.open(volume, config.seed, writable=writable)
            stack.callback(catalog.close)
            events = EventRing.open(volume, config.seed, at, writable=writable)
            stack.callback(events.close)
            caches = not writable or reserve_of(volume, config).whole
            store = RecordStore.open(volume, config, writable=writable, clock=at, caches=caches)
            stack.callback(store.close)
            repository = cls(
                volume=volume,
                config=config,
                store=store,
                catalog=catalog,
                events=events,
                clock=at,
                lock=lock,
                probe=probe,
            )
            if writable:
                catalog.heed(store)
                repository.space.ensure_reserve()
                store.guard_growth(repository.recovery.guard)
                store.on_no_space(repository.recovery.climb)
                mode = repository.recovery.look(prepare=False)
                store.allow_caches(mode is Mode.NORMAL)
            stack.pop_all()
        return repository

    def close(self) -> None:
        """Make everything durable and let go: packs, then the catalog, the lock last. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            if self.lock is not None:
                stack.callback(self.lock.release)
            stack.callback(self.events.close)
            stack.callback(self.catalog.close)
            stack.callback(self.store.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.lock is not None and not self._closed:
            self._finish()
        self.close()

    def _finish(self) -> None:
        """What a mount does in the background, at the end of a command: the rest of a recovery, a collection that is
        due. Neither is worth an error."""
        try:
            self.recovery.finish()
            if self.recovery.take_due_collection():
                self.recovery.collect(Safety.FULL, hurry=True)
        except BallastError as error:
            log.warning("repository.not_finished", extra={"error": str(error)})

    def refresh(self) -> None:
        """Beside a writer: see what it changed since. Nothing where this process is the writer."""
        if self.lock is None:
            self.catalog.reload()
            self.store.refresh()

    @property
    def writable(self) -> bool:
        """Whether this process may change the repository."""
        return self.lock is not None

    # --- snapshots ---------------------------------------------------------------------------------------------

    def listed(self) -> list[Slot]:
        """Snapshots as shown, by time, then id."""
        return self.snapshots.listed()

    def trash(self) -> list[Slot]:
        """Deleted ones that are not collected yet."""
        return self.snapshots.trash()

    def find(self, wanted: str) -> Slot:
        """By name, `latest` or id. Raises NoSuchSnapshotError."""
        return self.snapshots.find(wanted)

    def latest(self) -> Slot | None:
        """The last snapshot of `live`."""
        return self.snapshots.latest()

    def manifest(self, root: Slot | Head) -> Manifest | None:
        """The manifest of a snapshot or of the head; None for a head without a commit. Raises DamagedError."""
        if root.manifest == NO_ID:
            return None
        return decode_manifest(self.store.read(root.manifest).payload)

    def root(self, root: Slot | Head) -> Inode:
        """The root directory; an empty one for a head without a commit. Raises DamagedError."""
        manifest = self.manifest(root)
        return manifest.root if manifest is not None else Inode(NodeKind.DIRECTORY, ROOT_FILE_ID, mode=ROOT_MODE)

    def using(self, slot: Slot) -> AbstractContextManager[None]:
        """While a new snapshot is made from `slot`, no collection takes it. Raises NoSuchSnapshotError."""
        return self.snapshots.need(slot.snapshot_id)

    def holding(self, slot: Slot) -> AbstractContextManager[None]:
        """While something is open in `slot`, no ordinary collection takes it."""
        return self.snapshots.hold(slot.snapshot_id)

    def publish(
        self,
        tree: Tree,
        lease: Lease,
        *,
        name: str | None = None,
        kind: SnapshotKind = SnapshotKind.NAMED,
        parent: Slot | None = None,
        pinned: bool = False,
        claim: Claim | None = None,
    ) -> Slot:
        """A snapshot of its own, durable on return: see `Publisher.publish`. Without `name` it is an implicit one."""
        self._ensure_slot()
        actual = SnapshotKind.IMPLICIT if name is None else kind
        return self.publisher.publish(tree, SnapshotWish(actual, name, pinned), lease, parent=parent, claim=claim)

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
        """The next head of `live`, durable on return: see `Publisher.commit`."""
        if wish is not None and wish.kind is SnapshotKind.NAMED:  # any other is left out where there is no slot
            self._ensure_slot()
        return self.publisher.commit(
            tree, lease, journal=journal, journal_floor=journal_floor, wish=wish, clean=clean, claim=claim
        )

    def _ensure_slot(self) -> None:
        """Before anything is written: a slot for one more snapshot. A full volume is climbed for it."""
        while True:
            try:
                return self.catalog.ensure_free_slot()
            except NoSpaceError as error:
                self.recovery.climb(error)

    def delete(self, slot: Slot) -> Slot:
        """To the trash; `recovery.deleted` collects it at once where the volume is full. Raises BusyError for a pinned
        one."""
        gone = self.snapshots.delete(slot)
        self.recovery.changed()
        return gone

    def undelete(self, slot: Slot, name: str | None = None) -> Slot:
        """Back from the trash. Raises NameTakenError."""
        return self.snapshots.undelete(slot, name)

    def rename(self, slot: Slot, name: str) -> Slot:
        """Another name. Raises UsageError, NameTakenError, BusyError for a pinned one."""
        return self.snapshots.rename(slot, name)

    def pin(self, slot: Slot) -> Slot:
        """Nothing deletes it."""
        return self.snapshots.pin(slot, pinned=True)

    def unpin(self, slot: Slot) -> Slot:
        """It may be deleted again."""
        return self.snapshots.pin(slot, pinned=False)

    # --- room and health ---------------------------------------------------------------------------------------

    def unique_bytes(self, slots: Sequence[Slot] | None = None) -> list[int]:
        """For each of `slots` (None: the listed ones) what only it keeps, as the volume would get it back."""
        return self.collector.unique_bytes(self.listed() if slots is None else slots)

    def reclaimable_bytes(self, deleting: Iterable[Slot] = ()) -> int:
        """What a collection without the window would free if `deleting` were deleted too; exact."""
        return self.collector.reclaimable_bytes(deleting)

    def gc(
        self, *, safety: Safety | None = Safety.FULL, dry_run: bool = False, progress: Progress | None = None
    ) -> CollectReport:
        """Collect: see `Collector.collect`. What came free goes to the reserve first.

        `safety` None: FULL, but NONE in an emergency (`Recovery.emergency`).
        """
        if safety is None:
            safety = Safety.NONE if self.recovery.emergency() else Safety.FULL
        if dry_run:
            return self.collector.collect(safety, dry_run=True, progress=progress)
        return self.recovery.collect(safety, progress)

    def check(self, *, read_data: bool = False, progress: Progress | None = None) -> "CheckReport":
        """Verify everything; never writes. Findings are in the report, not raised."""
        from repository.check.check import check_repository  # late: nobody else needs it

        return check_repository(self, read_data=read_data, progress=progress)

    def status(self) -> Status:
        """What `ballast status` shows."""
        return gather(self, current_holder(self.volume) if self.lock is None else self.lock.holder)


class _PackUsage:
    """The packs' blocks, for the quota."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def allocated_bytes(self) -> int:
        return self._store.spare_allocated_bytes() + sum(info.allocated_bytes for info in self._store.packs())
