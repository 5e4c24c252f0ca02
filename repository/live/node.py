"""A changed inode of the live tree, in memory. Values only; the rules are in `tree` and `names`."""

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from repository.format.inode import EMPTY_DIR, DirRef, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.ids import FileId
from repository.live.filedata import FileData

TYPE_BITS: Final = {
    NodeKind.FILE: stat.S_IFREG,
    NodeKind.DIRECTORY: stat.S_IFDIR,
    NodeKind.SYMLINK: stat.S_IFLNK,
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER: stat.S_IFCHR,
    NodeKind.BLOCK: stat.S_IFBLK,
}
NO_TOTALS: Final = Totals(0, 0)
KIND_OF_TYPE: Final = {bits: kind for kind, bits in TYPE_BITS.items()}


@dataclass(slots=True)
class Node:
    """An inode that changed in this generation. Fields as in `Inode`; `mode` is the permission bits only.

    `parent` and `name` say where it hangs (meaningless for `linked` ones, which live in the links table).
    `fresh`: made since the last flush of the journal. Directories: `base` is the committed listing, `changes` what this
    generation put over it.
    """

    kind: NodeKind
    file_id: FileId
    parent: FileId
    name: bytes
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
    linked: bool = False
    fresh: bool = False
    data: FileData | None = None
    base: DirRef = EMPTY_DIR
    changes: dict[bytes, FileId | None] = field(default_factory=dict)
    count: int = 0
    touched: bool = True
    """False while the node is here only because something below it changed."""

    @property
    def allocated_bytes(self) -> int:
        """Bytes that the file occupies, before deduplication: what is in memory, in pieces and below them."""
        return 0 if self.data is None else self.data.allocated_bytes()

    def attributes(
        self,
        extents: tuple[Extent, ...] | ExtentsRef = (),
        allocated_bytes: int = 0,
        directory: DirRef = EMPTY_DIR,
        totals: Totals = NO_TOTALS,
    ) -> Inode:
        """What the tree and the journal store of this node, with what its bytes or its listing are given as."""
        return Inode(
            kind=self.kind,
            file_id=self.file_id,
            version=self.version,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            rdev=self.rdev,
            size=self.size,
            nlink=self.nlink,
            atime_ns=self.atime_ns,
            mtime_ns=self.mtime_ns,
            ctime_ns=self.ctime_ns,
            xattrs=self.xattrs,
            target=self.target,
            extents=extents,
            allocated_bytes=allocated_bytes,
            directory=directory,
            totals=totals,
        )


Facts = tuple[
    NodeKind,
    FileId,
    int,
    int,
    int,
    int,
    int,
    int,
    int,
    int,
    int,
    int,
    tuple[tuple[bytes, bytes], ...],
    bytes,
]
"""What the journal tells of a node, in the order of the fields of `Inode`."""
FACTS: Final[Callable[[Node], Facts]] = attrgetter(
    "kind",
    "file_id",
    "version",
    "mode",
    "uid",
    "gid",
    "rdev",
    "size",
    "nlink",
    "atime_ns",
    "mtime_ns",
    "ctime_ns",
    "xattrs",
    "target",
)
"""Takes a node's facts in one call: making an Inode of each takes ten times as long."""

View = Node | Inode
"""What reading code sees: both have the same attribute names."""
