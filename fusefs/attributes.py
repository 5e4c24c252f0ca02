"""From the repository's inode to what the kernel is told. Pure."""

import stat
from typing import Final

import pyfuse3

from fusefs.inodes import InodeNumber
from repository.format.inode import NodeKind
from repository.format.stats import Stat
from repository.live.node import View

TYPE_BITS: Final = {
    NodeKind.FILE: stat.S_IFREG,
    NodeKind.DIRECTORY: stat.S_IFDIR,
    NodeKind.SYMLINK: stat.S_IFLNK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER: stat.S_IFCHR,
    NodeKind.BLOCK: stat.S_IFBLK,
}
SECTOR_BYTES: Final = 512
"""The unit of st_blocks, whatever the file system."""
BLOCK_BYTES: Final = 4096
"""What an allocated extent is rounded up to in st_blocks, as on most disks."""
IO_BYTES: Final = 128 * 1024
"""st_blksize: `cp` and friends read and write in pieces of this size, the largest that costs no second request
unraised."""
FOREVER_S: Final = 10 * 24 * 3600.0
"""Timeout of what never changes. The kernel may still drop it whenever it wants."""


def attributes(inode: View | Stat, number: InodeNumber, timeout_s: float) -> pyfuse3.EntryAttributes:
    """What `stat` shows of `inode`; directories have one link, so that `find` draws no conclusion from the count."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = timeout_s
    entry.attr_timeout = timeout_s
    entry.st_mode = TYPE_BITS[inode.kind] | inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    if inode.rdev:
        entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = IO_BYTES
    allocated_bytes = inode.allocated_bytes
    if allocated_bytes:
        entry.st_blocks = -(-allocated_bytes // BLOCK_BYTES) * (BLOCK_BYTES // SECTOR_BYTES)
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def absent(timeout_s: float) -> pyfuse3.EntryAttributes:
    """The answer "no such name", which the kernel remembers for `timeout_s`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = timeout_s
    entry.attr_timeout = timeout_s
    return entry
