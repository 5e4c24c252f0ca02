"""Everything that can be found again in the packs alone: the index, and snapshots that the catalog lost.

The packs are the truth. What a manifest in a pack describes and no slot names was either collected or lost with its
slot; where its whole tree is there it goes to the trash, from which it can be taken or will be collected.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from repository.catalog import Catalog
from repository.configfile import read_config
from repository.errors import DamagedError, VolumeError
from repository.format.catalog import HEAD_SLOT, Head, Slot, SlotState, SnapshotKind
from repository.format.journal import NO_MARK
from repository.format.manifest import Manifest, decode_manifest
from repository.format.record import RecordKind
from repository.ids import NO_ID, RecordId, RecordNumber, SnapshotId, number_of
from repository.intent import IntentFile
from repository.lock import WriteLock
from repository.policy.naming import implicit_name
from repository.ports import Clock, Progress
from repository.reach import walk
from repository.snapshots import LIVE_SOURCE
from repository.storage.volume import Volume
from repository.store import RecordStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was made again. `found`: names of snapshots that are in the trash now; `head_lost`: `live` goes on from
    its last commit that was found, and what only the journal held is not in it."""

    packs: int
    records: int
    found: tuple[str, ...]
    head_lost: bool

    def text(self) -> str:
        """The report for people."""
        lines = [f"indexed {self.records} records in {self.packs} packs"]
        if self.found:
            lines.append(f"found {len(self.found)} snapshots again; they are in the trash: {', '.join(self.found)}")
        if self.head_lost:
            lines.append("the head of live was lost; live goes on from its last commit that was found")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Found:
    """A manifest in a pack, with its place."""

    manifest: Manifest
    record_id: RecordId
    number: RecordNumber


def rebuild(volume: Volume, clock: Clock, progress: Progress | None = None) -> RebuildReport:
    """Make caches anew, and the catalog whole. Takes the write lock; the repository must not be open.

    Raises LockedError, NoRepositoryError, VolumeError, SyncFailedError.
    """
    config = read_config(volume)
    with ExitStack() as stack:
        stack.callback(WriteLock.take(volume, clock).release)
        IntentFile(volume, config.seed).replay()
        if progress is not None:
            progress.start("rebuilding the index", None)
        store = RecordStore.open(volume, config, writable=True, clock=clock, rebuild_index=True)
        stack.callback(store.close)
        store.tend()
        catalog = _catalog(volume, config.seed)
        stack.callback(catalog.close)
        found: list[Slot] = []
        head_lost = any(fault.lost and fault.slot == HEAD_SLOT for fault in catalog.faults)
        if catalog.has_lost_slots:
            manifests = list(_manifests(store))
            head = _head(manifests) if head_lost else None
            found = catalog.replace_lost(_orphans(store, catalog, manifests, clock), head)
        if progress is not None:
            progress.finish()
        infos = store.packs()
    names = tuple(slot.name for slot in found)
    log.info("rebuild.done", extra={"packs": len(infos), "found": len(names)})
    return RebuildReport(len(infos), sum(info.records for info in infos), names, head_lost)


def _catalog(volume: Volume, seed: int) -> Catalog:
    """The catalog, whatever its state; a missing one is made, with a head that counts as lost."""
    try:
        return Catalog.open(volume, seed, writable=True, salvage=True)
    except VolumeError as error:
        if error.errno != errno.ENOENT:
            raise
    Catalog.create(volume, seed, None)
    volume.fsync_dir("")
    return Catalog.open(volume, seed, writable=True, salvage=True)


def _manifests(store: RecordStore) -> Iterator[_Found]:
    """Every manifest in the packs that can be read."""
    for info in store.packs():
        directory = store.directory(info.index)
        for position in np.flatnonzero(directory.kind == RecordKind.MANIFEST).tolist():
            record_id = directory.id_at(position)
            try:
                manifest = decode_manifest(store.read(record_id).payload)
            except DamagedError as error:
                log.info("rebuild.manifest_unreadable", extra={"pack": info.index, "error": str(error)})
                continue
            yield _Found(manifest, record_id, number_of(info.index, position))


def _head(manifests: list[_Found]) -> Head:
    """A head on the last commit of `live`: the one in the newest place."""
    ours = [one for one in manifests if one.manifest.source == LIVE_SOURCE]
    if not ours:
        return Head(clean=False)
    last = max(ours, key=lambda one: one.number)
    return Head(
        manifest=last.record_id,
        manifest_number=last.number,
        commit_serial=len(ours),
        journal=NO_MARK,
        next_file_id=last.manifest.next_file_id,
        clean=False,
        committed_ns=last.manifest.time_ns,
    )


def _orphans(store: RecordStore, catalog: Catalog, manifests: list[_Found], clock: Clock) -> list[Slot]:
    """Snapshots without a slot whose trees are whole, as slots in the trash, oldest first."""
    known = {slot.manifest for slot in catalog.slots()}
    slots: list[Slot] = []
    for one in sorted(manifests, key=lambda one: (one.manifest.time_ns, one.number)):
        manifest = one.manifest
        if one.record_id in known or manifest.kind is SnapshotKind.PROVISIONAL:
            continue
        known.add(one.record_id)
        try:
            walk(store, [one.record_id])
        except DamagedError:
            continue  # collected, as far as it was not shared
        slots.append(
            Slot(
                snapshot_id=SnapshotId(0),
                state=SlotState.TRASH,
                name=manifest.name or implicit_name(manifest.time_ns, ()),
                time_ns=manifest.time_ns,
                source=manifest.source,
                kind=manifest.kind,
                manifest=one.record_id,
                manifest_number=one.number,
                bitmap=NO_ID,
                totals=manifest.totals,
                next_file_id=manifest.next_file_id,
                deleted_ns=clock.now_ns(),
            )
        )
    return slots
