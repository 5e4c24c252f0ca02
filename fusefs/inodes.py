"""The inode numbers of a mount: 64 bits, told apart by the top two. Pure.

| top bits | what | the other 62 bits |
|---|---|---|
| 00 | made-up files and directories | a small constant |
| 01 | whatever is not a directory, in a snapshot | file id (40), version (22) |
| 10 | everything under `live/` | file id |
| 11 | a directory in a snapshot | snapshot id modulo 2^22 (22), file id (40) |

A file that did not change between two snapshots has one number in both: the kernel's page cache is shared, and
`diff -r` passes over it. Directories may not have two places, so theirs carry the snapshot.
"""

from enum import IntEnum
from typing import Final, NewType

from repository.format.inode import Inode, NodeKind
from repository.ids import FILE_ID_BITS, VERSION_BITS, FileId, SnapshotId

InodeNumber = NewType("InodeNumber", int)

SPACE_SHIFT: Final = 62
SERIAL_BITS: Final = SPACE_SHIFT - FILE_ID_BITS
SERIAL_MASK: Final = (1 << SERIAL_BITS) - 1
FILE_ID_MASK: Final = (1 << FILE_ID_BITS) - 1
VERSION_MASK: Final = (1 << VERSION_BITS) - 1
PAYLOAD_MASK: Final = (1 << SPACE_SHIFT) - 1


class Space(IntEnum):
    """Which part of the tree an inode number belongs to."""

    SPECIAL = 0
    SNAPSHOT_FILE = 1
    LIVE = 2
    SNAPSHOT_DIRECTORY = 3


ROOT: Final = InodeNumber(1)
"""FUSE calls the mount's root 1."""
SNAPSHOTS: Final = InodeNumber(2)
TRASH: Final = InodeNumber(3)
README: Final = InodeNumber(4)
CONTROL_DIR: Final = InodeNumber(5)
STATUS_JSON: Final = InodeNumber(6)
LATEST: Final = InodeNumber(7)
DISK_IS_FULL: Final = InodeNumber(8)


_SPACES: Final = tuple(Space)
_LIVE: Final = Space.LIVE << SPACE_SHIFT
_FILES: Final = Space.SNAPSHOT_FILE << SPACE_SHIFT
_DIRECTORIES: Final = Space.SNAPSHOT_DIRECTORY << SPACE_SHIFT


def space_of(number: int) -> Space:
    """The space that `number` lies in."""
    return _SPACES[number >> SPACE_SHIFT]


def is_live(number: int) -> bool:
    """Whether `number` is of something under `live/`."""
    return _LIVE <= number < _DIRECTORIES


def live_number(file_id: FileId) -> InodeNumber:
    """The number under `live/` of the file `file_id`."""
    return InodeNumber(_LIVE | file_id)


def live_file_id(number: int) -> FileId:
    """The file id behind a number of the LIVE space."""
    return FileId(number & FILE_ID_MASK)


def snapshot_directory_number(snapshot: SnapshotId, file_id: FileId) -> InodeNumber:
    """The number of the directory `file_id` as seen in `snapshot`."""
    return InodeNumber(_DIRECTORIES | ((snapshot & SERIAL_MASK) << FILE_ID_BITS) | file_id)


def serial_of(number: int) -> int:
    """The snapshot id modulo 2^22 of a number of the SNAPSHOT_DIRECTORY space."""
    return (number >> FILE_ID_BITS) & SERIAL_MASK


def snapshot_file_number(file_id: FileId, version: int) -> InodeNumber:
    """The number of version `version` of the file `file_id`, the same in every snapshot that holds it."""
    return InodeNumber(_FILES | (file_id << VERSION_BITS) | (version & VERSION_MASK))


def number_in_snapshot(snapshot: SnapshotId, inode: Inode) -> InodeNumber:
    """The number of `inode` (a hard link already resolved) as seen in `snapshot`."""
    if inode.kind is NodeKind.DIRECTORY:
        return snapshot_directory_number(snapshot, inode.file_id)
    return snapshot_file_number(inode.file_id, inode.version)
