"""The catalog behind the mount's directory of snapshots: this process's own, or one that another process writes."""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from repository.catalog import Catalog
from repository.errors import BallastError, DamagedError
from repository.format.catalog import Slot
from repository.format.manifest import Manifest, decode_manifest
from repository.format.record import Record, RecordKind
from repository.ids import SnapshotId
from repository.slotfile import CATALOG_FILE
from repository.snapshots import Snapshots
from repository.storage.volume import Volume
from repository.store import RecordStore

LOOK_AGAIN_S: Final = 0.5
"""A read-only mount looks at the writer's catalog at most this often."""


class OwnCatalog:
    """The catalog of the repository that this process writes."""

    def __init__(self, catalog: Catalog, store: RecordStore, snapshots: Snapshots) -> None:
        self._catalog = catalog
        self._store = store
        self._snapshots = snapshots

    def generation(self) -> int:
        return self._catalog.serial

    def slots(self) -> Sequence[Slot]:
        return self._catalog.slots()

    def manifests(self, slots: Sequence[Slot]) -> Sequence[Manifest | BallastError]:
        return read_manifests(self._store, slots)

    def stale(self) -> bool:
        return False

    def refresh(self) -> None:
        """Nothing: every change goes through this process."""

    def hold(self, snapshot: SnapshotId) -> AbstractContextManager[None]:
        return self._snapshots.hold(snapshot)


class ForeignCatalog:
    """The catalog of a repository that another process may be writing: looked at again when its file changed.

    Both it and the packs are only read. `refresh` runs on worker threads, one at a time; the rest on the loop thread.
    """

    def __init__(self, catalog: Catalog, store: RecordStore, volume: Volume) -> None:
        self._catalog = catalog
        self._store = store
        self._volume = volume
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._looked_s = time.monotonic()

    def generation(self) -> int:
        return self._catalog.serial

    def slots(self) -> Sequence[Slot]:
        return self._catalog.slots()

    def manifests(self, slots: Sequence[Slot]) -> Sequence[Manifest | BallastError]:
        return read_manifests(self._store, slots)

    def stale(self) -> bool:
        return time.monotonic() - self._looked_s > LOOK_AGAIN_S

    def refresh(self) -> None:
        """Packs first, so that whatever the catalog then names can be found."""
        with self._lock:
            if not self.stale():
                return
            stamp = self._stamp()
            if stamp != self._seen:
                self._store.refresh()
                self._catalog.reload()
                self._seen = stamp
            self._looked_s = time.monotonic()

    def hold(self, snapshot: SnapshotId) -> AbstractContextManager[None]:
        """Nothing: the writer doesn't know of us. What it collects under our hands answers ESTALE."""
        return nullcontext()

    def _stamp(self) -> tuple[int, int]:
        found = self._volume.stat(CATALOG_FILE)
        return found.st_mtime_ns, found.st_size


def read_manifests(store: RecordStore, slots: Sequence[Slot]) -> list[Manifest | BallastError]:
    """The manifests of `slots`, in order; an error in the place of each that cannot be read."""
    try:
        records = store.read_many([slot.manifest for slot in slots])
        return [_decoded(record, slot) for record, slot in zip(records, slots, strict=True)]
    except BallastError:
        return [_read_one(store, slot) for slot in slots]


def _read_one(store: RecordStore, slot: Slot) -> Manifest | BallastError:
    try:
        return _decoded(store.read(slot.manifest), slot)
    except BallastError as error:
        return error


def _decoded(record: Record, slot: Slot) -> Manifest:
    if record.kind is not RecordKind.MANIFEST:
        raise DamagedError(f"The manifest of snapshot '{slot.name}' is a record of another kind.")
    return decode_manifest(record.payload)
