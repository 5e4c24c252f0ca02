"""What must be kept: the union over every root of the repository. And making bitmaps exact.

Roots are the slots of the catalog (live, provisional, trash), the head, the pending journal, and open leases. A root
without a readable bitmap is walked; a tree that cannot be walked to its end is an error, and nothing is freed then.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from pyroaring import BitMap64

from repository.bitmaps import BitmapReader, SnapshotBitmap, store_bitmap
from repository.catalog import Catalog
from repository.counting import ReachCounter
from repository.errors import DamagedError, NoSpaceError
from repository.format.catalog import Head, Slot
from repository.format.journal import NO_MARK, referenced_trees
from repository.format.record import Stored
from repository.ids import NO_ID, RecordId, SnapshotId
from repository.journal import pending
from repository.leases import Lease
from repository.reach import RecordSource, walk
from repository.snapshots import LIVE_SOURCE
from repository.store import RecordStore

log = logging.getLogger(__name__)

Root = Slot | Head
EXACT_BATCH: Final = 64
"""Bitmaps made exact under one sync: the sync costs more than most of the walks."""


def bitmap_of(reader: BitmapReader, root: Root) -> SnapshotBitmap | None:
    """The bitmap of a root that has a tree; None where there is none that can be read: the tree has to be walked."""
    if root.bitmap == NO_ID:
        return None
    try:
        return reader.read(root.bitmap, root=root.manifest)
    except DamagedError as error:
        log.info("bitmap.unreadable", extra={"error": str(error)})
        return None


def root_numbers(store: RecordStore, reader: BitmapReader, root: Root) -> BitMap64:
    """Everything that `root` keeps: its tree, its manifest, its bitmap's own records. Raises DamagedError."""
    if root.manifest == NO_ID:
        return BitMap64()
    bitmap = bitmap_of(reader, root)
    return walk(store, [root.manifest]) if bitmap is None else bitmap.kept | BitMap64((root.manifest_number,))


def roots_by_source(catalog: Catalog) -> dict[str, list[Root]]:
    """Every slot, in time order within its source; the head comes last of `live`."""
    by_source: dict[str, list[Root]] = {}
    for slot in catalog.slots():
        by_source.setdefault(slot.source, []).append(slot)
    by_source.setdefault(LIVE_SOURCE, []).append(catalog.head())
    return by_source


def union_of(store: RecordStore, roots: Iterable[Root]) -> BitMap64:
    """The union over `roots`, in their order (in time order each bitmap's difference is read once)."""
    reader = BitmapReader(store)
    union = BitMap64()
    for root in roots:
        union |= root_numbers(store, reader, root)
    return union


def journal_numbers(store: RecordStore, head: Head) -> BitMap64:
    """What the pending journal keeps: its records, its chunks, and all below listings of nodes that moved.

    Where nothing was ever mounted there is none: no pack's directory has to be read to know that.
    """
    if head.clean and not head.mounted_ns and head.journal == NO_MARK:
        return BitMap64()
    waiting = pending(store, head)
    moved = {tree for flush in waiting.flushes for tree in referenced_trees(flush)}
    return waiting.numbers | walk(store, moved) if moved else waiting.numbers


def all_kept(store: RecordStore, catalog: Catalog, without: frozenset[SnapshotId] = frozenset()) -> BitMap64:
    """Everything that some root keeps, leases included, as if the snapshots `without` were gone."""
    kept = store.leased()
    slots = [slot for slot in catalog.slots() if slot.snapshot_id not in without]
    kept |= union_of(store, slots)
    head = catalog.head()
    kept |= union_of(store, [head])
    kept |= journal_numbers(store, head)
    return kept


def surely_kept(store: RecordStore, catalog: Catalog) -> BitMap64:
    """What has to be there: what roots with exact bitmaps need, and the journal.

    An inexact bitmap may also name what an emergency has collected, which knew better from walking trees.
    """
    head = catalog.head()
    every: list[Root] = [*catalog.slots(), head]
    roots = [root for root in every if root.exact or root.bitmap == NO_ID]
    return union_of(store, roots) | journal_numbers(store, head)


def unique_numbers(store: RecordStore, slots: Sequence[Slot], others: BitMap64) -> list[BitMap64]:
    """For each slot what it alone keeps: nothing of `others` (head, journal, leases) and of no other slot."""
    once, more = BitMap64(), others.copy()
    for numbers in _each(store, slots):
        more |= once & numbers
        once |= numbers
    once -= more
    return [numbers & once for numbers in _each(store, slots)]


def _each(store: RecordStore, slots: Sequence[Slot]) -> Iterable[BitMap64]:
    reader = BitmapReader(store)
    for slot in slots:
        yield root_numbers(store, reader, slot)


def make_exact(
    store: RecordStore,
    catalog: Catalog,
    lock: AbstractContextManager[object],
    stop: Callable[[], bool] = lambda: False,
    going: Collection[SnapshotId] = (),
) -> int:
    """Make the bitmap of every root exact, oldest first, but for the snapshots `going`. Returns how many were made.

    Walks what changed from one root to the next of its source. `lock` is the snapshots': held for each overwrite
    of slots. Ends early where there is no room for new bitmaps, or `stop` says so: bitmaps may err towards keeping.
    Raises DamagedError where a tree cannot be read.
    """
    done = 0
    for run in roots_by_source(catalog).values():
        staying = [root for root in run if not isinstance(root, Slot) or root.snapshot_id not in going]
        try:
            done += _Exactness(store, catalog, lock, stop).make(staying)
        except NoSpaceError as error:
            log.info("bitmap.no_room", extra={"error": str(error)})
            break
    return done


def next_counter(
    store: RecordSource,
    counter: ReachCounter | None,
    standing: RecordId | None,
    manifest: RecordId,
    pause: Callable[[], None] = lambda: None,
) -> ReachCounter:
    """What `manifest` needs, exactly: `counter`, which stands at `standing`, gone on; or a new one where it cannot.

    It cannot where a record was stored anew since it was counted: the count of its earlier place is never given back.
    """
    if counter is not None and standing is not None:
        counter.advance([standing], [manifest])
        if counter.exact:
            return counter
    counter = ReachCounter(store, pause)
    counter.add([manifest])
    return counter


class _Exactness:
    """Makes one source's roots exact, in time order, EXACT_BATCH of them under one sync."""

    def __init__(
        self, store: RecordStore, catalog: Catalog, lock: AbstractContextManager[object], stop: Callable[[], bool]
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._lock = lock
        self._stop = stop
        self._reader = BitmapReader(store)
        self._counter: ReachCounter | None = None
        self._standing: RecordId | None = None

    def make(self, run: Sequence[Root]) -> int:
        """Returns how many were inexact and are exact now."""
        todo = [root for root in run if not root.exact and root.manifest != NO_ID]
        done = 0
        before = self._before(run, todo)
        for start in range(0, len(todo), EXACT_BATCH):
            if self._stop():
                break
            with self._store.lease() as lease:
                made: list[tuple[Root, Stored]] = []
                for root in todo[start : start + EXACT_BATCH]:
                    stored, bitmap = self._bitmap(root, before, lease)
                    before = (stored.id, bitmap)
                    made.append((root, stored))
                self._store.sync()
                done += self._overwrite(made)
        return done

    def _before(self, run: Sequence[Root], todo: Sequence[Root]) -> tuple[RecordId, SnapshotBitmap] | None:
        """The last exact bitmap before the first that is not: what the first difference is made to."""
        first = next((index for index, root in enumerate(run) if todo and root is todo[0]), 0)
        for root in reversed(run[:first]):
            if root.exact and root.bitmap != NO_ID:
                try:
                    return root.bitmap, self._reader.read(root.bitmap, root=root.manifest)
                except DamagedError:
                    continue
        return None

    def _bitmap(
        self, root: Root, before: tuple[RecordId, SnapshotBitmap] | None, lease: Lease
    ) -> tuple[Stored, SnapshotBitmap]:
        self._counter = next_counter(self._store, self._counter, self._standing, root.manifest)
        self._standing = root.manifest
        numbers = self._counter.numbers
        return store_bitmap(self._store, lease, root.manifest, numbers, exact=True, parent=before)

    def _overwrite(self, made: Sequence[tuple[Root, Stored]]) -> int:
        """Give the slots their new bitmaps, those that still are what they were: durable on return."""
        with self._lock:
            standing = {slot.snapshot_id: slot for slot in self._catalog.slots()}
            head = self._catalog.head()
            new_head: Head | None = None
            slots: list[Slot] = []
            for root, stored in made:
                if isinstance(root, Slot):
                    now = standing.get(root.snapshot_id)
                    if now is not None and now.manifest == root.manifest:
                        slots.append(replace(now, bitmap=stored.id, bitmap_number=stored.number, exact=True))
                if root.manifest == head.manifest:
                    new_head = replace(head, bitmap=stored.id, bitmap_number=stored.number, exact=True)
            if slots or new_head is not None:
                self._catalog.change(slots, head=new_head)
            return len(slots)
