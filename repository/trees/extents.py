"""Reading where a file's bytes are."""

from bisect import bisect_left, bisect_right
from typing import NamedTuple, Protocol

from repository.errors import DamagedError
from repository.format.extents import ExtentList, ExtentSegment, ExtentSegmentRef
from repository.format.inode import Extent, ExtentsRef
from repository.format.packing import SIZE_MAX_BYTES
from repository.ids import RecordId
from repository.trees.cache import RecordCache, check_level, expect


class Content(Protocol):
    """Where the bytes of a file are: all that reading it takes."""

    @property
    def size(self) -> int: ...

    @property
    def extents(self) -> tuple[Extent, ...] | ExtentsRef: ...


class FileContent(NamedTuple):
    """The content of a file alone, at a quarter of what its inode costs."""

    extents: tuple[Extent, ...] | ExtentsRef
    size: int


class ExtentReader:
    """Extents of files. Errors as for `TreeReader`, which is one. Thread safe."""

    def __init__(self, cache: RecordCache) -> None:
        self.cache = cache

    def extents(self, inode: Content, start: int, end: int) -> list[Extent]:
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

    def _overlapping(self, head: RecordId, start: int, end: int) -> list[ExtentSegmentRef]:
        node = self.extent_list(head)
        found = node.overlapping(start, end)
        for level in range(node.level - 1, 0, -1):
            lower = self.cache.fetch([ref.id for ref in found])
            refs: list[ExtentSegmentRef] = []
            for ref, one in zip(found, lower, strict=True):
                list_ = expect(one, ExtentList, ref.id)
                check_level(list_.level, level, ref.id)
                refs += list_.overlapping(start, end)
            found = refs
        return found


def _start_of(extent: Extent) -> int:
    return extent.offset


def _end_of(extent: Extent) -> int:
    return extent.offset + extent.length
