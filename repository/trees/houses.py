"""The three sorts of trees, storey by storey: directories, long extent lists, links tables.

Owns where they are cut, and with that the promise that the same content always becomes the same records.
"""

from collections.abc import Sequence
from typing import Final

import xxhash

from repository.errors import DamagedError
from repository.format.extents import (
    EXTENTS_LIST_MAX,
    EXTENTS_SEGMENT_MAX,
    ExtentList,
    ExtentSegmentRef,
    encode_extent_list,
    encode_extent_segment,
)
from repository.format.inode import Extent, Inode, NodeKind, Totals
from repository.format.links import (
    LINKS_LIST_MAX,
    LINKS_SEGMENT_MAX,
    LinksList,
    ListedLinks,
    encode_links_list,
    encode_links_segment,
)
from repository.format.packing import SIZE_MAX_BYTES
from repository.format.record import RecordKind
from repository.format.tree import LIST_NODES_MAX, ListedSegment, encode_lists
from repository.trees.cache import expect
from repository.trees.entries import Entries, Item, weight_of
from repository.trees.pen import Pen
from repository.trees.reader import TreeReader, sum_totals
from repository.trees.storeys import Bounds, House, Storey

_EXTENTS: Final = Bounds(128, 512, EXTENTS_SEGMENT_MAX)
_LINKS: Final = Bounds(64, 256, LINKS_SEGMENT_MAX)
_REFS: Final = Bounds(256, 1024, LIST_NODES_MAX)
"""References in a list: a directory of 100,000 entries has one list, one of a million two and one above."""
assert max(EXTENTS_LIST_MAX, LINKS_LIST_MAX) == LIST_NODES_MAX


def entry_totals(inode: Inode) -> Totals:
    """What an entry with `inode` adds to its directory: a name with its bytes, or all that lies below."""
    if inode.kind is NodeKind.DIRECTORY:
        return inode.totals
    return Totals(1, inode.size if inode.kind is NodeKind.FILE else 0)


class _Lists(Storey[bytes, ListedSegment, ListedSegment]):
    """Upper storeys of a directory."""

    bounds = _REFS

    def __init__(self, pen: Pen, reader: TreeReader, level: int) -> None:
        self._pen = pen
        self._reader = reader
        self._level = level

    def key(self, item: ListedSegment) -> bytes:
        return item.last_name

    def weigh(self, item: ListedSegment) -> tuple[int, int]:
        return 1, xxhash.xxh3_64_intdigest(item.last_name, self._level)

    def read(self, ref: ListedSegment) -> list[ListedSegment]:
        return self._reader.listed(ref.content, ref.attrs, self._level)

    def write(self, groups: Sequence[Sequence[ListedSegment]]) -> list[ListedSegment]:
        payloads = [encode_lists(self._level, group) for group in groups]
        contents = self._pen.put(RecordKind.DIR_LIST, [content for content, _ in payloads])
        attrs = self._pen.put(RecordKind.DIR_LIST, [attrs for _, attrs in payloads])
        return [
            ListedSegment(
                group[-1].last_name, content_id, attrs_id, sum(one.entries for one in group),
                *sum_totals([Totals(one.files, one.content_bytes) for one in group]),
            )
            for group, content_id, attrs_id in zip(groups, contents, attrs, strict=True)
        ]  # fmt: skip


class DirectoryHouse(House[bytes, Item, ListedSegment]):
    """Directories: entries by name."""

    def __init__(self, pen: Pen, reader: TreeReader) -> None:
        self.ground = Entries(pen, reader)
        self._pen = pen
        self._reader = reader

    def upper(self, level: int) -> _Lists:
        return _Lists(self._pen, self._reader, level)


class _Extents(Storey[int, Extent, ExtentSegmentRef]):
    """Ground storey of a long extent list. Keyed by where an extent ends."""

    bounds = _EXTENTS

    def __init__(self, pen: Pen, reader: TreeReader) -> None:
        self._pen = pen
        self._reader = reader

    def key(self, item: Extent) -> int:
        return item.offset + item.length

    def weigh(self, item: Extent) -> tuple[int, int]:
        return 1, int.from_bytes(item.chunk[:8], "little")

    def read(self, ref: ExtentSegmentRef) -> list[Extent]:
        return self._reader.extent_segment(ref)

    def write(self, groups: Sequence[Sequence[Extent]]) -> list[ExtentSegmentRef]:
        ids = self._pen.put(RecordKind.EXTENT_SEGMENT, [encode_extent_segment(group) for group in groups])
        return [
            ExtentSegmentRef(
                group[0].offset, self.key(group[-1]), len(group), sum(one.length for one in group), record_id
            )
            for group, record_id in zip(groups, ids, strict=True)
        ]


class _ExtentLists(Storey[int, ExtentSegmentRef, ExtentSegmentRef]):
    bounds = _REFS

    def __init__(self, pen: Pen, reader: TreeReader, level: int) -> None:
        self._pen = pen
        self._reader = reader
        self._level = level

    def key(self, item: ExtentSegmentRef) -> int:
        return item.end_offset

    def weigh(self, item: ExtentSegmentRef) -> tuple[int, int]:
        return 1, int.from_bytes(item.id[:8], "little")

    def read(self, ref: ExtentSegmentRef) -> list[ExtentSegmentRef]:
        node = expect(self._reader.cache.get(ref.id), ExtentList, ref.id)
        if node.level != self._level:
            raise DamagedError(f"Record {ref.id.hex()} is of level {node.level} where {self._level} belongs.")
        return node.children

    def write(self, groups: Sequence[Sequence[ExtentSegmentRef]]) -> list[ExtentSegmentRef]:
        ids = self._pen.put(RecordKind.EXTENT_LIST, [encode_extent_list(self._level, group) for group in groups])
        return [
            ExtentSegmentRef(
                group[0].first_offset, group[-1].end_offset, sum(one.extent_count for one in group),
                sum(one.allocated_bytes for one in group), record_id,
            )
            for group, record_id in zip(groups, ids, strict=True)
        ]  # fmt: skip


class ExtentHouse(House[int, Extent, ExtentSegmentRef]):
    """Long extent lists: extents by where they end."""

    least_height = 1

    def __init__(self, pen: Pen, reader: TreeReader) -> None:
        self.ground = _Extents(pen, reader)
        self._pen = pen
        self._reader = reader

    def upper(self, level: int) -> _ExtentLists:
        return _ExtentLists(self._pen, self._reader, level)


class _Links(Storey[int, Inode, ListedLinks]):
    """Ground storey of a links table."""

    bounds = _LINKS

    def __init__(self, pen: Pen, reader: TreeReader) -> None:
        self._pen = pen
        self._reader = reader

    def key(self, item: Inode) -> int:
        return item.file_id

    def weigh(self, item: Inode) -> tuple[int, int]:
        return weight_of(item), xxhash.xxh3_64_intdigest(item.file_id.to_bytes(8, "little"))

    def read(self, ref: ListedLinks) -> list[Inode]:
        return list(self._reader.scan_links(ref.id))

    def write(self, groups: Sequence[Sequence[Inode]]) -> list[ListedLinks]:
        payloads: list[bytes] = []
        for group in groups:
            inline, records = self._pen.put_xattrs(group)
            payloads.append(encode_links_segment(group, inline, records))
        ids = self._pen.put(RecordKind.LINKS_SEGMENT, payloads)
        return [
            ListedLinks(
                group[-1].file_id, len(group), sum_totals([entry_totals(one) for one in group]).content_bytes, one
            )
            for group, one in zip(groups, ids, strict=True)
        ]


class _LinksLists(Storey[int, ListedLinks, ListedLinks]):
    bounds = _REFS

    def __init__(self, pen: Pen, reader: TreeReader, level: int) -> None:
        self._pen = pen
        self._reader = reader
        self._level = level

    def key(self, item: ListedLinks) -> int:
        return item.last_file_id

    def weigh(self, item: ListedLinks) -> tuple[int, int]:
        return 1, xxhash.xxh3_64_intdigest(item.last_file_id.to_bytes(8, "little"), self._level)

    def read(self, ref: ListedLinks) -> list[ListedLinks]:
        node = expect(self._reader.cache.get(ref.id), LinksList, ref.id)
        if node.level != self._level:
            raise DamagedError(f"Record {ref.id.hex()} is of level {node.level} where {self._level} belongs.")
        return node.children

    def write(self, groups: Sequence[Sequence[ListedLinks]]) -> list[ListedLinks]:
        ids = self._pen.put(RecordKind.LINKS_LIST, [encode_links_list(self._level, group) for group in groups])
        return [
            ListedLinks(
                group[-1].last_file_id, sum(one.inodes for one in group),
                min(sum(one.content_bytes for one in group), SIZE_MAX_BYTES), record_id,
            )
            for group, record_id in zip(groups, ids, strict=True)
        ]  # fmt: skip


class LinksHouse(House[int, Inode, ListedLinks]):
    """Links tables: inodes by file id."""

    def __init__(self, pen: Pen, reader: TreeReader) -> None:
        self.ground = _Links(pen, reader)
        self._pen = pen
        self._reader = reader

    def upper(self, level: int) -> _LinksLists:
        return _LinksLists(self._pen, self._reader, level)
