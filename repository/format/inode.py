"""What the repository knows about one file, as frozen values. Pure."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from repository.ids import FileId, RecordId


class NodeKind(IntEnum):
    """The type of a directory entry, as stored in the type column of a tree segment."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER = 6
    BLOCK = 7
    LINK = 8
    """A name of a hard-linked inode: only its file id is here, the rest is in the snapshot's links table."""


class Extent(NamedTuple):
    """`length` bytes of the file from `offset` on are the bytes of `chunk` from `chunk_offset` on.

    All in bytes. What no extent covers reads as zeros.
    """

    offset: int
    length: int
    chunk: RecordId
    chunk_offset: int


@dataclass(frozen=True, slots=True)
class DirRef:
    """A directory's listing: two parallel Merkle trees, one of content and one of attributes.

    Each id names a segment record (small directory) or a segment-list record; None for an empty directory
    (both are None together).
    """

    content: RecordId | None
    attrs: RecordId | None


EMPTY_DIR = DirRef(None, None)


class Totals(NamedTuple):
    """What lies below a directory: number of entries that are not directories, and the sum of file sizes in bytes."""

    files: int
    content_bytes: int


@dataclass(frozen=True, slots=True)
class ExtentsRef:
    """An extent list in records of its own: `head` names the EXTENT_LIST record; `count` extents in all."""

    head: RecordId
    count: int


@dataclass(frozen=True, slots=True)
class Inode:
    """Everything `stat`, `listxattr` and `readlink` tell, and where the bytes are.

    `mode` holds the permission bits only (0o7777); the type is `kind`. Times are nanoseconds since 1970, signed
    64 bit. `allocated_bytes` is the sum of the extents' lengths (st_blocks * 512 rounds it up).
    For LINK entries everything except `kind` and `file_id` is a default, until resolved through the links table.
    """

    kind: NodeKind
    file_id: FileId
    version: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    nlink: int = 1
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    extents: tuple[Extent, ...] | ExtentsRef = ()
    allocated_bytes: int = 0
    directory: DirRef = EMPTY_DIR
    totals: Totals = Totals(0, 0)


class Entry(NamedTuple):
    """One name in a directory."""

    name: bytes
    inode: Inode
