"""The links table as bytes: the inodes of a snapshot that have, or had, several names, sorted by file id. Pure."""

import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

from repository.format.attributes import AttrColumns, attr_rows, encode_attrs
from repository.format.filerows import encode_files, file_rows
from repository.format.files import FileColumns
from repository.format.inode import Inode, NodeKind, Totals
from repository.format.packing import Cursor, id_at, planes_of, refuse
from repository.format.tree import LAYOUT, LEVEL_MAX
from repository.ids import RECORD_ID_BYTES, FileId, RecordId

LINKS_SEGMENT_MAX: Final = 1024
"""Inodes of one segment; as with directories it stays below RAW_MAX_BYTES."""
LINKS_LIST_MAX: Final = 2048
"""Segments or lists under one list: 112 KiB."""

_HEAD: Final = struct.Struct("<B3xI")
_LIST_HEAD: Final = struct.Struct("<BBxxI")
_LIST_ROW: Final = struct.Struct("<QQQ")
_FORBIDDEN: Final = bytes((NodeKind.DIRECTORY, NodeKind.LINK))


class ListedLinks(NamedTuple):
    """A segment (or lower list) of a links table: its last file id, `inodes` in it, their content bytes, its record."""

    last_file_id: int
    inodes: int
    content_bytes: int
    id: RecordId


class LinksSegment:
    """A decoded LINKS_SEGMENT: inodes with ascending file ids. Immutable."""

    __slots__ = ("attrs", "file_ids", "files", "nbytes", "origin")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        """Decodes. Raises DamagedError naming `origin`."""
        cursor = Cursor(payload, origin)
        layout, count = cursor.head(_HEAD)
        if layout != LAYOUT or not 1 <= count <= LINKS_SEGMENT_MAX:
            refuse(origin, "its layout or number of inodes is unknown")
        self.origin = origin
        self.files = FileColumns(cursor, count)
        self.attrs = AttrColumns(cursor, count, 0)
        cursor.finish()
        if len(self.files.kinds.translate(None, _FORBIDDEN)) != count:
            refuse(origin, "a directory or a link in it is not allowed")
        self.file_ids = [self.attrs.file_id(row) for row in range(count)]
        if any(one >= other for one, other in zip(self.file_ids, self.file_ids[1:], strict=False)):
            refuse(origin, "its file ids are not in order")
        self.nbytes = 300 + self.files.nbytes + self.attrs.nbytes + 40 * count

    def find(self, file_id: FileId) -> int | None:
        """The row of `file_id`."""
        row = bisect_left(self.file_ids, file_id)
        return row if row < len(self.file_ids) and self.file_ids[row] == file_id else None

    def totals(self) -> Totals:
        """Number of inodes, and the sum of their sizes in bytes."""
        rows = (self.files.row_totals(row) for row in range(self.files.count))
        return Totals(self.files.count, sum(one.content_bytes for one in rows))


class LinksList:
    """A decoded LINKS_LIST. Immutable."""

    __slots__ = ("children", "level", "nbytes", "origin")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        """Decodes. Raises DamagedError naming `origin`."""
        cursor = Cursor(payload, origin)
        layout, level, count = cursor.head(_LIST_HEAD)
        if layout != LAYOUT or not 1 <= level <= LEVEL_MAX or not 1 <= count <= LINKS_LIST_MAX:
            refuse(origin, "its layout, level or number of children is unknown")
        self.origin = origin
        self.level = level
        rows = cursor.rows(count, _LIST_ROW.size)
        ids = cursor.take(count * RECORD_ID_BYTES)
        cursor.finish()
        children: list[ListedLinks] = []
        before = -1
        for index, (last, inodes, content_bytes) in enumerate(_LIST_ROW.iter_unpack(rows)):
            if last <= before or not inodes:
                refuse(origin, "its file ids are not in order")
            children.append(ListedLinks(last, inodes, content_bytes, id_at(ids, index)))
            before = last
        self.children = children
        self.nbytes = 300 + 300 * count

    def index_of(self, file_id: int) -> int:
        """The child that holds `file_id` if any does; the last one for ids behind all."""
        return min(bisect_left(self.children, file_id, key=_last_file_id), len(self.children) - 1)

    def node_ids(self) -> list[RecordId]:
        """All children."""
        return [child.id for child in self.children]


def _last_file_id(child: ListedLinks) -> int:
    return child.last_file_id


def encode_links_segment(inodes: Sequence[Inode], inline: Sequence[bytes | None], records: Sequence[RecordId]) -> bytes:
    """The LINKS_SEGMENT payload of `inodes` (ascending file ids). Raises ValueError where it cannot hold them."""
    if any(inode.kind in (NodeKind.DIRECTORY, NodeKind.LINK) for inode in inodes):
        raise ValueError("the links table holds neither directories nor links")
    head = _HEAD.pack(LAYOUT, len(inodes))
    return b"".join((head, encode_files([file_rows(inodes)]), encode_attrs([attr_rows(inodes, inline, records)])))


def encode_links_list(level: int, children: Sequence[ListedLinks]) -> bytes:
    """The LINKS_LIST payload over `children`, which are of `level` - 1 (0: segments)."""
    rows = b"".join(_LIST_ROW.pack(*child[:3]) for child in children)
    head = _LIST_HEAD.pack(LAYOUT, level, len(children))
    return b"".join((head, planes_of(rows, _LIST_ROW.size), *(child.id for child in children)))
