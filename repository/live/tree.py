"""Finding and owning inodes of the live tree: overlay over frozen generation over committed root.

Owner of these invariants: a node in the overlay has its parent directory in the overlay too (linked nodes excepted),
so a generation can be committed from itself alone; nothing in `frozen` changes, except that flights land.

Every function first looks, then acts: `NotCached` (from a reader that may not read) leaves the tree as it was, or with
nodes owned but untouched, so that the caller loads what is missing and calls again.
"""

import errno
from dataclasses import dataclass
from typing import Final, TypeVar

from repository.errors import RefusedError
from repository.format.inode import DirRef, Inode, NodeKind
from repository.format.journal import Anchor
from repository.format.stats import Stat
from repository.ids import ROOT_FILE_ID, VERSION_BITS, FileId, RecordId
from repository.live.filedata import FileData
from repository.live.node import Node, View
from repository.ports import Clock
from repository.trees.reader import TreeReader

Committed = TypeVar("Committed", Inode, Stat)

NAME_BYTES_MAX: Final = 255
RESOLVED_DIRECTORIES_MAX: Final = 16_384
"""Committed directories remembered by file id; about 300 bytes each. A commit replaces those that it wrote: the others
are in the new root as they were, so a deep path needs no reading after it."""


@dataclass(frozen=True, slots=True)
class Base:
    """A committed root: the root directory's inode, the links table, and the commit's serial number."""

    root: Inode
    links: RecordId | None
    serial: int


class LiveTree:
    """The writable head. Not thread safe: it belongs to one thread; committing reads only `frozen` elsewhere."""

    def __init__(self, reader: TreeReader, base: Base, next_file_id: FileId, clock: Clock) -> None:
        self.reader = reader
        self.base = base
        self.clock = clock
        self.next_file_id = next_file_id
        self.overlay: dict[FileId, Node] = {}
        self.frozen: dict[FileId, Node] = {}
        self.orphans: dict[FileId, Node] = {}
        """Without a name, still in use by somebody; in no commit."""
        self.gone_links: set[FileId] = set()
        """Hard-linked inodes that lost their last name in this generation."""
        self.places: dict[FileId, tuple[FileId, bytes] | None] = {}
        """Where an inode that somebody refers to by number is found; None: in the links table."""
        self.anchors: list[Anchor] = []
        self.journal_nodes: dict[FileId, None] = {}
        self.journal_names: dict[tuple[FileId, bytes], None] = {}
        self.journal_gone: list[FileId] = []
        self.with_runs: dict[FileId, Node] = {}
        """Nodes that hold written bytes in memory."""
        self.run_bytes = 0
        self.buffers: list[bytearray] = []
        """Large buffers for jobs, to be used again: the first touch of memory costs more than chunking it."""
        self.changes = 0
        """Counts changes; never reset. Equal values mean: nothing happened in between."""
        self.names_changed = 0
        """Names bound or removed in this generation, each kept in its directory's changes until the commit."""
        self.ended = False
        """Nothing changes any more: the last commit is being made, and what came after it would be lost."""
        self._directories: dict[FileId, Inode] = {}
        self._last: Inode | None = None
        """The committed file that was found last: a program asks for one several times, and then changes it."""

    # --- looking ------------------------------------------------------------------------------------------------

    def resolve(self, file_id: FileId) -> View:
        """The newest state of an inode. Raises RefusedError(ESTALE) for one that is not known."""
        node = self.overlay.get(file_id) or self.orphans.get(file_id) or self.frozen.get(file_id)
        if node is not None:
            return node
        if file_id == ROOT_FILE_ID:
            return self.base.root
        known = self._directories.get(file_id)
        if known is not None:
            return known
        place = self.places.get(file_id, ())
        if self._last is not None and self._last.file_id == file_id and place != ():
            return self._last
        if place == ():
            raise RefusedError(errno.ESTALE)
        if not place:
            inode = self.reader.link(self.base.links, file_id)
        else:
            inode = self.reader.lookup(self.listing_of(place[0]), place[1])
        if inode is None or inode.file_id != file_id:
            raise RefusedError(errno.ESTALE)
        if inode.kind is NodeKind.DIRECTORY:
            self._keep_directory(inode)
        else:
            self._last = inode
        return inode

    def _keep_directory(self, inode: Inode) -> None:
        while len(self._directories) >= RESOLVED_DIRECTORIES_MAX:
            del self._directories[next(iter(self._directories))]
        self._directories[inode.file_id] = inode

    def discard(self, file_id: FileId) -> None:
        """The inode lost its last name: nothing below the overlay speaks for it any more."""
        self.overlay.pop(file_id, None)
        self._directories.pop(file_id, None)
        self._last = None

    def listing_of(self, directory: FileId) -> DirRef:
        """The committed listing under whatever changed in `directory`."""
        node = self.overlay.get(directory) or self.frozen.get(directory)
        if node is not None:
            return node.base
        found = self.resolve(directory)
        return found.directory if isinstance(found, Inode) else found.base

    def find(self, parent: FileId, name: bytes) -> tuple[View, bool] | None:
        """What `name` in the directory `parent` is, and whether that name is a LINK entry; None: nothing there."""
        base: DirRef | None = None
        for layer in (self.overlay, self.frozen):
            node = layer.get(parent)
            if node is None:
                continue
            if name in node.changes:
                child = node.changes[name]
                if child is None:
                    return None
                found = self.resolve(child)
                return found, isinstance(found, Node) and found.linked
            base = base or node.base
        if parent in self.orphans:
            return None
        base = base or self.listing_of(parent)
        if base.content is None:
            return None
        inode = self.reader.lookup(base, name)
        return None if inode is None else (self.newest(inode), inode.kind is NodeKind.LINK)

    def lookup(self, parent: FileId, name: bytes) -> View | None:
        """What `name` in the directory `parent` is; None where there is nothing."""
        found = self.find(parent, name)
        return None if found is None else found[0]

    def newest(self, inode: Committed) -> Node | Inode | Committed:
        """The newest state of a committed entry; LINK entries come back as the inode they stand for."""
        node = self.overlay.get(inode.file_id) or self.frozen.get(inode.file_id)
        if node is not None:
            return node
        if inode.kind is not NodeKind.LINK:
            return inode
        found = self.reader.link(self.base.links, inode.file_id)
        if found is None:
            raise RefusedError(errno.EIO)
        return found

    def remember(self, parent: FileId, name: bytes, file_id: FileId, *, linked: bool) -> None:
        """Notes where an inode was seen, so that its number alone finds it again; ends with `forget`."""
        self.places[file_id] = None if linked else (parent, name)

    def forget(self, file_id: FileId) -> None:
        """Nobody refers to this inode by number any more."""
        self.places.pop(file_id, None)
        orphan = self.orphans.pop(file_id, None)
        if orphan is not None:
            self.discard_runs(orphan)

    def discard_runs(self, node: Node) -> None:
        """Nobody will ever read what is in memory of this file."""
        if self.with_runs.pop(node.file_id, None) is not None and node.data is not None:
            self.run_bytes -= sum(run.end - run.start for run in node.data.runs)
            node.data.runs = []

    def directory(self, file_id: FileId) -> View:
        """`resolve`, for an inode that must be a directory which still has a name."""
        found = self.resolve(file_id)
        if found.kind is not NodeKind.DIRECTORY:
            raise RefusedError(errno.ENOTDIR)
        if found.nlink == 0:
            raise RefusedError(errno.ENOENT)
        return found

    def count(self, directory: View) -> int:
        """How many entries a directory has."""
        return directory.count if isinstance(directory, Node) else self.reader.count(directory.directory)

    # --- owning -------------------------------------------------------------------------------------------------

    def own(self, file_id: FileId) -> Node:
        """The inode as a node of the current generation, with all its ancestors; not yet marked as changed."""
        node = self.overlay.get(file_id) or self.orphans.get(file_id)
        if node is not None:
            return node
        below = self.frozen.get(file_id)
        node = self._from_frozen(below) if below is not None else self._from_committed(file_id)
        if not node.linked and file_id != ROOT_FILE_ID:
            self.own(node.parent)
        self.overlay[file_id] = node
        self.anchors.append(Anchor(file_id, node.parent, node.name, node.linked))
        return node

    def change(self, file_id: FileId) -> Node:
        """`own`, and mark it as changed: it will be journaled and committed, and has a new version."""
        if self.ended:
            raise RefusedError(errno.ENOTCONN)
        node = self.overlay.get(file_id)
        if node is None:
            node = self.own(file_id)
        if not node.touched:
            node.touched = True
            node.version = (node.version + 1) & ((1 << VERSION_BITS) - 1)
        if node.nlink:
            self.journal_nodes[file_id] = None
            self.changes += 1
        return node

    def change_named(self, parent: FileId, name: bytes, file_id: FileId, *, linked: bool) -> Node:
        """`change`, for an inode just found under `name`, whether or not anybody refers to it by number."""
        known = file_id in self.places
        if not known:
            self.remember(parent, name, file_id, linked=linked)
        try:
            return self.change(file_id)
        finally:
            if not known:
                del self.places[file_id]

    def _from_frozen(self, below: Node) -> Node:
        node = _node_of(below.attributes(), below.parent, below.name)
        node.linked = below.linked
        node.base = below.base
        node.count = below.count
        if below.data is not None:
            node.data = FileData(below.data, below.size)
        return node

    def _from_committed(self, file_id: FileId) -> Node:
        inode = self.resolve(file_id)
        assert isinstance(inode, Inode)
        place = self.places.get(file_id)
        parent, name = place or (ROOT_FILE_ID, b"")
        node = _node_of(inode, parent, name)
        node.linked = file_id != ROOT_FILE_ID and place is None
        node.base = inode.directory
        if inode.kind is NodeKind.FILE:
            node.data = FileData(inode, inode.size)
        elif inode.kind is NodeKind.DIRECTORY:
            node.count = self.reader.count(inode.directory)
        return node

    # --- generations --------------------------------------------------------------------------------------------

    def freeze(self) -> tuple[dict[FileId, Node], set[FileId]]:
        """Ends the generation: what changed is frozen, writers go on above it. One commit at a time."""
        assert not self.frozen
        self.frozen = self.overlay
        self.overlay = {}
        self.names_changed = 0
        gone, self.gone_links = self.gone_links, set()
        return self.frozen, gone

    def install(self, base: Base, committed: dict[FileId, Inode]) -> None:
        """The frozen generation is committed as `base`; `committed` are its inodes as they were written."""
        for file_id, inode in committed.items():
            if inode.kind is NodeKind.DIRECTORY:
                self._keep_directory(inode)
            node = self.overlay.get(file_id) or self.orphans.get(file_id)
            if node is None:
                continue
            if node.data is not None and isinstance(node.data.lower, FileData):
                node.data.lower = inode
            if node.kind is NodeKind.DIRECTORY:
                node.base = inode.directory
        self.frozen = {}
        self.base = base
        self._last = None


def _node_of(inode: Inode, parent: FileId, name: bytes) -> Node:
    """A node with the attributes of `inode`, not yet changed."""
    return Node(
        kind=inode.kind,
        file_id=inode.file_id,
        parent=parent,
        name=name,
        version=inode.version,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        rdev=inode.rdev,
        size=inode.size,
        nlink=inode.nlink,
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
        xattrs=inode.xattrs,
        target=inode.target,
        touched=False,
    )
