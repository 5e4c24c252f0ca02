"""Reading the links table: the inodes of files that have several names."""

from collections.abc import Iterator, Sequence
from typing import Final

from repository.format.attributes import inode_at
from repository.format.inode import Inode, Totals
from repository.format.links import LinksList, LinksSegment
from repository.format.packing import SIZE_MAX_BYTES
from repository.format.xattrs import Xattrs
from repository.ids import FileId, RecordId
from repository.trees.cache import RecordCache, XattrsNode, check_level, expect

AHEAD_SEGMENTS: Final = 8
"""Segments that a walk through a table asks for in one hop."""
AHEAD_XATTRS: Final = 16
"""XATTRS records that a listing asks for in one hop."""


class LinksReader:
    """Inodes of links tables. Errors as for `TreeReader`, which is one. Thread safe."""

    def __init__(self, cache: RecordCache) -> None:
        self.cache = cache

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
                check_level(node.level, level, record_id)
                first = 0 if after is None else node.index_of(after)
                pending += [(child.id, node.level - 1) for child in reversed(node.children[first:])]
                continue
            segment = expect(node, LinksSegment, record_id)
            check_level(0, level, record_id)
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

    def links_height(self, links: RecordId) -> int:
        """Number of lists above the segments of a links table."""
        node = self.cache.get(links)
        return node.level if isinstance(node, LinksList) else 0

    def _links_segment(self, links: RecordId | None, file_id: FileId) -> LinksSegment | None:
        level: int | None = None
        while links is not None:
            node = self.cache.get(links)
            if not isinstance(node, LinksList):
                check_level(0, level, links)
                return expect(node, LinksSegment, links)
            check_level(node.level, level, links)
            level = node.level - 1
            links = node.children[node.index_of(file_id)].id
        return None

    def _linked(self, segment: LinksSegment, row: int) -> Inode:
        xattrs = segment.attrs.xattrs(row)
        if isinstance(xattrs, bytes):
            xattrs = self._xattrs(xattrs, segment.attrs.xattr_ids())
        return inode_at(segment.files, segment.attrs, row, xattrs)

    def _xattrs(self, record_id: RecordId, siblings: list[RecordId]) -> Xattrs:
        at = siblings.index(record_id) + 1
        node = self.cache.fetch((record_id,), siblings[at : at + AHEAD_XATTRS])[0]
        return expect(node, XattrsNode, record_id).xattrs


def sum_totals(parts: Sequence[Totals]) -> Totals:
    """Their sum; bytes stop at 2^63 - 1, for sparse files can claim more than that together."""
    content_bytes = sum(part.content_bytes for part in parts)
    return Totals(sum(part.files for part in parts), min(content_bytes, SIZE_MAX_BYTES))
