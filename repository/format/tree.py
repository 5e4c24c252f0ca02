"""A directory's records as bytes: content segments, attribute segments, and the lists above them. Pure.

A directory is its entries sorted by name as bytes, cut into segments. A segment is two records with the same
entries in the same order: content (what a second copy of the tree shares) and attributes (what it does not).
More than one segment: a list names them; more lists than one: a list of lists, and so on. Content lists and
attribute lists are cut alike, so that a place in one is the same place in the other.
"""

import struct
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import lt
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from repository.format.attributes import AttrColumns, AttrRows, encode_attrs
from repository.format.filerows import FileRows, encode_files
from repository.format.files import FileColumns
from repository.format.packing import Cursor, id_at, planes_of, refuse, split_ids
from repository.ids import NO_ID, RECORD_ID_BYTES, RecordId

LAYOUT: Final = 1
"""First byte of every tree payload: the layout that this module describes."""
NAME_MAX_BYTES: Final = 255
SEGMENT_ENTRIES_MAX: Final = 1024
"""Entries of one segment. With 255-byte names, 64 extents and long targets each it stays below RAW_MAX_BYTES."""
LIST_NODES_MAX: Final = 2048
"""Segments or lists under one list: 640 KiB with names of 255 bytes, so below the largest chunk."""
LEVEL_MAX: Final = 8
"""Lists above lists; 256 * 256^8 entries are more than file ids."""

_HEAD: Final = struct.Struct("<B3xI")
_ATTRS_HEAD: Final = struct.Struct("<B3xII")
_LIST_HEAD: Final = struct.Struct("<BBBxI")
_FLAVOUR_CONTENT: Final = 1
_FLAVOUR_ATTRS: Final = 2
_CONTENT_DTYPE: Final = np.dtype([("entries", "<u8"), ("files", "<u8"), ("content_bytes", "<u8")])
_CONTENT_ROW: Final = struct.Struct("<QQQ")
_ATTRS_ROW: Final = struct.Struct("<Q")
_ENTRIES_MAX: Final = (1 << 63) - 1
_BYTES_PER_NAME: Final = 49
"""Memory of a bytes object of length 0 with its slot in a list, in CPython."""


class ListedSegment(NamedTuple):
    """What a pair of lists says about one segment or lower list: the last name in it, its records, its totals."""

    last_name: bytes
    content: RecordId
    attrs: RecordId
    entries: int
    files: int
    content_bytes: int


def check_name(name: bytes) -> None:
    """Raises ValueError unless `name` can stand in a directory: 1 to 255 bytes, no slash, no NUL, not `.` or `..`."""
    if not 0 < len(name) <= NAME_MAX_BYTES or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(f"{name!r} cannot be the name of a file")


def _take_names(cursor: Cursor, count: int) -> list[bytes]:
    """`count` names, verified: allowed in a directory, strictly ascending."""
    lengths = cursor.take(count)
    ends = list(accumulate(lengths, initial=0))
    joined = cursor.take(ends[-1])
    names = [joined[start:end] for start, end in pairwise(ends)]
    if 0 in lengths or b"/" in joined or b"\0" in joined or b"." in names or b".." in names:
        refuse(cursor.origin, "a name in it is not allowed")
    if not all(map(lt, names, names[1:])):
        refuse(cursor.origin, "its names are not in order")
    return names


def _check_head(origin: RecordId, layout: int, count: int, least: int, most: int) -> None:
    if layout != LAYOUT:
        refuse(origin, f"its layout {layout} is unknown")
    if not least <= count <= most:
        refuse(origin, "its number of entries is impossible")


class DirContent:
    """A decoded content segment: `names[i]` belongs to row i of `files`. Immutable."""

    __slots__ = ("files", "names", "nbytes")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        """Decodes a DIR_CONTENT payload. Raises DamagedError naming `origin`."""
        cursor = Cursor(payload, origin)
        layout, count = cursor.head(_HEAD)
        _check_head(origin, layout, count, 1, SEGMENT_ENTRIES_MAX)
        self.names = _take_names(cursor, count)
        self.files = FileColumns(cursor, count)
        cursor.finish()
        self.nbytes = 200 + self.files.nbytes + sum(map(len, self.names)) + _BYTES_PER_NAME * count

    @property
    def entries(self) -> int:
        """Number of entries."""
        return len(self.names)

    def find(self, name: bytes) -> int | None:
        """The row of `name`."""
        row = bisect_left(self.names, name)
        return row if row < len(self.names) and self.names[row] == name else None


class DirAttrs:
    """A decoded attribute segment. Immutable."""

    __slots__ = ("columns", "nbytes")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        """Decodes a DIR_ATTRS payload. Raises DamagedError naming `origin`."""
        cursor = Cursor(payload, origin)
        layout, count, directories = cursor.head(_ATTRS_HEAD)
        _check_head(origin, layout, count, 1, SEGMENT_ENTRIES_MAX)
        if directories > count:
            refuse(origin, "it has more directories than entries")
        self.columns = AttrColumns(cursor, count, directories)
        cursor.finish()
        self.nbytes = 200 + self.columns.nbytes


class ContentList:
    """A decoded content list: per child the last name, id, number of entries and totals. Immutable."""

    __slots__ = ("_ids", "_table", "count", "entries", "last_names", "level", "nbytes", "origin")

    def __init__(self, cursor: Cursor, level: int, count: int) -> None:
        self.origin = cursor.origin
        self.level = level
        self.count = count
        rows = cursor.rows(count, _CONTENT_ROW.size)
        self._table: npt.NDArray[np.void] = np.frombuffer(rows, _CONTENT_DTYPE)
        self.last_names = _take_names(cursor, count)
        self._ids = cursor.take(count * RECORD_ID_BYTES)
        self.entries = _sum_entries(cursor.origin, self._table["entries"])
        self.nbytes = 400 + len(rows) + len(self._ids) + sum(map(len, self.last_names)) + _BYTES_PER_NAME * count

    def child(self, index: int) -> RecordId:
        """The record of child `index`."""
        return id_at(self._ids, index)

    def row(self, index: int) -> tuple[int, int, int]:
        """Entries, files and content bytes of child `index`."""
        entries, files, content_bytes = self._table[index].item()
        return entries, files, content_bytes

    def child_with(self, ordinal: int) -> tuple[int, int]:
        """The child that holds the entry number `ordinal` (there has to be one), and its number in there."""
        behind = np.cumsum(self._table["entries"])
        index = int(np.searchsorted(behind, ordinal, side="right"))
        return index, ordinal - (int(behind[index - 1]) if index else 0)

    def index_of(self, name: bytes) -> int:
        """The child that holds `name` if any does; the last one for names behind all."""
        return min(bisect_left(self.last_names, name), self.count - 1)

    def node_ids(self) -> list[RecordId]:
        """All children."""
        return split_ids(self._ids)


class AttrsList:
    """A decoded attribute list: per child its id and number of entries. Immutable."""

    __slots__ = ("_ids", "count", "counts", "entries", "level", "nbytes", "origin")

    def __init__(self, cursor: Cursor, level: int, count: int) -> None:
        self.origin = cursor.origin
        self.level = level
        self.count = count
        self.counts: npt.NDArray[np.uint64] = np.frombuffer(cursor.rows(count, _ATTRS_ROW.size), "<u8")
        self._ids = cursor.take(count * RECORD_ID_BYTES)
        self.entries = _sum_entries(cursor.origin, self.counts)
        self.nbytes = 400 + self.counts.nbytes + len(self._ids)

    def child(self, index: int) -> RecordId:
        """The record of child `index`."""
        return id_at(self._ids, index)

    def node_ids(self) -> list[RecordId]:
        """All children."""
        return split_ids(self._ids)


def _sum_entries(origin: RecordId, counts: npt.NDArray[np.uint64]) -> int:
    """Their sum. Raises DamagedError where it is impossible."""
    if int(counts.max()) > _ENTRIES_MAX // LIST_NODES_MAX or int(counts.min()) == 0:
        refuse(origin, "its number of entries is impossible")
    return int(counts.sum())


def decode_list(payload: bytes, origin: RecordId) -> ContentList | AttrsList:
    """Decodes a DIR_LIST payload of either flavour. Raises DamagedError naming `origin`."""
    cursor = Cursor(payload, origin)
    layout, flavour, level, count = cursor.head(_LIST_HEAD)
    _check_head(origin, layout, count, 1, LIST_NODES_MAX)
    if not 1 <= level <= LEVEL_MAX or flavour not in (_FLAVOUR_CONTENT, _FLAVOUR_ATTRS):
        refuse(origin, "its level or flavour is unknown")
    found: ContentList | AttrsList
    found = ContentList(cursor, level, count) if flavour == _FLAVOUR_CONTENT else AttrsList(cursor, level, count)
    cursor.finish()
    if NO_ID in (found.child(index) for index in range(count)):
        refuse(origin, "a child is missing")
    return found


def encode_names(names: Sequence[bytes]) -> bytes:
    """Lengths as u8 each, then all names run together. Raises ValueError for names that no directory can hold."""
    joined = b"".join(names)
    if (
        b"/" in joined
        or b"\0" in joined
        or b"" in names
        or b"." in names
        or b".." in names
        or max(map(len, names)) > NAME_MAX_BYTES
    ):
        for name in names:
            check_name(name)
    return bytes(map(len, names)) + joined


def encode_content(names: Sequence[bytes], parts: Sequence[FileRows]) -> bytes:
    """The DIR_CONTENT payload of entries sorted by name, whose rows are those of `parts`. Raises ValueError for names
    that no directory can hold."""
    return b"".join((_HEAD.pack(LAYOUT, len(names)), encode_names(names), encode_files(parts)))


def encode_attributes(count: int, directories: int, parts: Sequence[AttrRows]) -> bytes:
    """The DIR_ATTRS payload of `count` entries, `directories` of which are directories."""
    return _ATTRS_HEAD.pack(LAYOUT, count, directories) + encode_attrs(parts)


def encode_lists(level: int, children: Sequence[ListedSegment]) -> tuple[bytes, bytes]:
    """The two DIR_LIST payloads (content, attributes) over `children`, which are of `level` - 1."""
    count = len(children)
    content = b"".join(_CONTENT_ROW.pack(one.entries, one.files, one.content_bytes) for one in children)
    attrs = b"".join(_ATTRS_ROW.pack(one.entries) for one in children)
    return (
        b"".join((
            _LIST_HEAD.pack(LAYOUT, _FLAVOUR_CONTENT, level, count),
            planes_of(content, _CONTENT_ROW.size),
            encode_names([one.last_name for one in children]),
            *(one.content for one in children),
        )),
        b"".join((
            _LIST_HEAD.pack(LAYOUT, _FLAVOUR_ATTRS, level, count),
            planes_of(attrs, _ATTRS_ROW.size),
            *(one.attrs for one in children),
        )),
    )  # fmt: skip
