"""The attribute side of inodes as columns: file ids, owners, times, xattrs; and inodes out of both sides. Pure."""

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np

from repository.format.files import FileColumns
from repository.format.inode import DirRef, Extent, ExtentsRef, Inode, NodeKind
from repository.format.packing import U16_ROW, U64_ROW, Cursor, id_at, id_or_none, planes_of, refuse, split_ids
from repository.format.xattrs import Xattrs, decode_xattrs
from repository.ids import FILE_ID_BITS, NO_ID, RECORD_ID_BYTES, FileId, RecordId

_U32: Final = (1 << 32) - 1
NS: Final = 1_000_000_000
_FILE_ID_END: Final = 1 << FILE_ID_BITS
MODE_MAX: Final = 0o7777
TIME_MAX_NS: Final = (1 << 63) - 1
TIME_MIN_NS: Final = -(1 << 63)
_KIND_OF: Final = (None, *NodeKind)
XATTRS_RECORD: Final = (1 << 16) - 1
_ATTR_ROW: Final = struct.Struct("<QqqqIIIIIIIH")
ATTR_ROW_BYTES: Final = _ATTR_ROW.size
_DELTA_BYTES: Final = 32
"""File id and the seconds of the three times, which come first in a row, are stored as differences."""


class AttrRows(NamedTuple):
    """Columns of neighbours, each with its rows run together. File ids and times are whole, not differences."""

    rows: bytes
    lengths: bytes
    xattrs: bytes
    xattr_ids: bytes
    child_ids: bytes


class AttrColumns:
    """The attribute side of n inodes: file ids, versions, mode, owners, times, xattrs, child attribute listings.

    `directories` of the n are directories; they have a child listing each. Immutable, so thread safe.
    """

    __slots__ = ("_ids", "_rows", "_xattr_ends", "_xattr_lengths", "_xattrs", "count", "directories", "origin",
                 "xattr_records")  # fmt: skip

    def __init__(self, cursor: Cursor, count: int, directories: int) -> None:
        """Takes the columns of `count` inodes from `cursor`. Raises DamagedError."""
        self.origin = cursor.origin
        self.count = count
        self.directories = directories
        self._rows = _undo_deltas(cursor.take(count * _ATTR_ROW.size), count)
        lengths = cursor.rows(count, U16_ROW.size)
        self._xattr_lengths: tuple[int, ...] = ()
        self._xattr_ends: list[int] = []
        self.xattr_records = inline = 0
        if lengths.count(0) != len(lengths):
            self._xattr_lengths = tuple(length for (length,) in U16_ROW.iter_unpack(lengths))
            self.xattr_records = self._xattr_lengths.count(XATTRS_RECORD)
            inlined = (0 if one == XATTRS_RECORD else one for one in self._xattr_lengths)
            self._xattr_ends = list(accumulate(inlined, initial=0))
            inline = self._xattr_ends[-1]
        self._xattrs = cursor.take(inline)
        self._ids = cursor.take((self.xattr_records + directories) * RECORD_ID_BYTES)

    @property
    def nbytes(self) -> int:
        """Estimated memory in bytes."""
        tables = len(self._rows) + len(self._xattrs) + len(self._ids)
        return 500 + tables + 16 * len(self._xattr_ends)

    def row(self, row: int) -> tuple[int, ...]:
        """The fixed fields at `row`, as stored."""
        return _ATTR_ROW.unpack_from(self._rows, row * _ATTR_ROW.size)

    def rows(self, first: int) -> Iterator[tuple[int, ...]]:
        """The fixed fields from row `first` on, as stored."""
        return _ATTR_ROW.iter_unpack(memoryview(self._rows)[first * _ATTR_ROW.size :])

    def file_id(self, row: int) -> FileId:
        """File id at `row`."""
        (found,) = U64_ROW.unpack_from(self._rows, row * _ATTR_ROW.size)
        return FileId(found)

    def xattr_ids(self) -> list[RecordId]:
        """XATTRS records."""
        return split_ids(self._ids[: self.xattr_records * RECORD_ID_BYTES])

    def node_ids(self) -> list[RecordId]:
        """Child attribute listings."""
        return split_ids(self._ids[self.xattr_records * RECORD_ID_BYTES :])

    def xattrs(self, row: int) -> Xattrs | RecordId:
        """The xattrs at `row`, or the XATTRS record that holds them."""
        lengths = self._xattr_lengths
        if not lengths or not lengths[row]:
            return ()
        if lengths[row] == XATTRS_RECORD:
            return id_at(self._ids, lengths[:row].count(XATTRS_RECORD))
        ends = self._xattr_ends
        return decode_xattrs(self._xattrs[ends[row] : ends[row + 1]], self.origin)

    def part(self, first: int, end: int, directory: int, directory_end: int) -> AttrRows:
        """The rows from `first` up to `end` as they are written. Among these, the directories are those with the
        numbers from `directory` up to `directory_end`."""
        lengths, ends, ids = self._xattr_lengths, self._xattr_ends, self._ids
        record = lengths[:first].count(XATTRS_RECORD)
        record_end = record + lengths[first:end].count(XATTRS_RECORD)
        children = self.xattr_records
        return AttrRows(
            self._rows[first * ATTR_ROW_BYTES : end * ATTR_ROW_BYTES],
            b"".join(map(U16_ROW.pack, lengths[first:end])) if lengths else bytes(U16_ROW.size * (end - first)),
            self._xattrs[ends[first] : ends[end]] if lengths else b"",
            ids[record * RECORD_ID_BYTES : record_end * RECORD_ID_BYTES],
            ids[(children + directory) * RECORD_ID_BYTES : (children + directory_end) * RECORD_ID_BYTES],
        )

    def child(self, ordinal: int) -> RecordId | None:
        """Attribute listing of the directory number `ordinal`."""
        return id_or_none(self._ids, self.xattr_records + ordinal)

    def children(self, ordinal: int, most: int) -> list[RecordId]:
        """Attribute listings of the directories number `ordinal` and following, `most` of them; without empty ones."""
        first = self.xattr_records + ordinal
        return split_ids(self._ids[first * RECORD_ID_BYTES : (first + most) * RECORD_ID_BYTES])


def _undo_deltas(planes: bytes, count: int) -> bytes:
    """Rows with absolute values out of planes with differences."""
    if count < 2:
        return planes
    rows = np.frombuffer(planes, np.uint8).reshape(_ATTR_ROW.size, count).T.copy()
    columns = rows[:, :_DELTA_BYTES].view("<u8")
    np.add.accumulate(columns, axis=0, out=columns)
    return rows.tobytes()


def _make_deltas(rows: bytes, count: int) -> bytes:
    """The inverse of `_undo_deltas`."""
    if count < 2:
        return rows
    table = np.frombuffer(rows, np.uint8).reshape(count, _ATTR_ROW.size).copy()
    columns = table[:, :_DELTA_BYTES].view("<u8")
    columns[1:] -= columns[:-1].copy()
    return table.T.tobytes()


Contents = tuple[tuple[Extent, ...] | ExtentsRef, int, int]
"""Extents, size and allocated bytes of a FILE."""


def inode_at(
    files: FileColumns, attrs: AttrColumns, row: int, xattrs: Xattrs, contents: Contents | None = None
) -> Inode:
    """The inode at `row`; `xattrs` are its extended attributes, already fetched. Raises DamagedError.

    `contents`: what `files.contents` told of the row, where that was asked.
    """
    (file_id, atime_s, mtime_s, ctime_s, atime_n, mtime_n, ctime_n, version, uid, gid, nlink, mode) = attrs.row(row)
    kind = _KIND_OF[files.kinds[row]]
    assert kind is not None
    if file_id >= _FILE_ID_END:
        refuse(attrs.origin, "a file id is impossible")
    if kind is NodeKind.LINK:
        return Inode(kind, FileId(file_id))
    atime_n = (atime_n + mtime_n) & _U32
    ctime_n = (ctime_n + mtime_n) & _U32
    atime_ns = atime_s * NS + atime_n
    mtime_ns = mtime_s * NS + mtime_n
    ctime_ns = ctime_s * NS + ctime_n
    if mode > MODE_MAX or atime_n >= NS or mtime_n >= NS or ctime_n >= NS:
        refuse(attrs.origin, "a mode or time is impossible")
    if not (
        TIME_MIN_NS <= atime_ns <= TIME_MAX_NS
        and TIME_MIN_NS <= mtime_ns <= TIME_MAX_NS
        and TIME_MIN_NS <= ctime_ns <= TIME_MAX_NS
    ):
        refuse(attrs.origin, "a time is impossible")
    common = (version, mode, uid, gid)
    if kind is NodeKind.FILE:
        extents, size, allocated = files.extents(row) if contents is None else contents
        return Inode(kind, FileId(file_id), *common, 0, size, nlink, atime_ns, mtime_ns, ctime_ns, xattrs, b"",
                     extents, allocated)  # fmt: skip
    size = files.size(row)
    if kind is NodeKind.DIRECTORY:
        content, totals = files.directory(row)
        child = attrs.child(files.kinds.count(NodeKind.DIRECTORY, 0, row))
        if (content is None) is not (child is None):
            refuse(attrs.origin, "a directory has half a listing")
        return Inode(kind, FileId(file_id), *common, 0, size, nlink, atime_ns, mtime_ns, ctime_ns, xattrs, b"",
                     (), 0, DirRef(content, child), totals)  # fmt: skip
    target = files.target(row) if kind is NodeKind.SYMLINK else b""
    device = files.device(row) if kind is NodeKind.CHARACTER or kind is NodeKind.BLOCK else 0
    return Inode(kind, FileId(file_id), *common, device, size, nlink, atime_ns, mtime_ns, ctime_ns, xattrs, target)


def attr_rows(inodes: Sequence[Inode], inline: Sequence[bytes | None], records: Sequence[RecordId]) -> AttrRows:
    """The attribute side of `inodes`.

    `inline[i]` is what `encode_xattrs` made of the xattrs (nothing for a LINK), at most INLINE_XATTRS_MAX_BYTES;
    or None where an XATTRS record holds them: `records` names those in order.
    Raises ValueError for values that the format cannot hold.
    """
    rows: list[bytes] = []
    lengths: list[bytes] = []
    children: list[bytes] = []
    try:
        for inode, xattrs in zip(inodes, inline, strict=True):
            kind = inode.kind
            if inode.file_id >= _FILE_ID_END or inode.mode > MODE_MAX:
                raise ValueError("a file id has 40 bits, a mode 12")
            if kind is NodeKind.LINK:
                rows.append(_ATTR_ROW.pack(inode.file_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
                lengths.append(b"\0\0")
                continue
            for time_ns in (inode.atime_ns, inode.mtime_ns, inode.ctime_ns):
                if not TIME_MIN_NS <= time_ns <= TIME_MAX_NS:
                    raise ValueError("a time has 64 bits")
            atime_s, atime_n = divmod(inode.atime_ns, NS)
            mtime_s, mtime_n = divmod(inode.mtime_ns, NS)
            ctime_s, ctime_n = divmod(inode.ctime_ns, NS)
            rows.append(
                _ATTR_ROW.pack(
                    inode.file_id,
                    atime_s,
                    mtime_s,
                    ctime_s,
                    (atime_n - mtime_n) & _U32,
                    mtime_n,
                    (ctime_n - mtime_n) & _U32,
                    inode.version,
                    inode.uid,
                    inode.gid,
                    inode.nlink,
                    inode.mode,
                )
            )
            lengths.append(U16_ROW.pack(XATTRS_RECORD if xattrs is None else len(xattrs)))
            if kind is NodeKind.DIRECTORY:
                children.append(inode.directory.attrs or NO_ID)
    except struct.error as error:
        raise ValueError(f"an inode does not fit the format: {error}") from error
    present = (one for one in inline if one is not None)
    return AttrRows(*map(b"".join, (rows, lengths, present, records, children)))


def encode_attrs(parts: Sequence[AttrRows]) -> bytes:
    """The attribute side of the rows of `parts`, one behind the other."""
    rows = parts[0] if len(parts) == 1 else AttrRows(*map(b"".join, zip(*parts, strict=True)))
    return b"".join((
        _make_deltas(rows.rows, len(rows.rows) // ATTR_ROW_BYTES),
        planes_of(rows.lengths, U16_ROW.size),
        rows.xattrs, rows.xattr_ids, rows.child_ids,
    ))  # fmt: skip
