"""Handlers for everything under `live/`: a thin layer over the live tree.

Loop thread only. A question to the tree is asked again after each load that it wants (see `Trees.ask`), so between two
tries anything may have changed, and it looks again; once a call into the tree returns, its change is whole. Room is
taken before.
"""

import errno
import os
import stat
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import pyfuse3

from fusefs.attributes import FOREVER_S, absent, attributes
from fusefs.flusher import CHANGE_COST, Flusher
from fusefs.inodes import live_file_id, live_number
from fusefs.jobs import Jobs
from fusefs.known import KnownInodes
from fusefs.live_neighbours import LiveNeighbours
from fusefs.readpath import ReadPath, Stream, assemble, unique
from fusefs.spaceguard import SpaceGuard
from fusefs.trees import Trees
from repository.errors import RefusedError
from repository.format.inode import Extent, Inode, NodeKind
from repository.format.stats import Stat
from repository.ids import ROOT_FILE_ID, FileId
from repository.live import attributes as change
from repository.live import names
from repository.live.filedata import FILE_SIZE_MAX, Piece
from repository.live.listing import Listing, Seen
from repository.live.node import KIND_OF_TYPE, Node, View
from repository.live.tree import NAME_BYTES_MAX, LiveTree
from repository.live.writing import write

WRITE_BYTES: Final = 1 << 20
"""st_blksize in `live`: `cp` writes in pieces of this size, which is the largest that the kernel hands over at once. An
eighth of the requests, and of the times that `cp` and the loop wake each other, as with pieces of 128 KiB."""
LIVE_HANDLE_BIT: Final = 1 << 61
XATTR_OVERHEAD_BYTES: Final = 8
"""Lengths of one extended attribute in the journal, rounded up."""
INHERITED_BYTES: Final = 1024
"""Journal bytes for ACLs that a new inode inherits from a directory that is not in memory: two of some 60 entries."""
SYMLINK_BYTES_MAX: Final = 4095
"""PATH_MAX without its NUL: what the kernel follows."""


@dataclass(slots=True)
class LiveFile:
    """An open file."""

    file_id: FileId
    flags: int
    stream: Stream | None = None
    """Made by the first read: most who write do not read."""


@dataclass(slots=True)
class LiveDirectory:
    """An open directory: `window` are the entries from number `start` on that were produced last."""

    file_id: FileId
    listing: Listing
    begun: bool = False
    start: int = 0
    window: list[Seen | None] = field(default_factory=list)


class LiveOps:
    """What the kernel may ask of `live/`. Raises RefusedError, NoSpaceError, DamagedError, VolumeError."""

    def __init__(
        self,
        tree: LiveTree,
        trees: Trees,
        reads: ReadPath,
        neighbours: LiveNeighbours,
        jobs: Jobs,
        flusher: Flusher,
        guard: SpaceGuard,
    ) -> None:
        self._tree: Final = tree
        self._trees: Final = trees
        self._reads: Final = reads
        self._neighbours: Final = neighbours
        self._jobs: Final = jobs
        self._flusher: Final = flusher
        self._guard: Final = guard
        self.known: Final = KnownInodes(tree)
        self._handles: dict[int, LiveFile | LiveDirectory] = {}
        self._next = count(LIVE_HANDLE_BIT)

    # --- names --------------------------------------------------------------------------------------------------

    def root_attributes(self) -> pyfuse3.EntryAttributes:
        """Attributes of `live` itself; the kernel never forgets it for us."""
        return self._attributes(self._tree.resolve(ROOT_FILE_ID))

    async def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """An entry, or the remembered answer that there is none: all changes come through the same kernel."""
        directory = live_file_id(parent)
        if len(name) > NAME_BYTES_MAX:
            raise RefusedError(errno.ENAMETOOLONG)
        found = await self._trees.ask(self._tree.find, directory, name)
        if found is None:
            return absent(FOREVER_S)
        return self._seen(directory, name, *found)

    def _seen(self, parent: FileId, name: bytes, view: View, linked: bool) -> pyfuse3.EntryAttributes:
        """The attributes of an inode that the kernel is being told of."""
        self.known.told(parent, name, view, linked=linked)
        return self._attributes(view)

    def _attributes(self, view: View | Stat) -> pyfuse3.EntryAttributes:
        entry = attributes(view, live_number(view.file_id), FOREVER_S)
        entry.st_blksize = WRITE_BYTES
        return entry

    async def getattr(self, number: int) -> pyfuse3.EntryAttributes:
        return self._attributes(await self._trees.ask(self._tree.resolve, live_file_id(number)))

    async def readlink(self, number: int) -> bytes:
        return (await self._trees.ask(self._tree.resolve, live_file_id(number))).target

    async def make(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext, *, rdev: int = 0, target: bytes = b""
    ) -> pyfuse3.EntryAttributes:
        """mknod, mkdir, symlink: a new inode of the type in `mode`."""
        kind = KIND_OF_TYPE[stat.S_IFMT(mode) or stat.S_IFREG]
        if len(target) > SYMLINK_BYTES_MAX:
            raise RefusedError(errno.ENAMETOOLONG)
        wish = names.Wish(kind, stat.S_IMODE(mode), ctx.uid, ctx.gid, rdev, target, ctx.umask)
        node = await self._create(live_file_id(parent), name, wish)
        return self._seen(node.parent, name, node, linked=False)

    async def _create(self, parent: FileId, name: bytes, wish: names.Wish) -> Node:
        await self._flusher.admit_change(len(wish.target) + self._inherited_bytes(parent))
        return await self._trees.ask(names.create, self._tree, parent, name, wish)

    def _inherited_bytes(self, parent: FileId) -> int:
        """Bytes of ACLs that a new inode may inherit."""
        node = self._tree.overlay.get(parent)
        if node is None:
            return INHERITED_BYTES
        return 2 * sum(len(value) for _, value in node.xattrs) if node.xattrs else 0

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """open(O_CREAT) of a name that is not there."""
        wish = names.Wish(NodeKind.FILE, stat.S_IMODE(mode), ctx.uid, ctx.gid, umask=ctx.umask)
        node = await self._create(live_file_id(parent), name, wish)
        entry = self._seen(node.parent, name, node, linked=False)
        return self._open(node.file_id, flags), entry

    async def link(self, number: int, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        await self._flusher.admit_change()
        directory = live_file_id(parent)
        node = await self._trees.ask(names.link, self._tree, live_file_id(number), directory, name)
        return self._seen(directory, name, node, linked=True)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._flusher.admit_change(shrinks=True)
        await self._trees.ask(names.unlink, self._tree, live_file_id(parent), name)
        self._guard.removed()

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._flusher.admit_change(shrinks=True)
        await self._trees.ask(names.rmdir, self._tree, live_file_id(parent), name)
        self._guard.removed()

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        await self._flusher.admit_change(shrinks=True)
        old, new = (live_file_id(parent), name), (live_file_id(new_parent), new_name)
        await self._trees.ask(names.rename, self._tree, old, new, flags)
        self._guard.removed()  # what was there before, perhaps

    # --- attributes ---------------------------------------------------------------------------------------------

    async def setattr(self, number: int, wanted: change.Wanted) -> pyfuse3.EntryAttributes:
        file_id = live_file_id(number)
        found = await self._trees.ask(self._tree.resolve, file_id)
        shrinks = wanted.size is None or wanted.size <= found.size
        await self._flusher.admit_again(file_id, _xattr_bytes(found), shrinks=shrinks)
        changed = await self._trees.ask(change.set_attributes, self._tree, file_id, wanted)
        if wanted.size is not None:
            self._guard.removed()
        return self._attributes(changed)

    async def getxattr(self, number: int, name: bytes) -> bytes | None:
        return change.get((await self._trees.ask(self._tree.resolve, live_file_id(number))).xattrs, name)

    async def listxattr(self, number: int) -> list[bytes]:
        return [name for name, _ in (await self._trees.ask(self._tree.resolve, live_file_id(number))).xattrs]

    async def setxattr(self, number: int, name: bytes, value: bytes) -> None:
        file_id = live_file_id(number)
        known = await self._trees.ask(self._tree.resolve, file_id)
        await self._flusher.admit_again(file_id, len(name) + len(value) + XATTR_OVERHEAD_BYTES + _xattr_bytes(known))
        await self._trees.ask(change.set_xattr, self._tree, file_id, name, value)

    async def removexattr(self, number: int, name: bytes) -> None:
        file_id = live_file_id(number)
        known = await self._trees.ask(self._tree.resolve, file_id)
        await self._flusher.admit_again(file_id, _xattr_bytes(known), shrinks=True)
        await self._trees.ask(change.remove_xattr, self._tree, file_id, name)

    # --- open files ---------------------------------------------------------------------------------------------

    async def open(self, number: int, flags: int) -> pyfuse3.FileInfo:
        file_id = live_file_id(number)
        found = await self._trees.ask(self._tree.resolve, file_id)
        if found.kind is NodeKind.DIRECTORY:
            raise RefusedError(errno.EISDIR)
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            await self._flusher.admit_change(shrinks=True)
            await self._trees.ask(change.set_attributes, self._tree, file_id, change.Wanted(size=0))
            self._guard.removed()
        return self._open(file_id, flags)

    def _open(self, file_id: FileId, flags: int) -> pyfuse3.FileInfo:
        handle = next(self._next)
        self._handles[handle] = LiveFile(file_id, flags)
        self.known.opened(file_id)
        self._jobs.opened(file_id)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)

    def _file(self, fh: int) -> LiveFile:
        handle = self._handles.get(fh)
        if not isinstance(handle, LiveFile):
            raise RefusedError(errno.EBADF)
        return handle

    def release(self, fh: int) -> None:
        """The last reference to a handle is gone; its bytes may go to the store without waiting for more."""
        handle = self._handles.pop(fh, None)
        if handle is not None and self.known.closed(handle.file_id):
            self._jobs.closed(handle.file_id)
            self.known.drop_unused(handle.file_id)

    async def read(self, fh: int, offset: int, length: int) -> bytes | memoryview:
        handle = self._file(fh)
        found = await self._trees.ask(self._tree.resolve, handle.file_id)
        if isinstance(found, Inode):
            data = self._reads.at_hand(found, offset, length)
            if data is not None:
                return data
            self._neighbours.missed(found)
            if handle.stream is None:
                handle.stream = Stream()
            return await self._reads.read(found, handle.stream, offset, length)
        end = min(offset + length, found.size)
        if end <= offset or found.data is None:
            return b""
        return await self._read_node(found, offset, end)

    async def _read_node(self, node: Node, start: int, end: int) -> bytes | memoryview:
        """Bytes of a changed file. What is in memory is copied before the first `await`: it may be patched after."""
        assert node.data is not None
        extents: list[Extent] = []
        memory: list[tuple[int, bytes]] = []
        below: list[tuple[int, int, Inode]] = []
        for span in node.data.spans(start, end):
            if isinstance(span.source, Piece):
                assert span.source.chunk is not None
                extents.append(Extent(span.start, span.end - span.start, span.source.chunk, span.source.chunk_offset))
            elif isinstance(span.source, Inode):
                below.append((span.start, span.end, span.source))
            elif span.source is not None:
                memory.append((span.start, bytes(span.source)))
        if len(memory) == 1 and len(memory[0][1]) == end - start:
            return memory[0][1]
        for first, last, inode in below:
            for extent in await self._trees.ask(self._trees.reader.extents, inode, first, last):
                begin, upto = max(first, extent.offset), min(last, extent.offset + extent.length)
                extents.append(Extent(begin, upto - begin, extent.chunk, extent.chunk_offset + begin - extent.offset))
        extents.sort()
        stored = assemble(extents, await self._reads.chunks(unique(extents)), start, end)
        if not memory:
            return stored
        buffer = bytearray(stored)
        for at, part in memory:
            buffer[at - start : at - start + len(part)] = part
        return bytes(buffer)

    async def write(self, fh: int, offset: int, part: bytes) -> int:
        """Takes bytes that have room on disk by the time this returns. Raises NoSpaceError."""
        file_id = self._file(fh).file_id
        if offset + len(part) > FILE_SIZE_MAX:
            raise RefusedError(errno.EFBIG)
        journal_bytes = 0
        if file_id not in self._tree.journal_nodes:
            journal_bytes = CHANGE_COST + _xattr_bytes(await self._trees.ask(self._tree.resolve, file_id))
        admitted = await self._flusher.admit_write(len(part), journal_bytes)
        try:
            await self._trees.ask(write, self._tree, file_id, offset, part)
        finally:
            self._jobs.took_in(admitted)
        self._jobs.pump()
        return len(part)

    # --- directories --------------------------------------------------------------------------------------------

    async def opendir(self, number: int) -> pyfuse3.FileHandleT:
        file_id = live_file_id(number)
        listing = await self._trees.ask(Listing, self._tree, file_id)
        handle = next(self._next)
        self._handles[handle] = LiveDirectory(file_id, listing)
        self.known.opened(file_id)
        return pyfuse3.FileHandleT(handle)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from number `start_id` on, until the kernel's buffer is full; rewound, as the directory is then."""
        handle = self._handles.get(fh)
        if not isinstance(handle, LiveDirectory):
            raise RefusedError(errno.EBADF)
        if not handle.begun:
            await self._neighbours.listed(handle.file_id, handle.listing.committed)
        if start_id == 0 and (handle.begun or not handle.listing.holds()):
            handle.listing = await self._trees.ask(Listing, self._tree, handle.file_id)
            handle.start, handle.window = 0, []
        elif start_id < handle.start:
            handle.listing.rewind()
            handle.start, handle.window = 0, []
        handle.begun = True
        at = start_id
        while True:
            while at >= handle.start + len(handle.window):
                batch = await self._trees.ask(handle.listing.batch)
                if not batch:
                    return
                handle.start += len(handle.window)
                handle.window = batch
            seen = handle.window[at - handle.start]
            if seen is not None and not handle.listing.holds():
                seen = await self._trees.ask(handle.listing.current, seen)
            at += 1
            if seen is None:
                continue
            if not pyfuse3.readdir_reply(token, seen.name, self._attributes(seen.view), at):
                return
            self.known.told(handle.file_id, seen.name, seen.view, linked=seen.linked)

    # --- durability ---------------------------------------------------------------------------------------------

    async def fsync(self) -> None:
        """Everything acknowledged so far is durable, of this file and of all others: one prefix of operations."""
        await self._flusher.sync()


def _xattr_bytes(view: View) -> int:
    """Journal bytes that an inode's extended attributes take: each change of it writes them all."""
    if not view.xattrs:
        return 0
    return sum(len(name) + len(value) + XATTR_OVERHEAD_BYTES for name, value in view.xattrs)
