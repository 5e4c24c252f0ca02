"""From changes in the live tree to a journal flush, and back.

`capture` runs on the tree's thread in one step and fixes *what* the flush says: everything up to now. `changes_of` may
run anywhere once all jobs taken before the capture have landed: only then are the places of the bytes known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from repository.errors import DamagedError, RefusedError
from repository.format.inode import Extent, Inode, NodeKind
from repository.format.journal import Anchor, Change, ExtentDelta, Flush, NameChange, NodeChange, NodeGone
from repository.ids import ROOT_FILE_ID, FileId
from repository.live import names
from repository.live.filedata import FILE_SIZE_MAX, Cut, FileData, Flight, Piece
from repository.live.node import FACTS, Facts, Node
from repository.live.tree import LiveTree

NODE_CLAIM_BYTES: Final = 320
"""Journal bytes of a changed node without xattrs and target: NodeChange, Anchor and NameChange heads, rounded up."""
CHUNK_CLAIM_BYTES: Final = 80
"""Journal bytes that describe one chunk of a file: an Extent and its ExtentDelta."""


class _CapturedNode(NamedTuple):
    facts: Facts
    events: Sequence[Flight | Cut]
    fresh: bool
    linked: bool


class _CapturedName(NamedTuple):
    parent: FileId
    name: bytes
    child: FileId | None
    kind: NodeKind


@dataclass(frozen=True, slots=True)
class Capture:
    """A moment of the tree, for one flush. `count` is how many inodes and names it holds.

    Thousands of them are taken in one step in which no request is served: so only what may change is copied, as it is,
    and a worker makes the journal's values of it.
    """

    anchors: Sequence[Anchor]
    nodes: Sequence[_CapturedNode]
    bindings: Sequence[_CapturedName]
    gone: Sequence[FileId]

    @property
    def count(self) -> int:
        return len(self.nodes) + len(self.bindings) + len(self.gone)


def capture(tree: LiveTree) -> Capture:
    """Everything that changed since the last capture. The caller has moved all runs into flights just before."""
    nodes: list[_CapturedNode] = []
    overlay = tree.overlay
    for file_id in tree.journal_nodes:
        node = overlay.get(file_id)
        if node is None:
            continue
        data = node.data
        events: Sequence[Flight | Cut] = ()
        if data is not None and data.unjournaled:
            events, data.unjournaled = data.unjournaled, []
        nodes.append(_CapturedNode(FACTS(node), events, node.fresh, node.linked))
        node.fresh = False
    bindings: list[_CapturedName] = []
    for parent, name in tree.journal_names:
        holder = overlay.get(parent)
        if holder is None:
            continue
        child = holder.changes.get(name)
        known = overlay.get(child) if child is not None else None
        if known is None:
            bindings.append(_CapturedName(parent, name, None, NodeKind.FILE))
        else:
            bindings.append(_CapturedName(parent, name, known.file_id, known.kind))
    captured = Capture(tree.anchors, nodes, bindings, tree.journal_gone)
    if captured.count:
        tree.anchors = []
    tree.journal_nodes = {}
    tree.journal_names = {}
    tree.journal_gone = []
    return captured


def changes_of(captured: Capture) -> list[Change]:
    """The flush's changes; all flights of the capture have their pieces by now."""
    changes: list[Change] = list(captured.anchors)
    for node in captured.nodes:
        deltas: list[ExtentDelta] = []
        for event in node.events:
            if isinstance(event, Cut):
                deltas.append(ExtentDelta(event.size, FILE_SIZE_MAX, ()))
            else:
                assert event.pieces is not None
                extents = tuple(
                    Extent(piece.start, piece.end - piece.start, piece.chunk, piece.chunk_offset)
                    for piece in event.pieces
                    if piece.chunk is not None
                )
                deltas.append(ExtentDelta(event.start, event.end, extents))
        changes.append(NodeChange(Inode(*node.facts), tuple(deltas), replaces=node.fresh, linked=node.linked))
    for parent, name, child, kind in captured.bindings:
        changes.append(NameChange(parent, name, None if child is None else (child, kind)))
    changes.extend(NodeGone(file_id) for file_id in captured.gone)
    return changes


def replay(tree: LiveTree, flush: Flush) -> None:
    """Applies one flush to a tree whose reader may read. Raises DamagedError where the flush contradicts the tree."""
    for change in flush.changes:
        match change:
            case Anchor():
                _replay_anchor(tree, change)
            case NodeChange():
                _replay_node(tree, change)
            case NameChange():
                _replay_name(tree, change)
            case NodeGone(file_id):
                node = tree.overlay.pop(file_id, None)
                if node is not None and node.linked:
                    tree.gone_links.add(file_id)
    tree.changes += 1
    tree.anchors = []
    tree.journal_nodes = {}
    tree.journal_names = {}
    tree.journal_gone = []


def _replay_anchor(tree: LiveTree, anchor: Anchor) -> None:
    if anchor.file_id in tree.overlay:
        return
    if anchor.file_id != ROOT_FILE_ID:
        tree.places[anchor.file_id] = None if anchor.linked else (anchor.parent, anchor.name)
    tree.own(anchor.file_id)


def _replay_node(tree: LiveTree, change: NodeChange) -> None:
    inode = change.inode
    node = tree.overlay.get(inode.file_id)
    if node is None:
        if not change.replaces:
            raise DamagedError(f"The journal changes file {inode.file_id}, which neither it nor the last commit knows.")
        data = FileData() if inode.kind is NodeKind.FILE else None
        node = Node(inode.kind, inode.file_id, ROOT_FILE_ID, b"", linked=False, data=data)
        tree.overlay[inode.file_id] = node
        tree.next_file_id = FileId(max(tree.next_file_id, inode.file_id + 1))
        node.linked = change.linked
    elif change.linked:
        names.make_linked(tree, node)
    node.touched = True
    node.version, node.mode, node.uid, node.gid, node.rdev = inode.version, inode.mode, inode.uid, inode.gid, inode.rdev
    node.size, node.nlink, node.xattrs, node.target = inode.size, inode.nlink, inode.xattrs, inode.target
    node.atime_ns, node.mtime_ns, node.ctime_ns = inode.atime_ns, inode.mtime_ns, inode.ctime_ns
    if node.data is not None:
        for delta in change.deltas:
            _replay_delta(node.data, delta)
        node.data.unjournaled = []


def _replay_delta(data: FileData, delta: ExtentDelta) -> None:
    if delta.end == FILE_SIZE_MAX and not delta.extents:
        data.truncate(delta.start)
        return
    at = delta.start
    for extent in delta.extents:
        if extent.offset > at:
            data.place(Piece(at, extent.offset, None, 0))
        at = extent.offset + extent.length
        data.place(Piece(extent.offset, at, extent.chunk, extent.chunk_offset))
    if at < delta.end:
        data.place(Piece(at, delta.end, None, 0))


def _replay_name(tree: LiveTree, change: NameChange) -> None:
    holder = tree.overlay.get(change.parent)
    if holder is None:
        raise DamagedError(f"The journal names a directory {change.parent} that neither it nor the last commit knows.")
    try:
        before = tree.lookup(change.parent, change.name)
    except RefusedError:
        before = None
    child = change.child[0] if change.child is not None else None
    holder.changes[change.name] = child
    holder.count += (child is not None) - (before is not None)
    if child is None:
        return
    node = tree.overlay.get(child)
    if node is None:
        raise DamagedError(f"The journal names a file {child} that neither it nor the last commit knows.")
    if not node.linked:
        node.parent, node.name = change.parent, change.name
