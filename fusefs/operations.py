"""The handlers that pyfuse3 calls: each finds out whose the inode number or handle is, and passes the request on.

Numbers under `live/` go to LiveOps, all others to Browse; a rename or link across the two is EXDEV, as between disks.
"""

import errno
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import pyfuse3

from fusefs.answers import Answers
from fusefs.browse import Browse
from fusefs.errnos import boundary
from fusefs.handles import is_browse_handle
from fusefs.inodes import Space, is_live, space_of
from fusefs.live_ops import LiveOps
from repository.errors import ReadOnlyError, RefusedError
from repository.live.attributes import Wanted

StatFs = Callable[[], Awaitable[pyfuse3.StatvfsData]]


class Operations(pyfuse3.Operations):
    """One mount. `live` is None where it is read-only."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, browse: Browse, live: LiveOps | None, statfs: StatFs, answers: Answers) -> None:
        super().__init__()
        self._answers: Final = answers
        self._browse: Final = browse
        self._live_ops: Final = live
        self._statfs: Final = statfs

    def _live(self, number: int) -> LiveOps:
        """The live tree, for a change of `number` or of entries in it. EROFS elsewhere."""
        if self._live_ops is None or not is_live(number):
            raise ReadOnlyError("this part of the mount cannot be written to", errno.EROFS)
        return self._live_ops

    def _open_live(self) -> LiveOps:
        if self._live_ops is None:
            raise RefusedError(errno.EBADF)
        return self._live_ops

    # --- names and attributes -----------------------------------------------------------------------------------

    @boundary
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if is_live(parent_inode) and self._live_ops is not None:
            return await self._live_ops.lookup(parent_inode, name)
        return await self._browse.lookup(parent_inode, name)

    @boundary
    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        if self._live_ops is not None:
            self._live_ops.known.forget([pair for pair in inode_list if is_live(pair[0])])
        self._browse.forget([pair for pair in inode_list if not is_live(pair[0])])

    @boundary
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if is_live(inode) and self._live_ops is not None:
            return await self._live_ops.getattr(inode)
        return await self._browse.getattr(inode)

    @boundary
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        wanted = Wanted(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return await self._live(inode).setattr(inode, wanted)

    @boundary
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        if is_live(inode) and self._live_ops is not None:
            return pyfuse3.FileNameT(await self._live_ops.readlink(inode))
        return pyfuse3.FileNameT(await self._browse.readlink(inode))

    @boundary
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return await self._live(parent_inode).make(parent_inode, name, mode, ctx, rdev=rdev)

    @boundary
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not is_live(parent_inode):
            return await self._browse.mkdir(parent_inode, name)
        return await self._live(parent_inode).make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx)

    @boundary
    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return await self._live(parent_inode).make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target)

    @boundary
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if is_live(inode) != is_live(new_parent_inode):
            raise RefusedError(errno.EXDEV)
        return await self._live(inode).link(inode, new_parent_inode, new_name)

    @boundary
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        await self._live(parent_inode).unlink(parent_inode, name)

    @boundary
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        if not is_live(parent_inode):
            await self._browse.rmdir(parent_inode, name)
        else:
            await self._live(parent_inode).rmdir(parent_inode, name)

    @boundary
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if is_live(parent_inode_old) != is_live(parent_inode_new):
            raise RefusedError(errno.EXDEV)
        if not is_live(parent_inode_old):
            await self._browse.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
        else:
            live = self._live(parent_inode_old)
            await live.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # --- extended attributes ------------------------------------------------------------------------------------

    @boundary
    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        if is_live(inode) and self._live_ops is not None:
            value = await self._live_ops.getxattr(inode, name)
            if value is None:  # the kernel asks this of every file that is written: not worth two exceptions
                raise pyfuse3.FUSEError(errno.ENODATA)
            return value
        return await self._browse.getxattr(inode, name)

    @boundary
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        if is_live(inode) and self._live_ops is not None:
            found: Sequence[bytes] = await self._live_ops.listxattr(inode)
        else:
            found = await self._browse.listxattr(inode)
        return [pyfuse3.XAttrNameT(name) for name in found]

    @boundary
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await self._live(inode).setxattr(inode, name, value)

    @boundary
    async def removexattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> None:
        await self._live(inode).removexattr(inode, name)

    # --- open files and directories -----------------------------------------------------------------------------

    @boundary
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        return await self._live(parent_inode).create(parent_inode, name, mode, flags, ctx)

    @boundary
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if is_live(inode):
            return await self._live(inode).open(inode, flags)
        return await self._browse.open(inode, flags)

    @boundary
    async def read(  # type: ignore[override]  # pyfuse3 takes any buffer, and its stub says bytes
        self, fh: pyfuse3.FileHandleT, off: int, size: int
    ) -> bytes | memoryview:
        if is_browse_handle(fh):
            return await self._browse.read(fh, off, size)
        return await self._open_live().read(fh, off, size)

    @boundary
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return await self._open_live().write(fh, off, buf)

    @boundary
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to do: what was written is what the next reader sees. After this answer the kernel takes every flush
        for done and asks no more, which saves a request a `close`."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @boundary
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        if is_browse_handle(fh):
            self._browse.release(fh)
        else:
            self._open_live().release(fh)

    @boundary
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        if not is_browse_handle(fh):
            await self._open_live().fsync()

    @boundary
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        if is_live(inode):
            return await self._live(inode).opendir(inode)
        handle = await self._browse.opendir(inode)
        if space_of(inode) is Space.SNAPSHOT_DIRECTORY:
            self._answers.keep_listing()
        return handle

    @boundary
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if is_browse_handle(fh):
            await self._browse.readdir(fh, start_id, token)
        else:
            await self._open_live().readdir(fh, start_id, token)

    @boundary
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        await self.release(fh)

    @boundary
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self.fsync(fh, datasync)

    @boundary
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return await self._statfs()
