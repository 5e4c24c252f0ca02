"""Everything of a mount that is not `live/`: the made-up files, and the snapshots as read-only trees.

Plain values in and out, so that `operations.py` only dispatches. Loop thread only. After each `await` a snapshot may
be gone (then its numbers answer ESTALE, upon which the kernel looks the path up anew), so nothing is held across one
but frozen values.
"""

import errno
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

import pyfuse3

from fusefs import inodes
from fusefs.attributes import FOREVER_S, attributes
from fusefs.handles import FileHandle, Handles, ListingHandle, TreeHandle
from fusefs.inodes import InodeNumber, Space, serial_of, snapshot_directory_number, space_of
from fusefs.listing import TreeListing
from fusefs.neighbours import Neighbours
from fusefs.nodes import SnapshotNodes
from fusefs.pagecache import PageCache
from fusefs.readpath import ReadPath, Stream
from fusefs.snapshots import Snapshots, View
from fusefs.special import LATEST_NAME, LIVE_NAME, STATUS_NAME, SpecialFiles
from fusefs.trees import Trees
from repository.errors import BallastError, BusyError, MissingRecordError, ReadOnlyError
from repository.format.catalog import Slot
from repository.format.inode import Inode, NodeKind
from repository.ids import FileId, SnapshotId

_log = logging.getLogger(__name__)

NAME_TIMEOUT_S: Final = 0.02
"""How long the kernel takes the name of a snapshot for granted. Without it each file that is copied by its path costs
two look-ups of that name. A command that changes the name has not ended by then, so its caller finds it changed."""
VIEWS_A_HOP: Final = 64
"""Roots read per hop while `snapshots/` is listed."""


class SnapshotActions(Protocol):
    """What may be done to snapshots by mkdir, mv and rmdir. Every error is a BallastError."""

    async def create_named(self, name: str) -> Slot:
        """Commits `live` under `name`; durable on return."""
        ...

    async def delete(self, snapshot: SnapshotId) -> None:
        """Into the trash. BusyError if it is pinned."""
        ...

    async def undelete(self, snapshot: SnapshotId, name: str) -> None:
        """Out of the trash, under `name`."""
        ...

    async def rename(self, snapshot: SnapshotId, name: str) -> None:
        """Another name. BusyError if it is pinned."""
        ...


class LiveRoot(Protocol):
    """The one thing that the root needs of `live/`."""

    def root_attributes(self) -> pyfuse3.EntryAttributes: ...


class Browse:
    """Handlers for the spaces SPECIAL, SNAPSHOT_FILE and SNAPSHOT_DIRECTORY.

    Raises FUSEError and BallastError. Mutations that mean nothing here are EROFS. `live` and `actions` are None in a
    read-only mount.
    """

    def __init__(
        self,
        special: SpecialFiles,
        snapshots: Snapshots,
        trees: Trees,
        nodes: SnapshotNodes,
        reads: ReadPath,
        neighbours: Neighbours,
        pages: PageCache,
        live: LiveRoot | None,
        actions: SnapshotActions | None,
    ) -> None:
        self._special = special
        self._snapshots = snapshots
        self._trees = trees
        self._reads = reads
        self._neighbours = neighbours
        self._pages = pages
        self._nodes = nodes
        self._live = live
        self._actions = actions
        self._handles = Handles()

    # names and attributes

    async def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """The entry `name` of the directory `parent`; inside snapshots "no such name" is an answer to be remembered."""
        if space_of(parent) is Space.SNAPSHOT_DIRECTORY:
            return await self._nodes.lookup(InodeNumber(parent), name)
        match parent:
            case inodes.ROOT if name == LIVE_NAME and self._live is not None:
                return self._live.root_attributes()
            case inodes.ROOT if name in self._special.root_names():
                return await self.getattr(self._special.root_names()[name])
            case inodes.CONTROL_DIR if name == STATUS_NAME:
                return await self.getattr(inodes.STATUS_JSON)
            case inodes.SNAPSHOTS if name == LATEST_NAME:
                return await self.getattr(inodes.LATEST)
            case inodes.SNAPSHOTS | inodes.TRASH:
                await self._snapshots.refresh()
                return self._root_attributes(await self._snapshots.view(self._slot(parent, name)))
            case _:
                raise pyfuse3.FUSEError(errno.ENOENT)

    async def getattr(self, number: int) -> pyfuse3.EntryAttributes:
        """What `stat` shows."""
        if space_of(number) is not Space.SPECIAL:
            inode, view = await self._nodes.find(number)
            if number == view.number:
                return self._root_attributes(view)
            return attributes(inode, InodeNumber(number), FOREVER_S)
        match number:
            case inodes.ROOT | inodes.SNAPSHOTS | inodes.TRASH | inodes.CONTROL_DIR:
                return self._special.directory(InodeNumber(number))
            case inodes.LATEST:
                return self._special.link(await self._latest())
            case _:
                return self._special.file(InodeNumber(number), await self._text(number))

    async def readlink(self, number: int) -> bytes:
        """The target of a symlink."""
        if number == inodes.LATEST:
            return await self._latest()
        inode, _ = await self._nodes.find(number)
        return inode.target

    async def getxattr(self, number: int, name: bytes) -> bytes:
        """One extended attribute (ACLs are two of them); ENODATA without it."""
        if space_of(number) is not Space.SPECIAL:
            inode, _ = await self._nodes.find(number)
            for known, value in inode.xattrs:
                if known == name:
                    return value
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    async def listxattr(self, number: int) -> Sequence[bytes]:
        """The names of the extended attributes."""
        if space_of(number) is Space.SPECIAL:
            return ()
        inode, _ = await self._nodes.find(number)
        return [name for name, _ in inode.xattrs]

    def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        """The kernel gives back lookups: (number, how many)."""
        self._nodes.forget(counts)

    # open files and directories

    async def open(self, number: int, flags: int) -> pyfuse3.FileInfo:
        """A handle for reading; EROFS for any other wish."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        if space_of(number) is Space.SPECIAL:
            text = await self._text(number)
            fresh = number != inodes.README
            return pyfuse3.FileInfo(fh=self._handles.add(text), direct_io=fresh, keep_cache=False)
        file, view, place = await self._nodes.file(number)
        await self._snapshots.opened(view.snapshot)
        known = InodeNumber(number)
        if self._pages.wants(known, file.size):
            data = self._reads.at_hand(file, 0, file.size)
            if data is not None:
                self._pages.give(known, data)
        self._pages.opened(known)
        handle = FileHandle(known, file, view.snapshot, Stream(), place)
        return pyfuse3.FileInfo(fh=self._handles.add(handle), keep_cache=True)

    async def read(self, fh: int, offset: int, length: int) -> bytes | memoryview:
        """Bytes of an open file."""
        match self._handles.get(fh):
            case FileHandle(_, file, snapshot, stream, place):
                data = self._reads.at_hand(file, offset, length)
                if data is not None:
                    return data
                if place is not None:
                    self._neighbours.missed(place, file.size)
                try:
                    return await self._reads.read(file, stream, offset, length)
                except MissingRecordError:
                    raise await self._snapshots.loss_in(snapshot) from None
            case bytes() as text:
                return text[offset : offset + length]
            case _:
                raise pyfuse3.FUSEError(errno.EBADF)

    async def opendir(self, number: int) -> pyfuse3.FileHandleT:
        """A handle for listing; a made-up directory is listed as it is now. A snapshot's is looked at when something is
        asked of it: what the kernel still knows, it does not ask for."""
        if space_of(number) is Space.SNAPSHOT_DIRECTORY:
            view = await self._snapshots.view_of_serial(serial_of(number))
            self._nodes.used(number)
            listing = await self._listing(InodeNumber(number)) if self._neighbours.guesses else None
            await self._snapshots.opened(view.snapshot)
            return self._handles.add(TreeHandle(InodeNumber(number), view, listing))
        if number in (inodes.SNAPSHOTS, inodes.TRASH):
            await self._snapshots.refresh()
        return self._handles.add(ListingHandle(InodeNumber(number), self._special_names(number)))

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Replies entries from the `start_id`-th on, until the kernel's buffer is full."""
        match self._handles.get(fh):
            case TreeHandle() as tree:
                if tree.listing is None:
                    tree.listing = await self._listing(tree.number)
                await tree.listing.reply(start_id, partial(pyfuse3.readdir_reply, token))
            case ListingHandle() as handle:
                await self._list_special(handle, start_id, token)
            case _:
                raise pyfuse3.FUSEError(errno.EBADF)

    def release(self, fh: int) -> None:
        """A handle of either kind is closed."""
        match self._handles.drop(fh):
            case FileHandle(number=number, snapshot=snapshot):
                self._pages.closed(number)
                self._snapshots.closed(snapshot)
            case TreeHandle(view=view):
                self._snapshots.closed(view.snapshot)
            case _:
                pass

    def open_directories(self) -> list[int]:
        """Numbers of the snapshots' directories that somebody has open."""
        return [handle.number for handle in self._handles if isinstance(handle, TreeHandle)]

    # snapshots by directory operations

    async def mkdir(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """`mkdir snapshots/NAME`: the head under a name."""
        actions = self._allowed(parent == inodes.SNAPSHOTS)
        if name == LATEST_NAME or self._snapshots.named(name) is not None:
            raise pyfuse3.FUSEError(errno.EEXIST)
        await actions.create_named(_text_name(name))
        return await self.lookup(parent, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """`mv` among `snapshots/` and `trash/`: rename, delete, undelete."""
        ends = (parent, new_parent)
        actions = self._allowed(all(end in (inodes.SNAPSHOTS, inodes.TRASH) for end in ends))
        if flags & pyfuse3.RENAME_EXCHANGE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        if LATEST_NAME in (name, new_name) or ends == (inodes.TRASH, inodes.TRASH):
            raise pyfuse3.FUSEError(errno.EROFS)
        await self._snapshots.refresh()
        slot = self._slot(parent, name)
        if slot.pinned:
            raise BusyError(f"'{slot.name}' is pinned")
        if new_parent == inodes.SNAPSHOTS and self._snapshots.named(new_name) is not None:
            raise pyfuse3.FUSEError(errno.EEXIST)
        match ends:
            case (inodes.SNAPSHOTS, inodes.SNAPSHOTS):
                await actions.rename(slot.snapshot_id, _text_name(new_name))
            case (inodes.SNAPSHOTS, inodes.TRASH):
                await actions.delete(slot.snapshot_id)
            case _:
                await actions.undelete(slot.snapshot_id, _text_name(new_name))

    async def rmdir(self, parent: int, name: bytes) -> None:
        """`rmdir snapshots/NAME`: into the trash."""
        actions = self._allowed(parent == inodes.SNAPSHOTS and name != LATEST_NAME)
        await self._snapshots.refresh()
        await actions.delete(self._slot(parent, name).snapshot_id)

    # below

    def _allowed(self, sensible: bool) -> SnapshotActions:
        if self._actions is None or not sensible:
            raise ReadOnlyError("only mkdir, mv and rmdir in snapshots/ and trash/ change something here", errno.EROFS)
        return self._actions

    def _slot(self, parent: int, name: bytes) -> Slot:
        slot = self._snapshots.named(name) if parent == inodes.SNAPSHOTS else self._snapshots.deleted(name)
        if slot is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return slot

    def _root_attributes(self, view: View) -> pyfuse3.EntryAttributes:
        """Attributes of a snapshot's root: they never change, but its name may any time."""
        entry = attributes(view.root, view.number, FOREVER_S)
        entry.entry_timeout = NAME_TIMEOUT_S
        return entry

    async def _latest(self) -> bytes:
        await self._snapshots.refresh()
        latest = self._snapshots.latest()
        if latest is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return latest

    async def _text(self, number: int) -> bytes:
        text = await self._special.text(InodeNumber(number))
        if text is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return text

    # listing

    async def _listing(self, number: InodeNumber) -> TreeListing:
        """A snapshot's directory, and what is likely to be asked for with it."""
        directory, view = await self._nodes.directory(number)
        place = self._nodes.place(number)
        if place is not None:
            await self._neighbours.listed(place)
        self._neighbours.entered(directory, place)
        return TreeListing(self._trees, self._nodes, number, view, directory)

    def _special_names(self, number: int) -> list[bytes]:
        match number:
            case inodes.ROOT:
                live = [LIVE_NAME] if self._live is not None else []
                return live + list(self._special.root_names())
            case inodes.SNAPSHOTS:
                latest = [LATEST_NAME] if self._snapshots.latest() is not None else []
                return latest + self._snapshots.names()
            case inodes.TRASH:
                return self._snapshots.trash_names()
            case inodes.CONTROL_DIR:
                return [STATUS_NAME]
            case _:
                raise pyfuse3.FUSEError(errno.ENOTDIR)

    async def _list_special(self, handle: ListingHandle, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        roots = handle.number in (inodes.SNAPSHOTS, inodes.TRASH)
        if start_id == 0:  # at the beginning, or rewound: as it is now
            await self._snapshots.refresh()
            handle.names[:] = self._special_names(handle.number)
        for start in range(start_id, len(handle.names), VIEWS_A_HOP):
            names = handle.names[start : start + VIEWS_A_HOP]
            described = await self._describe_roots(handle.number, names) if roots else {}
            for position, name in enumerate(names, start + 1):
                entry = described.get(name)
                if entry is None:
                    if roots and name != LATEST_NAME:
                        continue
                    entry = await self.lookup(handle.number, name)
                if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, position):
                    return

    async def _describe_roots(
        self, parent: InodeNumber, names: Sequence[bytes]
    ) -> dict[bytes, pyfuse3.EntryAttributes]:
        """Attributes of those snapshots' roots that still go by these names. A damaged one is listed too, with no
        permissions."""
        find = self._snapshots.named if parent == inodes.SNAPSHOTS else self._snapshots.deleted
        slots = {name: slot for name in names if (slot := find(name)) is not None}
        views = await self._snapshots.views(list(slots.values()))
        found: dict[bytes, pyfuse3.EntryAttributes] = {}
        for (name, slot), view in zip(slots.items(), views, strict=True):
            if isinstance(view, BallastError):
                _log.error("snapshot.unreadable", extra={"snapshot": slot.name, "error": str(view)})
                number = snapshot_directory_number(slot.snapshot_id, FileId(0))
                entry = attributes(Inode(NodeKind.DIRECTORY, FileId(0), mtime_ns=slot.time_ns), number, 0.0)
            else:
                entry = self._root_attributes(view)
            found[name] = entry
        return found


def _text_name(name: bytes) -> str:
    """A snapshot's name as text; EINVAL unless it is UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise pyfuse3.FUSEError(errno.EINVAL) from None
