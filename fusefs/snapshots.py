"""The snapshots as the mount shows them: names, roots, and which of them have something open.

Owner of the invariant *what is open stays readable*: a snapshot with an open handle is held against ordinary
collections. Loop thread only. What an `await` may change: any snapshot may be gone, renamed or in the trash
afterwards, so a `View` is looked up again by name or serial after each.
"""

import errno
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

import pyfuse3
import trio

from fusefs.inodes import SERIAL_MASK, InodeNumber, snapshot_directory_number
from fusefs.workers import Workers
from repository.errors import BallastError, MissingRecordError
from repository.format.catalog import Slot, SlotState, SnapshotKind
from repository.format.inode import Inode
from repository.format.manifest import Manifest
from repository.ids import RecordId, SnapshotId
from repository.policy.naming import trash_names
from repository.snapshots import LIVE_SOURCE

LET_GO_EVERY_S: Final = 30.0
"""How long, at most, a deleted snapshot is held after its last handle was closed."""
VIEWS_MAX: Final = 1024
"""Roots kept decoded, about 1 kB each. Coming back to a forgotten one costs one read."""


class SnapshotSource(Protocol):
    """The catalog, as far as showing it goes."""

    def generation(self) -> int:
        """Changes whenever a snapshot does. Cheap."""
        ...

    def slots(self) -> Sequence[Slot]:
        """Live and deleted snapshots, as of now."""
        ...

    def manifests(self, slots: Sequence[Slot]) -> Sequence[Manifest | BallastError]:
        """Their manifests, in order; reads (worker thread). An error in the place of one that cannot be read."""
        ...

    def stale(self) -> bool:
        """Whether `refresh` may have something to do. Cheap."""
        ...

    def refresh(self) -> None:
        """Takes over what another process changed since (worker thread); nothing where this process is the writer."""
        ...

    def hold(self, snapshot: SnapshotId) -> AbstractContextManager[None]:
        """While entered, an ordinary collection leaves the snapshot alone, deleted or not. May block (worker
        thread)."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot whose root is known."""

    snapshot: SnapshotId
    root: Inode
    links: RecordId | None
    number: InodeNumber


class Snapshots:
    """Names and roots of the snapshots, and the holds on those in use."""

    def __init__(self, source: SnapshotSource, workers: Workers) -> None:
        self._source = source
        self._workers = workers
        self._generation = -1
        self._named: dict[bytes, Slot] = {}
        self._trash: dict[bytes, Slot] = {}
        self._by_serial: dict[int, Slot] = {}
        self._latest: bytes | None = None
        self._views: dict[SnapshotId, View] = {}
        self._open: dict[SnapshotId, int] = {}
        self._holds: dict[SnapshotId, ExitStack] = {}

    async def refresh(self) -> None:
        """Brings names up to date with the catalog."""
        if self._source.stale():
            await self._workers.slow(self._source.refresh)
        self._take_over()

    def names(self) -> list[bytes]:
        """What `snapshots/` lists, without `latest`."""
        self._take_over()
        return list(self._named)

    def trash_names(self) -> list[bytes]:
        """What `trash/` lists."""
        self._take_over()
        return list(self._trash)

    def named(self, name: bytes) -> Slot | None:
        """The snapshot shown as `snapshots/<name>`."""
        self._take_over()
        return self._named.get(name)

    def deleted(self, name: bytes) -> Slot | None:
        """The snapshot shown as `trash/<name>`."""
        self._take_over()
        return self._trash.get(name)

    def latest(self) -> bytes | None:
        """The name of the newest snapshot of `live`, if there is one."""
        self._take_over()
        return self._latest

    def by_serial(self, serial: int) -> Slot | None:
        """The snapshot behind the inode numbers with this serial."""
        self._take_over()
        return self._by_serial.get(serial)

    async def loss_in(self, snapshot: SnapshotId) -> Exception:
        """Why a record of a snapshot is missing: it was collected meanwhile (ESTALE), or there is damage."""
        await self.refresh()
        slot = self.by_serial(snapshot & SERIAL_MASK)
        if slot is None or slot.snapshot_id != snapshot:
            return pyfuse3.FUSEError(errno.ESTALE)
        return MissingRecordError(f"Snapshot '{slot.name}' lacks a record; ballast check says which.")

    async def view(self, slot: Slot) -> View:
        """The root of a snapshot. Raises DamagedError."""
        known = self._views.get(slot.snapshot_id)
        if known is not None:
            return known
        view = (await self.views([slot]))[0]
        if isinstance(view, BallastError):
            raise view
        return view

    async def views(self, slots: Sequence[Slot]) -> list[View | BallastError]:
        """The roots of several snapshots in one hop; an error in the place of one that cannot be read."""
        missing = [slot for slot in slots if slot.snapshot_id not in self._views]
        fresh: dict[SnapshotId, View | BallastError] = {}
        if missing:
            manifests = await self._workers.read(self._source.manifests, missing)
            fresh = {slot.snapshot_id: _view(slot, one) for slot, one in zip(missing, manifests, strict=True)}
        found: list[View | BallastError] = []
        for slot in slots:
            view = fresh.get(slot.snapshot_id) or self._views.get(slot.snapshot_id)
            found.append(view if view is not None else MissingRecordError(f"snapshot '{slot.name}' is gone"))
        for key, one in fresh.items():
            if isinstance(one, View):
                self._remember(key, one)
        return found

    def _remember(self, snapshot: SnapshotId, view: View) -> None:
        if len(self._views) >= VIEWS_MAX:
            del self._views[next(iter(self._views))]
        self._views[snapshot] = view

    async def view_of_serial(self, serial: int) -> View:
        """The root of the snapshot behind `serial`; ESTALE where it is gone."""
        slot = self.by_serial(serial)
        if slot is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return await self.view(slot)

    def at_hand(self, serial: int) -> View | None:
        """As `view_of_serial` where nothing has to be read for it: for requests that come once a file."""
        slot = self.by_serial(serial)
        return None if slot is None else self._views.get(slot.snapshot_id)

    async def opened(self, snapshot: SnapshotId) -> None:
        """One more handle is open in `snapshot`, which is held from before this returns."""
        self._open[snapshot] = self._open.get(snapshot, 0) + 1
        if snapshot not in self._holds:
            hold = self._holds[snapshot] = ExitStack()
            await self._workers.slow(hold.enter_context, self._source.hold(snapshot))

    def closed(self, snapshot: SnapshotId) -> None:
        """One handle less. The hold stays for a while: who reads one file after the other shall not pay for it each
        time."""
        left = self._open[snapshot] - 1
        if left:
            self._open[snapshot] = left
        else:
            del self._open[snapshot]

    async def let_go(self) -> None:
        """Ends holds on snapshots that nothing is open in any more; runs until cancelled."""
        while True:
            await trio.sleep(LET_GO_EVERY_S)
            for snapshot in [one for one in self._holds if one not in self._open]:
                await self._workers.slow(self._holds.pop(snapshot).close)

    def _take_over(self) -> None:
        generation = self._source.generation()
        if generation == self._generation:
            return
        self._generation = generation
        slots = self._source.slots()
        shown = [one for one in slots if one.kind is not SnapshotKind.PROVISIONAL]
        live = [one for one in shown if one.state is SlotState.LIVE]
        self._named = {one.name.encode(): one for one in live}
        trash = trash_names(one for one in shown if one.state is SlotState.TRASH)
        self._trash = {name.encode(): slot for name, slot in trash.items()}
        self._by_serial = {one.snapshot_id & SERIAL_MASK: one for one in shown}
        newest = max((one for one in live if is_of_live(one)), key=_age_order, default=None)
        self._latest = newest.name.encode() if newest else None
        self._views = {known: view for known, view in self._views.items() if known & SERIAL_MASK in self._by_serial}


def _view(slot: Slot, manifest: Manifest | BallastError) -> View | BallastError:
    if isinstance(manifest, BallastError):
        return manifest
    number = snapshot_directory_number(slot.snapshot_id, manifest.root.file_id)
    return View(slot.snapshot_id, manifest.root, manifest.links, number)


def is_of_live(slot: Slot) -> bool:
    """Whether `slot` was committed from `live` (not stored straight in from a path)."""
    return slot.source == LIVE_SOURCE


def _age_order(slot: Slot) -> tuple[int, int]:
    return slot.time_ns, slot.snapshot_id
