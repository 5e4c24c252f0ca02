"""A long extent list as bytes: segments of extents under a list (of lists). Pure.

Offsets inside a segment count from its first extent, and segments are cut by chunk ids: after an insertion into
a file, the segments behind it are the same records again; only the lists, which hold offsets of the file, change.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from repository.format.filerows import EXTENT_ROW, pack_extents
from repository.format.files import EXTENT_DTYPE, check_extent_rows
from repository.format.inode import Extent
from repository.format.packing import SIZE_MAX_BYTES, Cursor, id_at, planes_of, refuse, split_ids
from repository.format.tree import LAYOUT, LEVEL_MAX
from repository.ids import RECORD_ID_BYTES, RecordId

EXTENTS_SEGMENT_MAX: Final = 2048
"""Extents of one segment: 98 KiB."""
EXTENTS_LIST_MAX: Final = 2048
"""Segments or lists under one list: 128 KiB."""

_HEAD: Final = struct.Struct("<B3xI")
_LIST_HEAD: Final = struct.Struct("<BBxxI")
_LIST_ROW: Final = struct.Struct("<QQQQ")
_LIST_DTYPE: Final = np.dtype([("first", "<u8"), ("end", "<u8"), ("count", "<u8"), ("allocated", "<u8")])


class ExtentSegmentRef(NamedTuple):
    """A segment (or lower list) of a file: its extents lie in bytes `first_offset` up to `end_offset` of the file.

    `extent_count` extents with `allocated_bytes` in all; `id` names the record.
    """

    first_offset: int
    end_offset: int
    extent_count: int
    allocated_bytes: int
    id: RecordId


class ExtentSegment:
    """A decoded EXTENT_SEGMENT. Immutable. `starts[i]` counts from the first extent of the segment, in bytes."""

    __slots__ = ("_ends", "_ids", "_rows", "_starts", "count", "nbytes", "origin", "span_bytes")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        """Decodes. Raises DamagedError naming `origin`."""
        cursor = Cursor(payload, origin)
        layout, count = cursor.head(_HEAD)
        if layout != LAYOUT or not 1 <= count <= EXTENTS_SEGMENT_MAX:
            refuse(origin, "its layout or number of extents is unknown")
        self.origin = origin
        self.count = count
        self._rows = cursor.rows(count, EXTENT_ROW.size)
        check_extent_rows(self._rows, origin)
        self._ids = cursor.take(count * RECORD_ID_BYTES)
        cursor.finish()
        table = np.frombuffer(self._rows, EXTENT_DTYPE)
        gaps, lengths = table["gap"], table["length"].astype(np.uint64)
        if int(gaps[0]) != 0 or int(gaps.max()) > SIZE_MAX_BYTES or sum(gaps.tolist()) > SIZE_MAX_BYTES:
            refuse(origin, "its gaps are impossible")
        ends: npt.NDArray[np.uint64] = np.cumsum(gaps + lengths, dtype=np.uint64)
        self._ends = ends
        self._starts: npt.NDArray[np.uint64] = ends - lengths
        self.span_bytes = int(ends[-1])
        self.nbytes = 500 + len(self._rows) + len(self._ids) + 16 * count

    def extents(self, first_offset: int, start: int, end: int) -> list[Extent]:
        """Those that overlap bytes `start` up to `end` of the file, when the segment begins at `first_offset`."""
        first = int(np.searchsorted(self._ends, max(start - first_offset, 0), side="right"))
        behind = int(np.searchsorted(self._starts, min(max(end - first_offset, 0), SIZE_MAX_BYTES), side="left"))
        found: list[Extent] = []
        for index in range(first, behind):
            _, length, chunk_offset = EXTENT_ROW.unpack_from(self._rows, index * EXTENT_ROW.size)
            offset = first_offset + int(self._starts[index])
            found.append(Extent(offset, length, id_at(self._ids, index), chunk_offset))
        return found

    def chunk_ids(self) -> list[RecordId]:
        """All chunks."""
        return split_ids(self._ids)


class ExtentList:
    """A decoded EXTENT_LIST. Immutable."""

    __slots__ = ("children", "level", "nbytes", "origin")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        """Decodes. Raises DamagedError naming `origin`."""
        cursor = Cursor(payload, origin)
        layout, level, count = cursor.head(_LIST_HEAD)
        if layout != LAYOUT or not 1 <= level <= LEVEL_MAX or not 1 <= count <= EXTENTS_LIST_MAX:
            refuse(origin, "its layout, level or number of children is unknown")
        self.origin = origin
        self.level = level
        rows = cursor.rows(count, _LIST_ROW.size)
        ids = cursor.take(count * RECORD_ID_BYTES)
        cursor.finish()
        children: list[ExtentSegmentRef] = []
        before = 0
        for index, (first, end, extents, allocated) in enumerate(_LIST_ROW.iter_unpack(rows)):
            if not before <= first < end <= SIZE_MAX_BYTES or not extents or allocated > end - first:
                refuse(origin, "its offsets are impossible")
            children.append(ExtentSegmentRef(first, end, extents, allocated, id_at(ids, index)))
            before = end
        self.children = children
        self.nbytes = 300 + 300 * count

    def overlapping(self, start: int, end: int) -> list[ExtentSegmentRef]:
        """Children that reach into bytes `start` up to `end` of the file."""
        first = bisect_right(self.children, start, key=_end_offset)
        behind = bisect_right(self.children, end - 1, key=_first_offset)
        return self.children[first:behind]

    def node_ids(self) -> list[RecordId]:
        """All children."""
        return [child.id for child in self.children]


def _end_offset(child: ExtentSegmentRef) -> int:
    return child.end_offset


def _first_offset(child: ExtentSegmentRef) -> int:
    return child.first_offset


def clip(extent: Extent, start: int, end: int) -> Extent:
    """The part of `extent` within bytes `start` up to `end`, which it has to overlap."""
    offset, length, chunk, chunk_offset = extent
    first = max(offset, start)
    return Extent(first, min(offset + length, end) - first, chunk, chunk_offset + first - offset)


def splice(extents: list[Extent], start: int, end: int, fresh: Sequence[Extent]) -> None:
    """Bytes `start` up to `end` become what `fresh` says, in place; both sorted, and cut at the borders."""
    first = bisect_right(extents, start, key=_extent_end)
    behind = bisect_left(extents, end, key=_extent_start)
    pieces = [clip(one, start, end) for one in fresh if one.offset < end and one.offset + one.length > start]
    if first < behind:
        left, right = extents[first], extents[behind - 1]
        if left.offset < start:
            pieces.insert(0, clip(left, left.offset, start))
        if right.offset + right.length > end:
            pieces.append(clip(right, end, right.offset + right.length))
    extents[first:behind] = pieces


def _extent_start(extent: Extent) -> int:
    return extent.offset


def _extent_end(extent: Extent) -> int:
    return extent.offset + extent.length


def encode_extent_segment(extents: Sequence[Extent]) -> bytes:
    """The EXTENT_SEGMENT payload of `extents`. Raises ValueError where they overlap, are unsorted or impossible."""
    rows: list[bytes] = []
    ids: list[bytes] = []
    pack_extents(extents, extents[0].offset, rows.append, ids.append)
    head = _HEAD.pack(LAYOUT, len(extents))
    return b"".join((head, planes_of(b"".join(rows), EXTENT_ROW.size), *ids))


def encode_extent_list(level: int, children: Sequence[ExtentSegmentRef]) -> bytes:
    """The EXTENT_LIST payload over `children`, which are of `level` - 1 (0: segments)."""
    rows = b"".join(_LIST_ROW.pack(*child[:4]) for child in children)
    head = _LIST_HEAD.pack(LAYOUT, level, len(children))
    return b"".join((head, planes_of(rows, _LIST_ROW.size), *(child.id for child in children)))
