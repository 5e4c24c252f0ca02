"""Reading trees: look-ups, listings, extents, the links table. Nothing is decoded that was not asked for."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from repository.errors import DamagedError
from repository.format.attributes import Contents, inode_at
from repository.format.extents import ExtentList, ExtentSegment, ExtentSegmentRef
from repository.format.inode import DirRef, Entry, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.format.links import LinksList, LinksSegment
from repository.format.packing import SIZE_MAX_BYTES
from repository.format.stats import Stat, stats_of
from repository.format.tree import AttrsList, ContentList, DirAttrs, DirContent, ListedSegment
from repository.format.xattrs import Xattrs
from repository.ids import FileId, RecordId
from repository.trees.ahead import load_below
from repository.trees.cache import NotCached, RecordCache, XattrsNode, expect

__all__ = ["EntryPlace", "ExtentSegmentRef", "NotCached", "Page", "RecordCache", "Row", "TreeReader"]

AHEAD_SEGMENTS: Final = 8
"""Segments that a listing asks for in one hop: 16 records, about 2,000 names."""
AHEAD_XATTRS: Final = 16
"""XATTRS records that a listing asks for in one hop."""


class EntryPlace(NamedTuple):
    """Where an entry stands: two segments and the row in both. Never changes, for records never change."""

    content: RecordId
    attrs: RecordId
    position: int


class Row(NamedTuple):
    """An entry of which only what `stat` shows was decoded; `TreeReader.inode_of` gives the rest."""

    name: bytes
    stat: Stat
    content: DirContent
    attrs: DirAttrs
    position: int


class Page(NamedTuple):
    """Neighbours of one segment, the first of which stands in row `first`; the whole directory has `entries`."""

    content: RecordId
    attrs: RecordId
    first: int
    names: list[bytes]
    stats: list[Stat]
    entries: int


class TreeReader:
    """Answers from immutable tree records.

    Every method raises DamagedError or MissingRecordError where the tree cannot be read, and over a cache with
    inline=False NotCached, before anything has happened: load its ids, then call again. Thread safe.
    """

    def __init__(self, cache: RecordCache) -> None:
        self.cache = cache

    def lookup(self, ref: DirRef, name: bytes) -> Inode | None:
        """The inode under `name`, or None. LINK entries come back unresolved: see `link`."""
        found = self._find(ref, name)
        return None if found is None else self._inode(found[1], found[2], found[0].position)

    def place(self, ref: DirRef, name: bytes) -> EntryPlace | None:
        """Where `name` stands, or None."""
        found = self._find(ref, name)
        return None if found is None else found[0]

    def _find(self, ref: DirRef, name: bytes) -> tuple[EntryPlace, DirContent, DirAttrs] | None:
        """Where `name` stands, with its two segments."""
        if ref.content is None or ref.attrs is None:
            return None
        content_id, attrs_id = ref.content, ref.attrs
        level: int | None = None
        while True:
            content, attrs = self._nodes(content_id, attrs_id, level)
            if isinstance(content, DirContent):
                assert isinstance(attrs, DirAttrs)
                row = content.find(name)
                return None if row is None else (EntryPlace(content_id, attrs_id, row), content, attrs)
            assert isinstance(attrs, AttrsList)
            index = content.index_of(name)
            level = content.level - 1
            content_id, attrs_id = content.child(index), attrs.child(index)

    def load_below(self, ref: DirRef) -> None:
        """For a walk over everything under `ref`, called for each directory of it: see `ahead.py`."""
        load_below(self.cache, ref)

    def entry_at(self, content_id: RecordId, attrs_id: RecordId, position: int) -> Entry:
        """The entry in row `position` of a segment. Raises IndexError where the segment is shorter."""
        content, attrs = self._pair(content_id, attrs_id)
        return Entry(content.names[position], self._inode(content, attrs, position))

    def directory_at(self, content_id: RecordId, attrs_id: RecordId, position: int) -> DirRef:
        """The listing of the directory in row `position` of a segment."""
        content, attrs = self._pair(content_id, attrs_id)
        kinds = content.files.kinds
        if kinds[position] != NodeKind.DIRECTORY:
            raise DamagedError(f"Row {position} of record {content_id.hex()} is not a directory.")
        listing, _ = content.files.directory(position)
        other = attrs.columns.child(kinds.count(NodeKind.DIRECTORY, 0, position))
        if (listing is None) is not (other is None):
            raise DamagedError(f"Record {attrs_id.hex()} is damaged: a directory has half a listing.")
        return DirRef(listing, other)

    def names_at(self, places: Sequence[tuple[RecordId, int]]) -> list[bytes]:
        """The names in these rows of content segments. Raises IndexError where one is shorter."""
        nodes = self.cache.fetch([content_id for content_id, _ in places])
        found = zip(nodes, places, strict=True)
        return [expect(node, DirContent, content_id).names[row] for node, (content_id, row) in found]

    def unread_directories(self, content_id: RecordId, attrs_id: RecordId, position: int, most: int) -> list[RecordId]:
        """What is not in memory of the listings of a segment's directories, from the one in row `position` on; nothing
        where that one's is there. At most `most` directories."""
        content, attrs = self._pair(content_id, attrs_id)
        ordinal = content.files.kinds.count(NodeKind.DIRECTORY, 0, position)
        contents, others = content.files.children(ordinal, most), attrs.columns.children(ordinal, most)
        if not self.cache.missing([*contents[:1], *others[:1]]):
            return []
        return self.cache.missing([*contents, *others])

    def page(self, ref: DirRef, ordinal: int) -> Page | None:
        """The entry number `ordinal` of a directory, and those behind it in its segment; None where there is none."""
        if ref.content is None or ref.attrs is None:
            return None
        content_id, attrs_id = ref.content, ref.attrs
        level: int | None = None
        listed = entries = 0
        ahead: list[RecordId] = []
        while True:
            content, attrs = self._nodes(content_id, attrs_id, level, ahead)
            if level is None:
                entries = content.entries
                if ordinal >= entries:
                    return None
            elif content.entries != listed:
                raise DamagedError(f"Record {content_id.hex()} holds another number of entries than its list says.")
            if isinstance(content, DirContent):
                assert isinstance(attrs, DirAttrs)
                stats = list(stats_of(content.files, attrs.columns, ordinal))
                return Page(content_id, attrs_id, ordinal, content.names[ordinal:], stats, entries)
            assert isinstance(attrs, AttrsList)
            index, ordinal = content.child_with(ordinal)
            listed, _, _ = content.row(index)
            ahead = _behind(content, attrs, index)
            level = content.level - 1
            content_id, attrs_id = content.child(index), attrs.child(index)

    def scan(self, ref: DirRef, after: bytes | None = None) -> Iterator[Entry]:
        """Entries sorted by name, those behind `after` only. After NotCached: begin again with a new one."""
        for content_id, attrs_id, ahead in self._segments(ref, after):
            content, attrs = self._pair(content_id, attrs_id, ahead)
            first = 0 if after is None else bisect_right(content.names, after)
            if first:
                for row in range(first, len(content.names)):
                    yield Entry(content.names[row], self._inode(content, attrs, row))
                continue
            for row, (name, contents) in enumerate(zip(content.names, content.files.contents(), strict=True)):
                yield Entry(name, self._inode(content, attrs, row, contents))

    def scan_rows(self, ref: DirRef) -> Iterator[Row]:
        """As `scan`, at a third of the cost for who needs few of the inodes."""
        for content_id, attrs_id, ahead in self._segments(ref, None):
            content, attrs = self._pair(content_id, attrs_id, ahead)
            stats = stats_of(content.files, attrs.columns, 0)
            for position, (name, stat) in enumerate(zip(content.names, stats, strict=True)):
                yield Row(name, stat, content, attrs, position)

    def inode_of(self, row: Row) -> Inode:
        """The whole inode of a row."""
        return self._inode(row.content, row.attrs, row.position)

    def segment(self, content_id: RecordId, attrs_id: RecordId) -> list[Entry]:
        """All entries of one segment."""
        content, attrs = self._pair(content_id, attrs_id)
        return [Entry(name, self._inode(content, attrs, row)) for row, name in enumerate(content.names)]

    def listed(self, content_id: RecordId, attrs_id: RecordId, level: int) -> list[ListedSegment]:
        """The children of a pair of lists of `level`."""
        content, attrs = self._nodes(content_id, attrs_id, level)
        if not isinstance(content, ContentList) or not isinstance(attrs, AttrsList):
            raise DamagedError(f"Record {content_id.hex()} is a segment where a list belongs.")
        return [
            ListedSegment(name, content.child(index), attrs.child(index), *content.row(index))
            for index, name in enumerate(content.last_names)
        ]

    def height(self, ref: DirRef) -> int:
        """Number of lists above the segments of a directory: 0 for a small one."""
        if ref.content is None or ref.attrs is None:
            return 0
        content, _ = self._nodes(ref.content, ref.attrs, None)
        return content.level if isinstance(content, ContentList) else 0

    def count(self, ref: DirRef) -> int:
        """Number of entries in the directory itself."""
        if ref.content is None:
            return 0
        node = self.cache.get(ref.content)
        return node.entries if isinstance(node, ContentList) else len(expect(node, DirContent, ref.content).names)

    def totals(self, ref: DirRef) -> Totals:
        """What lies in and below the directory."""
        if ref.content is None:
            return Totals(0, 0)
        node = self.cache.get(ref.content)
        if isinstance(node, ContentList):
            rows = [Totals(*node.row(index)[1:]) for index in range(node.count)]
        else:
            files = expect(node, DirContent, ref.content).files
            rows = [files.row_totals(row) for row in range(files.count)]
        return sum_totals(rows)

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None:
        """The inode of `file_id` in the links table `links`, or None."""
        found = self._links_segment(links, file_id)
        row = None if found is None else found.find(file_id)
        return None if found is None or row is None else self._linked(found, row)

    def scan_links(self, links: RecordId | None, after: FileId | None = None) -> Iterator[Inode]:
        """Inodes of a links table by ascending file id, those behind `after` only."""
        pending: list[tuple[RecordId, int | None]] = [] if links is None else [(links, None)]
        while pending:
            record_id, level = pending.pop()
            node = self.cache.fetch((record_id,), [one for one, _ in reversed(pending[-AHEAD_SEGMENTS:])])[0]
            if isinstance(node, LinksList):
                _check_level(node.level, level, record_id)
                first = 0 if after is None else node.index_of(after)
                pending += [(child.id, node.level - 1) for child in reversed(node.children[first:])]
                continue
            segment = expect(node, LinksSegment, record_id)
            _check_level(0, level, record_id)
            for row, file_id in enumerate(segment.file_ids):
                if after is None or file_id > after:
                    yield self._linked(segment, row)

    def link_totals(self, links: RecordId | None) -> Totals:
        """Number of inodes in a links table (each counted once), and the sum of their sizes in bytes."""
        if links is None:
            return Totals(0, 0)
        node = self.cache.get(links)
        if isinstance(node, LinksList):
            return sum_totals([Totals(child.inodes, child.content_bytes) for child in node.children])
        return expect(node, LinksSegment, links).totals()

    def extents(self, inode: Inode, start: int, end: int) -> list[Extent]:
        """Extents that overlap bytes `start` up to `end` of the file, sorted; whole, not cut at the borders."""
        if start >= end:
            return []
        if not isinstance(inode.extents, ExtentsRef):
            first = bisect_right(inode.extents, start, key=_end_of)
            behind = bisect_left(inode.extents, end, key=_start_of)
            return list(inode.extents[first:behind])
        return self.extents_in(inode.extents, start, end)

    def extents_in(self, ref: ExtentsRef, start: int, end: int) -> list[Extent]:
        """As `extents`, of a long extent list."""
        segments = self._overlapping(ref.head, start, end)
        found: list[Extent] = []
        for one, node in zip(segments, self.cache.fetch([one.id for one in segments]), strict=True):
            found += self.extents_of(one, expect(node, ExtentSegment, one.id), start, end)
        return found

    def extents_bytes(self, extents: tuple[Extent, ...] | ExtentsRef) -> int:
        """Sum of the extents' lengths."""
        if not isinstance(extents, ExtentsRef):
            return sum(extent.length for extent in extents)
        return sum(ref.allocated_bytes for ref in self.extent_list(extents.head).children)

    def extent_list(self, head: RecordId) -> ExtentList:
        """The list that `head` names."""
        return expect(self.cache.get(head), ExtentList, head)

    def links_height(self, links: RecordId) -> int:
        """Number of lists above the segments of a links table."""
        node = self.cache.get(links)
        return node.level if isinstance(node, LinksList) else 0

    def extent_segments(self, ref: ExtentsRef) -> list[ExtentSegmentRef]:
        """All segments of a long extent list, sorted by offset."""
        return self._overlapping(ref.head, 0, SIZE_MAX_BYTES)

    def extent_segment(self, ref: ExtentSegmentRef) -> list[Extent]:
        """All extents of one segment."""
        node = expect(self.cache.get(ref.id), ExtentSegment, ref.id)
        return self.extents_of(ref, node, ref.first_offset, ref.end_offset)

    @staticmethod
    def extents_of(ref: ExtentSegmentRef, node: ExtentSegment, start: int, end: int) -> list[Extent]:
        """Those of a segment that overlap. Raises DamagedError where the segment is not what its list says."""
        if node.count != ref.extent_count or node.span_bytes != ref.end_offset - ref.first_offset:
            raise DamagedError(f"Record {ref.id.hex()} is another extent segment than its list says.")
        return node.extents(ref.first_offset, start, end)

    # Below: how it is done.

    def _nodes(
        self, content_id: RecordId, attrs_id: RecordId, level: int | None, ahead: Sequence[RecordId] = ()
    ) -> tuple[DirContent, DirAttrs] | tuple[ContentList, AttrsList]:
        """A pair of segments, or a pair of lists. `level` is what the list above demands; None at the root."""
        content, attrs = self.cache.fetch((content_id, attrs_id), ahead)
        if isinstance(content, ContentList):
            other = expect(attrs, AttrsList, attrs_id)
            if other.level != content.level or other.count != content.count or other.entries != content.entries:
                raise DamagedError(f"Record {attrs_id.hex()} is not the attribute list of {content_id.hex()}.")
            _check_level(content.level, level, content_id)
            return content, other
        segment = expect(content, DirContent, content_id)
        columns = expect(attrs, DirAttrs, attrs_id)
        if columns.columns.count != segment.files.count or columns.columns.directories != segment.files.directories:
            raise DamagedError(f"Record {attrs_id.hex()} does not hold the attributes of {content_id.hex()}.")
        _check_level(0, level, content_id)
        return segment, columns

    def _pair(
        self, content_id: RecordId, attrs_id: RecordId, ahead: Sequence[RecordId] = ()
    ) -> tuple[DirContent, DirAttrs]:
        content, attrs = self._nodes(content_id, attrs_id, 0, ahead)
        return expect(content, DirContent, content_id), expect(attrs, DirAttrs, attrs_id)

    def _segments(self, ref: DirRef, after: bytes | None) -> Iterator[tuple[RecordId, RecordId, list[RecordId]]]:
        """Pairs of segment ids in order, each with the ids of those that follow it under the same list."""
        if ref.content is None or ref.attrs is None:
            return
        content, attrs = self._nodes(ref.content, ref.attrs, None)
        if isinstance(content, DirContent):
            yield ref.content, ref.attrs, []
            return
        assert isinstance(attrs, AttrsList)
        yield from self._below(content, attrs, after)

    def _below(
        self, content: ContentList, attrs: AttrsList, after: bytes | None
    ) -> Iterator[tuple[RecordId, RecordId, list[RecordId]]]:
        first = 0 if after is None else bisect_right(content.last_names, after)
        for index in range(first, content.count):
            ids = _behind(content, attrs, index)
            if content.level == 1:
                yield content.child(index), attrs.child(index), ids
                continue
            lower, lower_attrs = self._nodes(content.child(index), attrs.child(index), content.level - 1, ids)
            assert isinstance(lower, ContentList) and isinstance(lower_attrs, AttrsList)
            yield from self._below(lower, lower_attrs, after if index == first else None)

    def _inode(self, content: DirContent, attrs: DirAttrs, row: int, contents: Contents | None = None) -> Inode:
        xattrs = attrs.columns.xattrs(row)
        if isinstance(xattrs, bytes):
            xattrs = self._xattrs(xattrs, attrs.columns.xattr_ids())
        return inode_at(content.files, attrs.columns, row, xattrs, contents)

    def _linked(self, segment: LinksSegment, row: int) -> Inode:
        xattrs = segment.attrs.xattrs(row)
        if isinstance(xattrs, bytes):
            xattrs = self._xattrs(xattrs, segment.attrs.xattr_ids())
        return inode_at(segment.files, segment.attrs, row, xattrs)

    def _xattrs(self, record_id: RecordId, siblings: list[RecordId]) -> Xattrs:
        at = siblings.index(record_id) + 1
        node = self.cache.fetch((record_id,), siblings[at : at + AHEAD_XATTRS])[0]
        return expect(node, XattrsNode, record_id).xattrs

    def _links_segment(self, links: RecordId | None, file_id: FileId) -> LinksSegment | None:
        level: int | None = None
        while links is not None:
            node = self.cache.get(links)
            if not isinstance(node, LinksList):
                _check_level(0, level, links)
                return expect(node, LinksSegment, links)
            _check_level(node.level, level, links)
            level = node.level - 1
            links = node.children[node.index_of(file_id)].id
        return None

    def _overlapping(self, head: RecordId, start: int, end: int) -> list[ExtentSegmentRef]:
        node = self.extent_list(head)
        found = node.overlapping(start, end)
        for level in range(node.level - 1, 0, -1):
            lower = self.cache.fetch([ref.id for ref in found])
            refs: list[ExtentSegmentRef] = []
            for ref, one in zip(found, lower, strict=True):
                list_ = expect(one, ExtentList, ref.id)
                _check_level(list_.level, level, ref.id)
                refs += list_.overlapping(start, end)
            found = refs
        return found


def _behind(content: ContentList, attrs: AttrsList, index: int) -> list[RecordId]:
    """The records of the children that follow number `index`, as many as are worth the same hop."""
    following = range(index + 1, min(index + AHEAD_SEGMENTS, content.count))
    return [children.child(one) for one in following for children in (content, attrs)]


def _check_level(level: int, demanded: int | None, record_id: RecordId) -> None:
    """Levels go down by one at each step, so that no record can stand below itself."""
    if demanded is not None and level != demanded:
        raise DamagedError(f"Record {record_id.hex()} is of level {level} where {demanded} belongs.")


def _start_of(extent: Extent) -> int:
    return extent.offset


def _end_of(extent: Extent) -> int:
    return extent.offset + extent.length


def sum_totals(parts: Sequence[Totals]) -> Totals:
    """Their sum; bytes stop at 2^63 - 1, for sparse files can claim more than that together."""
    content_bytes = sum(part.content_bytes for part in parts)
    return Totals(sum(part.files for part in parts), min(content_bytes, SIZE_MAX_BYTES))
