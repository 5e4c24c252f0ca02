"""Snapshot inodes by number: found again through the place where the kernel last saw them.

Loop thread only. What an `await` may change: the place of a number (a hard link or an unchanged file seen elsewhere: as
good), and the snapshot may be gone, which answers ESTALE; the kernel then walks the path anew.
"""

import errno
from collections.abc import Sequence
from typing import Final

import pyfuse3

from fusefs.attributes import FOREVER_S, absent, attributes
from fusefs.inodes import InodeNumber, Space, number_in_snapshot, serial_of, space_of
from fusefs.places import Place, PlaceTable, Row
from fusefs.snapshots import Snapshots, View
from fusefs.trees import Trees
from repository.errors import DamagedError, MissingRecordError
from repository.format.inode import DirRef, Inode, NodeKind
from repository.ids import FileId
from repository.trees.reader import Content, NotCached

RECENT_MAX: Final = 2048
"""Inodes kept decoded, below 1 kB each: a walk asks for its directory once per name."""


class SnapshotNodes:
    """The inodes inside snapshots that the kernel knows."""

    def __init__(self, snapshots: Snapshots, trees: Trees, places: PlaceTable) -> None:
        self._snapshots = snapshots
        self._trees = trees
        self._places = places
        self._recent: dict[int, Inode] = {}

    async def lookup(self, parent: InodeNumber, name: bytes) -> pyfuse3.EntryAttributes:
        """The entry `name` of a snapshot's directory, known to the kernel from now on; absence is remembered by it
        too."""
        directory, view = await self.find(parent)
        self._places.used(parent)
        try:
            place = await self._trees.ask(self._trees.reader.place, directory.directory, name)
            if place is None:
                return absent(FOREVER_S)
            inode = (await self._trees.ask(self._trees.reader.entry_at, *place)).inode
            inode = await self.resolved(inode, view)
        except MissingRecordError:
            raise await self._snapshots.loss_in(view.snapshot) from None
        number = number_in_snapshot(view.snapshot, inode)
        content, attrs, position = place
        self._places.seen(Row(parent, content, attrs), ((number, position),))
        self._remember(number, inode)
        return attributes(inode, number, FOREVER_S)

    def place(self, number: int) -> Place | None:
        """Where the kernel last saw `number`."""
        return self._places.place(number)

    def used(self, number: int) -> None:
        """The directory `number` is being listed."""
        self._places.used(number)

    def told(self, row: Row, seen: Sequence[tuple[int, int]]) -> None:
        """The kernel was told of entries of `row` once more: (number, position) of each."""
        self._places.seen(row, seen)

    def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        """The kernel gave lookups back: (number, how many)."""
        for number, lookups in counts:
            self._places.forget(number, lookups)

    async def find(self, number: int) -> tuple[Inode, View]:
        """The inode behind a number that the kernel knows, and the snapshot it was last seen in. ESTALE where it is
        gone."""
        place = None
        if space_of(number) is Space.SNAPSHOT_DIRECTORY:
            view = await self._snapshots.view_of_serial(serial_of(number))
            if number == view.number:
                return view.root, view
            place = self._places.place(number)
        else:
            place = self._places.place(number)
            view = await self._snapshots.view_of_serial(serial_of(place.row.parent if place else 0))
        if place is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        recent = self._recent.get(number)
        if recent is not None:
            return recent, view
        try:
            row, position = place
            entry = await self._trees.ask(self._trees.reader.entry_at, row.content, row.attrs, position)
            inode = await self.resolved(entry.inode, view)
        except MissingRecordError:
            raise await self._snapshots.loss_in(view.snapshot) from None
        self._remember(number, inode)
        return inode, view

    async def file(self, number: int) -> tuple[Content, View, Place | None]:
        """The content of what a program opens, its snapshot and its place: what `find` tells of it, for a third of the
        cost."""
        place = self._places.place(number)
        view = None if place is None else self._snapshots.at_hand(serial_of(place.row.parent))
        if place is not None and view is not None:
            try:
                try:
                    found = self._trees.reader.file_at(place.row.content, place.position)
                except NotCached:
                    found = await self._trees.ask(self._trees.reader.file_at, place.row.content, place.position)
            except MissingRecordError:
                raise await self._snapshots.loss_in(view.snapshot) from None
            if found is not None:
                return found, view, place
        inode, view = await self.find(number)
        return inode, view, place

    async def directory(self, number: int) -> tuple[DirRef, View]:
        """The listing behind a directory's number, and its snapshot: what `find` tells of it, for a quarter of the
        cost."""
        view = await self._snapshots.view_of_serial(serial_of(number))
        if number == view.number:
            return view.root.directory, view
        place = self._places.place(number)
        if place is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        try:
            row, position = place
            return await self._trees.ask(self._trees.reader.directory_at, row.content, row.attrs, position), view
        except MissingRecordError:
            raise await self._snapshots.loss_in(view.snapshot) from None

    async def resolved(self, inode: Inode, view: View) -> Inode:
        """A hard link's inode from the snapshot's links table; any other as it is."""
        return await self.linked(inode.file_id, view) if inode.kind is NodeKind.LINK else inode

    async def linked(self, file_id: FileId, view: View) -> Inode:
        """The inode of a hard-linked file."""
        found = await self._trees.ask(self._trees.reader.link, view.links, file_id)
        if found is None:
            raise DamagedError(f"the links table of snapshot {view.snapshot} lacks file {file_id}")
        return found

    async def loss_in(self, view: View) -> Exception:
        """Why a record of a snapshot is missing: what to raise."""
        return await self._snapshots.loss_in(view.snapshot)

    def _remember(self, number: int, inode: Inode) -> None:
        if len(self._recent) >= RECENT_MAX:
            for oldest in list(self._recent)[: RECENT_MAX // 4]:
                del self._recent[oldest]
        self._recent[number] = inode
