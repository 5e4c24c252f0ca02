"""What `stat` shows of a segment's entries, row after row, without an Inode for each. Pure.

A listing wants neither extents nor xattrs; running through the columns once costs a fifth of decoding every inode.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from repository.format.attributes import MODE_MAX, NS, TIME_MAX_NS, TIME_MIN_NS, AttrColumns
from repository.format.files import FileColumns
from repository.format.inode import NodeKind
from repository.format.packing import refuse
from repository.ids import FILE_ID_BITS, FileId

_U32: Final = (1 << 32) - 1
_FILE_ID_END: Final = 1 << FILE_ID_BITS
_KIND_OF: Final = (None, *NodeKind)
_LINK: Final = int(NodeKind.LINK)
_DEVICES: Final = (NodeKind.CHARACTER, NodeKind.BLOCK)


class Stat(NamedTuple):
    """The fields of `Inode` of the same names. Of a LINK only `kind` and `file_id` mean anything."""

    kind: NodeKind
    file_id: FileId
    version: int
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    allocated_bytes: int


def stats_of(files: FileColumns, attrs: AttrColumns, first: int) -> Iterator[Stat]:
    """The rows from `first` on. Raises DamagedError."""
    make = Stat._make
    for row, (kind_number, fixed, (size, allocated)) in enumerate(
        zip(files.kinds[first:], attrs.rows(first), files.sizes(first), strict=True), first
    ):
        (file_id, atime_s, mtime_s, ctime_s, atime_n, mtime_n, ctime_n, version, uid, gid, nlink, mode) = fixed
        kind = _KIND_OF[kind_number]
        assert kind is not None
        if file_id >= _FILE_ID_END:
            refuse(attrs.origin, "a file id is impossible")
        if kind_number == _LINK:
            yield make((kind, file_id, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0))
            continue
        atime_n = (atime_n + mtime_n) & _U32
        ctime_n = (ctime_n + mtime_n) & _U32
        if mode > MODE_MAX or atime_n >= NS or mtime_n >= NS or ctime_n >= NS:
            refuse(attrs.origin, "a mode or time is impossible")
        times = (atime_s * NS + atime_n, mtime_s * NS + mtime_n, ctime_s * NS + ctime_n)
        if min(times) < TIME_MIN_NS or max(times) > TIME_MAX_NS:
            refuse(attrs.origin, "a time is impossible")
        device = files.device(row) if kind in _DEVICES else 0
        yield make((kind, file_id, version, mode, uid, gid, device, size, nlink, *times, allocated))


def looks_of(files: FileColumns, attrs: AttrColumns) -> list[tuple[int, int, int, int]]:
    """Kind, size, and times of modification and change of every row, at a third of the cost of `stats_of`. Of a LINK
    only the kind means anything.

    Nothing is refused, for comparing with what a disk holds: an impossible value is merely unequal.
    """
    return [
        (kind, size, row[2] * NS + row[5], row[3] * NS + ((row[6] + row[5]) & _U32))
        for kind, size, row in zip(files.kinds, files.plain_sizes(), attrs.rows(0), strict=True)
    ]
