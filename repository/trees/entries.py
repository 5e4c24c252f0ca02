"""The ground storey of a directory. What a change leaves alone is kept as it stands: rows that are copied from the old
segment to the new one, and never become inodes.

A commit of ten files rewrites up to twenty segments of some 256 entries each: copied, these cost a quarter of what
decoding and encoding them did.
"""

from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import Final, NamedTuple

import xxhash

from repository.format.attributes import AttrRows, attr_rows
from repository.format.filerows import FileRows, file_rows
from repository.format.inode import Entry, ExtentsRef, Inode, NodeKind, Totals
from repository.format.packing import SIZE_MAX_BYTES
from repository.format.record import RecordKind
from repository.format.tree import (
    SEGMENT_ENTRIES_MAX,
    DirAttrs,
    DirContent,
    ListedSegment,
    encode_attributes,
    encode_content,
)
from repository.trees.pen import Pen
from repository.trees.reader import TreeReader
from repository.trees.storeys import Bounds, Storey

_ENTRIES: Final = Bounds(64, 256, SEGMENT_ENTRIES_MAX)
"""Weights of a directory segment; an entry without many extents weighs 1. About 256 entries."""
_EXTENTS_PER_WEIGHT: Final = 4
_TARGET_BYTES_PER_WEIGHT: Final = 128
"""Entries with many extents or long targets weigh more, so that one change never rewrites a huge segment."""


def weight_of(inode: Inode) -> int:
    """What an entry with `inode` counts in its segment."""
    extents = inode.extents
    return _weight(0 if isinstance(extents, ExtentsRef) else len(extents), len(inode.target))


def _weight(extents: int, target_bytes: int) -> int:
    return 1 + extents // _EXTENTS_PER_WEIGHT + target_bytes // _TARGET_BYTES_PER_WEIGHT


class _Old:
    """A segment that is being rewritten."""

    __slots__ = ("attrs", "content", "weights")

    def __init__(self, content: DirContent, attrs: DirAttrs) -> None:
        self.content = content
        self.attrs = attrs
        self.weights = list(starmap(_weight, content.files.bulks()))


class Kept(NamedTuple):
    """The entry in row `row` of the old segment, as it stands."""

    name: bytes
    old: _Old
    row: int


class _Run(NamedTuple):
    """Neighbours: fresh entries, or the rows from `first` up to `end` of an old segment."""

    fresh: list[Entry]
    old: _Old | None
    first: int
    end: int


Item = Entry | Kept


class Entries(Storey[bytes, Item, ListedSegment]):
    """Ground storey of a directory."""

    bounds = _ENTRIES

    def __init__(self, pen: Pen, reader: TreeReader) -> None:
        self._pen = pen
        self._reader = reader

    def key(self, item: Item) -> bytes:
        return item[0]

    def weigh(self, item: Item) -> tuple[int, int]:
        weight = item.old.weights[item.row] if isinstance(item, Kept) else weight_of(item.inode)
        return weight, xxhash.xxh3_64_intdigest(item[0])

    def read(self, ref: ListedSegment) -> list[Item]:
        content, attrs = self._reader.segment(ref.content, ref.attrs)
        old = _Old(content, attrs)
        return [Kept(name, old, row) for row, name in enumerate(content.names)]

    def write(self, groups: Sequence[Sequence[Item]]) -> list[ListedSegment]:
        runs = [list(_runs(group)) for group in groups]
        contents = self._pen.put(
            RecordKind.DIR_CONTENT,
            [
                encode_content([item[0] for item in group], list(map(_file_rows, parts)))
                for group, parts in zip(groups, runs, strict=True)
            ],
        )
        totals: list[Totals] = []
        payloads: list[bytes] = []
        for group, parts in zip(groups, runs, strict=True):
            directories, total = _summed(parts)
            payloads.append(encode_attributes(len(group), directories, list(map(self._attr_rows, parts))))
            totals.append(total)
        attrs = self._pen.put(RecordKind.DIR_ATTRS, payloads)
        return [
            ListedSegment(group[-1][0], content_id, attrs_id, len(group), *total)
            for group, content_id, attrs_id, total in zip(groups, contents, attrs, totals, strict=True)
        ]

    def _attr_rows(self, run: _Run) -> AttrRows:
        if run.old is not None:
            kinds = run.old.content.files.kinds
            directory = kinds.count(NodeKind.DIRECTORY, 0, run.first)
            behind = directory + kinds.count(NodeKind.DIRECTORY, run.first, run.end)
            return run.old.attrs.columns.part(run.first, run.end, directory, behind)
        inodes = [inode for _, inode in run.fresh]
        return attr_rows(inodes, *self._pen.put_xattrs(inodes))


def _runs(group: Sequence[Item]) -> Iterator[_Run]:
    """`group`, cut where old entries end, begin or are not neighbours in one segment."""
    fresh: list[Entry] = []
    old: _Old | None = None
    first = end = 0
    for item in group:
        if isinstance(item, Kept):
            if item.old is old and item.row == end:
                end += 1
                continue
            if old is not None or fresh:
                yield _Run(fresh, old, first, end)
            fresh, old, first, end = [], item.old, item.row, item.row + 1
        else:
            if old is not None:
                yield _Run(fresh, old, first, end)
                fresh, old = [], None
            fresh.append(item)
    yield _Run(fresh, old, first, end)


def _file_rows(run: _Run) -> FileRows:
    if run.old is not None:
        return run.old.content.files.part(run.first, run.end)
    return file_rows([inode for _, inode in run.fresh])


def _summed(runs: Sequence[_Run]) -> tuple[int, Totals]:
    """How many directories are among them, and what they add to the totals of theirs."""
    directories = files = content_bytes = 0
    for run in runs:
        more, totals = (
            _summed_inodes(run.fresh) if run.old is None else run.old.content.files.totals(run.first, run.end)
        )
        directories += more
        files += totals.files
        content_bytes += totals.content_bytes
    return directories, Totals(files, min(content_bytes, SIZE_MAX_BYTES))


def _summed_inodes(entries: Sequence[Entry]) -> tuple[int, Totals]:
    directories = files = content_bytes = 0
    for _, inode in entries:
        kind = inode.kind
        if kind is NodeKind.DIRECTORY:
            directories += 1
            files += inode.totals.files
            content_bytes += inode.totals.content_bytes
        else:
            files += 1
            if kind is NodeKind.FILE:
                content_bytes += inode.size
    return directories, Totals(files, content_bytes)
