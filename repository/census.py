"""Who needs what, kept in memory while space is short: packs as columns, snapshots as lifetimes.

Made on demand and kept up to date by what changed: a pack that was sealed or removed, a snapshot that came or went. So
when a write has failed, what is garbage and what each snapshot would give back takes arithmetic, and no file is read.
Holds nothing that is not in the repository, and may be forgotten at any time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.bitmaps import BitmapReader, BitmapStep
from repository.catalog import Catalog
from repository.counting import ReachCounter
from repository.errors import DamagedError
from repository.format.catalog import Slot
from repository.ids import NO_ID, RecordId, SnapshotId
from repository.packcensus import ROW_BYTES, PackCensus
from repository.policy.columns import PackColumns
from repository.policy.gains import STAYS
from repository.policy.lifetimes import BYTES_PER_INTERVAL, Track
from repository.reach import walk
from repository.roots import Root, bitmap_of, next_counter, roots_by_source
from repository.storage.volume import Volume
from repository.store import RecordStore

FORGOTTEN_MAX: Final = 256
"""Positions of a run that belong to no snapshot any more, beyond as many as do, at which they are cleared away."""

Version = tuple[RecordId, RecordId]
"""A root as bitmaps know it: its manifest and its bitmap. A snapshot and the head often share one."""


class _StoppedError(Exception):
    """Looking closer has to end now."""


class _Needed(NamedTuple):
    """What a root needs: by its tree, and besides (its manifest, its bitmap's own records: the `chain`, None where the
    bitmap could not be read)."""

    tree: BitMap64
    besides: BitMap64
    chain: BitMap64 | None = None


class Run:
    """The roots of one source, oldest first, as lifetimes."""

    def __init__(self) -> None:
        self._tree, self._besides = Track(), Track()
        self._positions: dict[Version, int] = {}
        self.exact: set[Version] = set()
        """Those whose tree was walked in memory."""
        self._last: tuple[RecordId, BitMap64] | None = None
        """The bitmap that the last set is of, and its own records; None where it is of none."""

    def __contains__(self, root: Root) -> bool:
        return version_of(root) in self._positions

    def append(self, root: Root, needed: _Needed, *, exact: bool = False) -> None:
        """The next root; or one that is known, and needs less than was thought."""
        self._positions[version_of(root)] = self._tree.length
        self._tree.append(needed.tree)
        self._besides.append(needed.besides)
        self._last = None
        if exact:
            self.exact.add(version_of(root))

    def append_stored(self, store: RecordStore, reader: BitmapReader, root: Root) -> None:
        """The next root, as its bitmap tells; a difference to the last one is taken as it is. Raises DamagedError."""
        step = _step(reader, root)
        last = self._last
        if step is None or last is None or step.parent != last[0]:
            needed = needed_by(store, reader, root)
            self.append(root, needed)
            chain = needed.chain
        else:
            before = self._tree.standing
            self._positions[version_of(root)] = self._tree.length
            self._tree.change(step.added - step.removed - before, step.removed & before)
            chain = last[1] | step.own
            self._besides.append(chain | BitMap64((root.manifest_number,)))
        self._last = None if chain is None else (root.bitmap, chain)

    def tidy(self, roots: Sequence[Root]) -> None:
        """Forget what is none of `roots`, once that is much."""
        wanted = {version_of(root) for root in roots}
        if self._tree.length - len(wanted) <= len(wanted) + FORGOTTEN_MAX:
            return
        keep = np.zeros(self._tree.length, np.bool_)
        kept = {version: at for version, at in self._positions.items() if version in wanted}
        keep[list(kept.values())] = True
        self._tree.compact(keep)
        self._besides.compact(keep)
        self._last = self._last if keep[-1] else None
        moved = np.cumsum(keep) - 1
        self._positions = {version: int(moved[at]) for version, at in kept.items()}
        self.exact &= wanted

    def fates(self, columns: PackColumns, ranks: Iterable[tuple[Version, int]], fates: NDArray[np.int32]) -> None:
        """Raise `fates` (one a row) to the largest rank of the roots that need the row."""
        by_position = np.zeros(self._tree.length, np.int32)
        for version, rank in ranks:
            at = self._positions[version]
            by_position[at] = max(by_position[at], rank)
        for track in (self._tree, self._besides):
            _, found = track.fates(by_position, STAYS)
            rows, which = track.rows(columns)
            np.maximum.at(fates, rows, found if which is None else found[which])

    def single(
        self, columns: PackColumns, owners: Mapping[Version, int], counts: NDArray[np.int64], by: NDArray[np.int64]
    ) -> None:
        """Add to `counts` (one a row) how many owners need the row, and note in `by` the index of one of them.

        `owners` has every version that counts, with its index; one of several owners has to count several times.
        """
        index = np.zeros(self._tree.length, np.int64)
        alive = np.zeros(self._tree.length, np.bool_)
        for version, owner in owners.items():
            index[self._positions[version]] = owner
            alive[self._positions[version]] = True
        seen = np.zeros(columns.rows, np.bool_)
        for track in (self._tree, self._besides):
            found, place = track.single(alive)
            rows, which = track.rows(columns)
            if which is not None:
                found, place = found[which], place[which]
            needed = np.flatnonzero(found)
            rows, found, place = rows[needed], found[needed], place[needed]
            again = seen[rows]
            seen[rows] = True
            # By its tree and besides: one owner, unless the places differ.
            np.add.at(counts, rows, np.where(again & (found == 1) & (by[rows] == index[place]), 0, found))
            by[rows] = index[place]

    @property
    def nbytes(self) -> int:
        return (self._tree.intervals + self._besides.intervals) * BYTES_PER_INTERVAL


def version_of(root: Root) -> Version:
    """What a root's set of records hangs on."""
    return root.manifest, root.bitmap


class Census:
    """Packs and roots together. Not thread safe: its collector's lock guards it."""

    def __init__(self, store: RecordStore, catalog: Catalog, volume: Volume) -> None:
        self._store = store
        self._catalog = catalog
        self.packs: Final = PackCensus(store, volume)
        self._runs: dict[str, Run] = {}
        self._serial = -1
        self._roots: dict[str, list[Root]] = {}

    def refresh(self) -> bool:
        """Take in what changed. False where the repository is too large for it. Raises DamagedError, VolumeError."""
        if not self.packs.refresh():
            return False
        serial = self._catalog.serial
        if serial == self._serial:
            return True
        self._roots = roots_by_source(self._catalog)
        self._runs = {source: self._runs.get(source) or Run() for source in self._roots}
        for source, roots in self._roots.items():
            run = self._runs[source]
            reader = BitmapReader(self._store)
            for root in roots:
                if root not in run:
                    run.append_stored(self._store, reader, root)
            run.tidy(roots)
        self._serial = serial
        return True

    def fates(self, columns: PackColumns, order: Mapping[SnapshotId, int], kept: BitMap64) -> NDArray[np.int32]:
        """For each row when it dies if the snapshots in `order` go at their steps (0: now) and `kept` stays."""
        fates = np.zeros(columns.rows, np.int32)
        for source, roots in self._roots.items():
            self._runs[source].fates(columns, [(version_of(root), _rank(root, order)) for root in roots], fates)
        fates[columns.mask(kept)] = STAYS
        return fates

    def only_needed_by(self, columns: PackColumns, slots: Sequence[Slot], kept: BitMap64) -> list[NDArray[np.intp]]:
        """For each of `slots` the rows that nothing else needs: no other slot, not the head, nothing of `kept`."""
        wanted = {slot.snapshot_id: at for at, slot in enumerate(slots)}
        counts = np.zeros(columns.rows, np.int64)
        by = np.full(columns.rows, -1, np.int64)
        for source, roots in self._roots.items():
            owners: dict[Version, int] = {}
            for root in roots:
                version = version_of(root)
                at = wanted.get(root.snapshot_id, -1) if isinstance(root, Slot) else -1
                owners[version] = -1 if version in owners else at
            self._runs[source].single(columns, owners, counts, by)
        counts[columns.mask(kept)] += 1
        rows = np.flatnonzero((counts == 1) & (by >= 0) & (columns.kind > 0))
        order = np.argsort(by[rows], kind="stable")
        bounds = np.searchsorted(by[rows][order], np.arange(len(slots) + 1))
        return [rows[order[bounds[at] : bounds[at + 1]]] for at in range(len(slots))]

    def look_closer(self, lock: AbstractContextManager[object], stop: Callable[[], bool]) -> None:
        """Walk the trees of roots whose bitmaps may hold too much, and go by that from then on.

        `lock` guards this census; it is held for a moment a root. What is known when `stop` ends it stays known. Raises
        DamagedError where a tree cannot be read.
        """

        def pause() -> None:
            if stop():
                raise _StoppedError

        with lock:
            todo = {
                source: [root for root in roots if self._is_vague(source, root)]
                for source, roots in self._roots.items()
            }
        for source, roots in todo.items():
            counter: ReachCounter | None = None
            standing: RecordId | None = None
            reader = BitmapReader(self._store)
            for root in roots:
                try:
                    pause()
                    counter = next_counter(self._store, counter, standing, root.manifest, pause)
                except _StoppedError:
                    return
                standing = root.manifest
                with lock:
                    run = self._runs.get(source)
                    if run is not None and root in run:
                        besides = needed_by(self._store, reader, root).besides
                        run.append(root, _Needed(counter.numbers, besides), exact=True)

    def _is_vague(self, source: str, root: Root) -> bool:
        return root.manifest != NO_ID and not root.exact and version_of(root) not in self._runs[source].exact

    @property
    def nbytes(self) -> int:
        """Memory that the columns take."""
        columns = self.packs.columns(sealed_only=True)
        return columns.rows * ROW_BYTES + sum(run.nbytes for run in self._runs.values())


def _rank(root: Root, order: Mapping[SnapshotId, int]) -> int:
    return order.get(root.snapshot_id, int(STAYS)) if isinstance(root, Slot) else int(STAYS)


def _step(reader: BitmapReader, root: Root) -> BitmapStep | None:
    if NO_ID in (root.manifest, root.bitmap):
        return None
    try:
        return reader.step(root.bitmap, root=root.manifest)
    except DamagedError:
        return None


def needed_by(store: RecordStore, reader: BitmapReader, root: Root) -> _Needed:
    """What `root` needs, by its bitmap, or by walking where that cannot be read. Raises DamagedError."""
    if root.manifest == NO_ID:
        return _Needed(BitMap64(), BitMap64())
    bitmap = bitmap_of(reader, root)
    if bitmap is None:
        return _Needed(walk(store, [root.manifest]), BitMap64())
    return _Needed(bitmap.numbers, bitmap.chain | BitMap64((root.manifest_number,)), bitmap.chain)
