"""Reading trees: look-ups and listings; extents and the links table are in modules of their own. Nothing is decoded
that was not asked for."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from repository.errors import DamagedError
from repository.format.attributes import Contents, inode_at
from repository.format.extents import ExtentSegmentRef
from repository.format.files import FileColumns
from repository.format.inode import DirRef, Entry, Inode, NodeKind, Totals
from repository.format.stats import Stat, stats_of
from repository.format.tree import AttrsList, ContentList, DirAttrs, DirContent, ListedSegment
from repository.ids import RecordId
from repository.trees.ahead import load_below, load_contents_below, load_levels
from repository.trees.cache import NotCached, RecordCache, check_level, expect
from repository.trees.extents import Content, ExtentReader, FileContent
from repository.trees.links import LinksReader, sum_totals

__all__ = [
    "Content",
    "EntryPlace",
    "ExtentSegmentRef",
    "NotCached",
    "Page",
    "Placed",
    "RecordCache",
    "Segment",
    "TreeReader",
    "sum_totals",
]

AHEAD_SEGMENTS: Final = 8
"""Segments that a listing asks for in one hop: 16 records, about 2,000 names."""


class EntryPlace(NamedTuple):
    """Where an entry stands: two segments and the row in both. Never changes, for records never change."""

    content: RecordId
    attrs: RecordId
    position: int


class Segment(NamedTuple):
    """A part of a directory's listing, and its two records."""

    content_id: RecordId
    attrs_id: RecordId
    content: DirContent
    attrs: DirAttrs


class Placed(Protocol):
    """An entry, by its segment and its row there."""

    @property
    def content(self) -> DirContent: ...

    @property
    def attrs(self) -> DirAttrs: ...

    @property
    def position(self) -> int: ...


class Page(NamedTuple):
    """Neighbours of one segment, the first of which stands in row `first`; the whole directory has `entries`."""

    content: RecordId
    attrs: RecordId
    first: int
    names: list[bytes]
    stats: list[Stat]
    entries: int


class TreeReader(ExtentReader, LinksReader):
    """Answers from immutable tree records.

    Every method raises DamagedError or MissingRecordError where the tree cannot be read, and over a cache with
    inline=False NotCached, before anything has happened: load its ids, then call again. Thread safe.
    """

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

    def load_contents_below(self, ref: DirRef) -> None:
        """As `load_below`, for `scan_contents`."""
        load_contents_below(self.cache, ref)

    def entry_at(self, content_id: RecordId, attrs_id: RecordId, position: int) -> Entry:
        """The entry in row `position` of a segment. Raises IndexError where the segment is shorter."""
        content, attrs = self._pair(content_id, attrs_id)
        return Entry(content.names[position], self._inode(content, attrs, position))

    def file_at(self, content_id: RecordId, position: int) -> FileContent | None:
        """The content of the file in row `position` of a segment; None where something else stands there, a hard
        link for example. Raises IndexError where the segment is shorter."""
        files = expect(self.cache.get(content_id), DirContent, content_id).files
        if files.kinds[position] != NodeKind.FILE:
            return None
        extents, size, _ = files.extents(position)
        return FileContent(extents, size)

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

    def directory_behind(self, content_id: RecordId, attrs_id: RecordId, position: int) -> DirRef | None:
        """The listing of the next directory behind row `position` of a segment, or None."""
        row = self._pair(content_id, attrs_id)[0].files.kinds.find(NodeKind.DIRECTORY, position + 1)
        return None if row < 0 else self.directory_at(content_id, attrs_id, row)

    def names_at(self, places: Sequence[tuple[RecordId, int]]) -> list[bytes]:
        """The names in these rows of content segments. Raises IndexError where one is shorter."""
        nodes = self.cache.fetch([content_id for content_id, _ in places])
        found = zip(nodes, places, strict=True)
        return [expect(node, DirContent, content_id).names[row] for node, (content_id, row) in found]

    def file_names(self, content_id: RecordId, first: int, end: int) -> list[bytes]:
        """The names of regular files in rows `first` up to `end` of a content segment."""
        content = expect(self.cache.get(content_id), DirContent, content_id)
        rows = zip(content.names[first:end], content.files.kinds[first:end], strict=True)
        return [name for name, kind in rows if kind == NodeKind.FILE]

    def small_directory(self, ref: DirRef) -> FileColumns | None:
        """The content of a directory of one segment; None for an empty or a larger one."""
        node = None if ref.content is None else self.cache.get(ref.content)
        return node.files if isinstance(node, DirContent) else None

    def unread_directories(self, content_id: RecordId, attrs_id: RecordId, position: int, most: int) -> list[RecordId]:
        """What is not in memory of the listings of a segment's directories, from the one in row `position` on; nothing
        where that one's is there. At most `most` directories."""
        if not self.cache.missing(
            ref_id for pair in self._children(content_id, attrs_id, position, 1) for ref_id in pair
        ):
            return []
        pairs = self._children(content_id, attrs_id, position, most)
        return self.cache.missing(ref_id for pair in pairs for ref_id in pair)

    def load_beside(self, content_id: RecordId, attrs_id: RecordId, position: int, most: int, below: int) -> None:
        """Has `most` listings of a segment's directories in memory, from the one in row `position` on, and about
        `below` records of what is below them. Damage stays silent: whoever walks meets it again."""
        pairs = self._children(content_id, attrs_id, position, most)
        load_levels(self.cache, pairs, 2 * len(pairs) + below)

    def _children(
        self, content_id: RecordId, attrs_id: RecordId, position: int, most: int
    ) -> list[tuple[RecordId, RecordId]]:
        """The listings of a segment's directories, from the one in row `position` on; without empty ones."""
        content, attrs = self._pair(content_id, attrs_id)
        ordinal = content.files.kinds.count(NodeKind.DIRECTORY, 0, position)
        return list(zip(content.files.children(ordinal, most), attrs.columns.children(ordinal, most), strict=False))

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

    def scan_segments(self, ref: DirRef) -> Iterator[Segment]:
        """The segments of a directory in order, for who knows their columns."""
        for content_id, attrs_id, ahead in self._segments(ref, None):
            yield Segment(content_id, attrs_id, *self._pair(content_id, attrs_id, ahead))

    def scan_contents(self, ref: DirRef) -> Iterator[tuple[RecordId, RecordId, DirContent]]:
        """As `scan_segments`, without attributes: whether these fit is seen by who reads them."""
        if ref.content is None or ref.attrs is None:
            return
        node = self.cache.get(ref.content)
        if isinstance(node, DirContent):
            yield ref.content, ref.attrs, node
            return
        for content_id, attrs_id, ahead in self._segments(ref, None):
            (node,) = self.cache.fetch((content_id,), ahead)
            yield content_id, attrs_id, expect(node, DirContent, content_id)

    def inode_of(self, row: Placed) -> Inode:
        """The whole inode of a row."""
        return self._inode(row.content, row.attrs, row.position)

    def segment(self, content_id: RecordId, attrs_id: RecordId) -> tuple[DirContent, DirAttrs]:
        """One segment of a directory."""
        return self._pair(content_id, attrs_id)

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
            check_level(content.level, level, content_id)
            return content, other
        segment = expect(content, DirContent, content_id)
        columns = expect(attrs, DirAttrs, attrs_id)
        if columns.columns.count != segment.files.count or columns.columns.directories != segment.files.directories:
            raise DamagedError(f"Record {attrs_id.hex()} does not hold the attributes of {content_id.hex()}.")
        check_level(0, level, content_id)
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


def _behind(content: ContentList, attrs: AttrsList, index: int) -> list[RecordId]:
    """The records of the children that follow number `index`, as many as are worth the same hop."""
    following = range(index + 1, min(index + AHEAD_SEGMENTS, content.count))
    return [children.child(one) for one in following for children in (content, attrs)]
