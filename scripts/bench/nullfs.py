"""A file system that does nothing, as a floor: names and attributes in a dictionary, bytes thrown away.

What `cp` into it costs is what the kernel, libfuse, pyfuse3 and trio cost; nothing that stores can be quicker.
Run as `python -m bench.nullfs MOUNTPOINT`, in the foreground, until it is unmounted.
"""

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import pyfuse3
import trio

TIMEOUT_S: Final = 300.0
CAPACITY_BYTES: Final = 1 << 40
UNIT_BYTES: Final = 4096


@dataclass(slots=True)
class _Node:
    attributes: pyfuse3.EntryAttributes
    target: bytes = b""
    children: dict[bytes, int] = field(default_factory=dict)


class NullOperations(pyfuse3.Operations):
    """Enough for `cp -a`, `find` and `rm -r`."""

    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[int, _Node] = {}
        self._next = int(pyfuse3.ROOT_INODE)
        self._make(stat.S_IFDIR | 0o755, os.getuid(), os.getgid())

    def _make(self, mode: int, uid: int, gid: int, target: bytes = b"") -> int:
        attributes = pyfuse3.EntryAttributes()
        now_ns = time.time_ns()
        attributes.st_ino = pyfuse3.InodeT(self._next)
        attributes.st_mode = pyfuse3.ModeT(mode)
        attributes.st_nlink = 1
        attributes.st_uid, attributes.st_gid = uid, gid
        attributes.st_size = len(target)
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now_ns
        attributes.entry_timeout = attributes.attr_timeout = TIMEOUT_S
        self._nodes[self._next] = _Node(attributes, target)
        self._next += 1
        return self._next - 1

    def _add(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext, target: bytes = b""
    ) -> pyfuse3.EntryAttributes:
        inode = self._make(mode, ctx.uid, ctx.gid, target)
        self._nodes[parent].children[name] = inode
        return self._nodes[inode].attributes

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = self._nodes[parent_inode].children.get(name)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._nodes[inode].attributes

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._nodes[inode].attributes

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        own = self._nodes[inode].attributes
        if fields.update_mode:
            own.st_mode = attr.st_mode
        if fields.update_uid:
            own.st_uid = attr.st_uid
        if fields.update_gid:
            own.st_gid = attr.st_gid
        if fields.update_size:
            own.st_size = attr.st_size
        if fields.update_atime:
            own.st_atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            own.st_mtime_ns = attr.st_mtime_ns
        return own

    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx)

    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target)

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        return pyfuse3.FileNameT(self._nodes[inode].target)

    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        attributes = self._add(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(int(attributes.st_ino))), attributes

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(int(inode)))

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        own = self._nodes[fh].attributes
        own.st_size = max(own.st_size, off + len(buf))
        return len(buf)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return bytes(max(0, min(size, self._nodes[fh].attributes.st_size - off)))

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        pass

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(int(inode))

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for position, (name, inode) in enumerate(list(self._nodes[fh].children.items())[start_id:], start_id + 1):
            attributes = self._nodes[inode].attributes
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, position):
                return

    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        return ()

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = UNIT_BYTES
        found.f_blocks = found.f_bfree = found.f_bavail = CAPACITY_BYTES // UNIT_BYTES
        found.f_files = found.f_ffree = found.f_favail = 1 << 30
        found.f_namemax = 255
        return found


def main() -> None:
    options = {*pyfuse3.default_options, "fsname=nullfs"}
    options.discard("default_permissions")
    pyfuse3.init(NullOperations(), sys.argv[1], options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
