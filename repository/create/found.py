"""An inode out of what lstat told of a file."""

import os
import stat

from repository.create.source import Xattrs, kind_of
from repository.format.inode import Extent, ExtentsRef, Inode, NodeKind
from repository.ids import FileId


def inode_of(
    found: os.stat_result,
    file_id: FileId,
    *,
    xattrs: Xattrs = (),
    target: bytes = b"",
    size: int | None = None,
    extents: tuple[Extent, ...] | ExtentsRef = (),
    allocated_bytes: int = 0,
) -> Inode:
    """An inode with the attributes that one lstat told; `size` (bytes) where the reading knows it better."""
    kind = kind_of(found.st_mode)
    assert kind is not None
    if size is None:
        size = found.st_size if kind is NodeKind.FILE or kind is NodeKind.SYMLINK else 0
    return Inode(
        kind=kind,
        file_id=file_id,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev if kind is NodeKind.CHARACTER or kind is NodeKind.BLOCK else 0,
        size=size,
        nlink=found.st_nlink if kind is not NodeKind.DIRECTORY else 1,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        xattrs=xattrs,
        target=target,
        extents=extents,
        allocated_bytes=allocated_bytes,
    )
