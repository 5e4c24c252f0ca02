"""Writing a frozen generation as tree records. Runs on a worker thread: it reads only what is frozen or committed.

The cost follows the change: per changed directory its touched segments, per changed file its touched extents, and the
ancestors up to the root.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repository.format.inode import EMPTY_DIR, DirRef, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.ids import ROOT_FILE_ID, FileId, RecordId
from repository.live.filedata import FILE_SIZE_MAX, FileData, Piece, Span
from repository.live.node import Node
from repository.live.tree import Base
from repository.trees.reader import TreeReader
from repository.trees.writer import TreeWriter


@dataclass(frozen=True, slots=True)
class Committed:
    """A written root. `inodes` are all inodes of the frozen generation as they were written."""

    root: Inode
    links: RecordId | None
    inodes: dict[FileId, Inode]


def build(
    frozen: Mapping[FileId, Node], gone_links: set[FileId], base: Base, reader: TreeReader, writer: TreeWriter
) -> Committed:
    """Writes all changed inodes, directories and links, deepest first. All flights of `frozen` have landed.

    Raises NoSpaceError and whatever reading the base raises; the generation is untouched then and can be tried again.
    """
    inodes: dict[FileId, Inode] = {}
    links: dict[FileId, Inode | None] = dict.fromkeys(gone_links)
    listings: dict[FileId, dict[bytes, Inode | None]] = {}
    for file_id, node in frozen.items():
        if node.kind is NodeKind.DIRECTORY:
            names = listings.setdefault(file_id, {})
            for name, child in node.changes.items():
                if child is None:
                    names[name] = None
                elif frozen[child].linked:
                    names[name] = Inode(NodeKind.LINK, child)
            continue
        inode = _file_inode(node, reader, writer)
        inodes[file_id] = inode
        if node.linked:
            links[file_id] = inode
        else:
            listings.setdefault(node.parent, {})[node.name] = inode
    for directory in _deepest_first(frozen):
        inode = _directory_inode(directory, listings.get(directory.file_id, {}), reader, writer)
        inodes[directory.file_id] = inode
        if directory.file_id != ROOT_FILE_ID:
            listings.setdefault(directory.parent, {})[directory.name] = inode
    table = writer.rewrite_links(base.links, links) if links else base.links
    return Committed(inodes.get(ROOT_FILE_ID, base.root), table, inodes)


def _deepest_first(frozen: Mapping[FileId, Node]) -> list[Node]:
    depths: dict[FileId, int] = {ROOT_FILE_ID: 0}
    directories = [node for node in frozen.values() if node.kind is NodeKind.DIRECTORY]
    for node in directories:
        chain: list[FileId] = []
        at = node.file_id
        while at not in depths:
            chain.append(at)
            at = frozen[at].parent
        depth = depths[at]
        for file_id in reversed(chain):
            depth += 1
            depths[file_id] = depth
    directories.sort(key=lambda node: depths[node.file_id], reverse=True)
    return directories


def _directory_inode(
    node: Node, changes: Mapping[bytes, Inode | None], reader: TreeReader, writer: TreeWriter
) -> Inode:
    if changes:
        listing, totals = writer.rewrite_directory(node.base, changes)
    else:
        listing, totals = _unchanged(node.base, reader)
    return node.attributes(directory=listing, totals=totals)


def _unchanged(listing: DirRef, reader: TreeReader) -> tuple[DirRef, Totals]:
    return listing, Totals(0, 0) if listing == EMPTY_DIR else reader.totals(listing)


def _file_inode(node: Node, reader: TreeReader, writer: TreeWriter) -> Inode:
    if node.data is None:
        return node.attributes()
    extents, allocated = _extents(node, node.data, reader, writer)
    return node.attributes(extents, allocated)


def _extents(
    node: Node, data: FileData, reader: TreeReader, writer: TreeWriter
) -> tuple[tuple[Extent, ...] | ExtentsRef, int]:
    """The extents of a frozen file, and how many bytes they cover."""
    base, visible = data.base()
    if base is not None and not data.pieces and visible >= base.size and base.size <= node.size:
        return base.extents, base.allocated_bytes
    if base is not None and isinstance(base.extents, ExtentsRef):
        return _changed_extents(base, visible, data.pieces, reader, writer)
    if data.lower is None or not data.visible:  # new, or written anew: the pieces are all there is
        assert not data.pending_bytes(), "bytes in memory in a frozen generation"
        extents = _joined([extent for piece in data.pieces for extent in _extent_of(piece)])
    else:
        extents = _listed(data.spans(0, node.size), reader)
    return writer.write_extents(extents), sum(extent.length for extent in extents)


def _changed_extents(
    base: Inode, visible: int, pieces: Sequence[Piece], reader: TreeReader, writer: TreeWriter
) -> tuple[tuple[Extent, ...] | ExtentsRef, int]:
    """A long list: only the segments around what changed are read and written."""
    assert isinstance(base.extents, ExtentsRef)
    changed = [(piece.start, piece.end, _extent_of(piece)) for piece in pieces]
    if visible < base.size:
        beyond = [extent for _, _, found in changed for extent in found if extent.offset >= visible]
        straddling = [part for part in changed if part[0] < visible]
        changed = [*straddling, (max(visible, straddling[-1][1] if straddling else 0), FILE_SIZE_MAX, beyond)]
    extents = writer.rewrite_extents(base.extents, changed)
    return extents, reader.extents_bytes(extents)


def _extent_of(piece: Piece) -> list[Extent]:
    if piece.chunk is None:
        return []
    return [Extent(piece.start, piece.end - piece.start, piece.chunk, piece.chunk_offset)]


def _listed(spans: Sequence[Span], reader: TreeReader) -> list[Extent]:
    """Spans of a file without bytes in memory, as extents; neighbours that continue each other are joined."""
    extents: list[Extent] = []
    for span in spans:
        if isinstance(span.source, Piece):
            extents += _extent_of(span.source)
        elif isinstance(span.source, Inode):
            for extent in reader.extents(span.source, span.start, span.end):
                first = max(extent.offset, span.start)
                last = min(extent.offset + extent.length, span.end)
                extents.append(Extent(first, last - first, extent.chunk, extent.chunk_offset + first - extent.offset))
        else:
            assert span.source is None, "bytes in memory in a frozen generation"
    return _joined(extents)


def _joined(extents: Sequence[Extent]) -> list[Extent]:
    joined: list[Extent] = []
    for extent in extents:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.chunk == extent.chunk
            and last.offset + last.length == extent.offset
            and last.chunk_offset + last.length == extent.chunk_offset
        ):
            joined[-1] = last._replace(length=last.length + extent.length)
        else:
            joined.append(extent)
    return joined
