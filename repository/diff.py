"""What differs between two snapshots, or two directories of snapshots.

Directories whose listings are the same records are passed over unread. Times of access and of the last change of
attributes, and the times of directories, are no difference. A path that went elsewhere is one change, not two; where
that happened the two sides are walked twice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from pyroaring import BitMap64

from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.renames import NO_RENAMES, RENAMES_MAX, Renames, Traces, traces_of

BUFFERED_MAX: Final = 10_000
"""Changes, about 1 KB each, that are kept while renames are looked for: with no rename among them nothing is read
twice."""


class ChangeKind(StrEnum):
    """How a path differs."""

    ADDED = "added"
    DELETED = "deleted"
    MODIFIED = "modified"
    RENAMED = "renamed"


class Change(NamedTuple):
    """One path that differs, relative to what is compared. `before` is None where it was added, `after` where deleted.

    Hard-linked files are resolved. For a modified or renamed path `content` says that the type, bytes or target
    differ, and `attributes` that owner, mode, modification time, device number or extended attributes do. `path` is
    the one in the later snapshot, but of what was deleted in the earlier; `old_path` is that of what was renamed.
    """

    kind: ChangeKind
    path: bytes
    before: Inode | None
    after: Inode | None
    content: bool
    attributes: bool
    old_path: bytes | None = None


class Tree(Protocol):
    """What is read of the snapshots."""

    def scan(self, ref: DirRef, after: bytes | None = None) -> Iterator[Entry]: ...

    def lookup(self, ref: DirRef, name: bytes) -> Inode | None: ...

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None: ...

    def scan_links(self, links: RecordId | None, after: FileId | None = None) -> Iterator[Inode]: ...


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: something in a snapshot, and that snapshot's links table."""

    inode: Inode
    links: RecordId | None


class _Step(NamedTuple):
    """A directory of both sides that is being compared: its paths there, with a slash at their ends, and its names."""

    old_prefix: bytes
    new_prefix: bytes
    pairs: "Iterator[tuple[bytes, Inode | None, Inode | None]]"


class Comparison:
    """Compares two sides; `changes` may be called once or many times. Raises DamagedError."""

    def __init__(self, tree: Tree, before: Side, after: Side) -> None:
        self._tree = tree
        self._before = before
        self._after = after
        self._changed_links = self._find_changed_links()

    def changes(self) -> Iterator[Change]:
        """All differences, by path; a directory stands before what is in it."""
        before, after = self._before.inode, self._after.inode
        if before.kind is not NodeKind.DIRECTORY or after.kind is not NodeKind.DIRECTORY:
            yield from self._pair(b"", before, after)
            return
        first: list[Change] = []
        renames = self._find_renames(self._walk(before, after, NO_RENAMES), first)
        if renames.new_of or len(first) > BUFFERED_MAX:
            yield from self._walk(before, after, renames)
        else:
            yield from first

    def _walk(self, before: Inode, after: Inode, renames: Renames) -> Iterator[Change]:
        stack = [_Step(b"", b"", self._merged(before, after))]
        while stack:
            step = stack[-1]
            pair = next(step.pairs, None)
            if pair is None:
                stack.pop()
                continue
            name, old, new = pair
            old_path, new_path = step.old_prefix + name, step.new_prefix + name
            if old is not None and old_path in renames.new_of:
                if new is None:
                    continue  # told where it is now
                old = None
            source = renames.old_of.get(new_path) if new is not None and old is None else None
            if source is not None and new is not None:
                old_path, old = source, self._at(source)
                yield self._renamed(source, new_path, old, new)
            else:
                yield from self._pair(old_path if new is None else new_path, old, new)
            old_directory = old if old is not None and old.kind is NodeKind.DIRECTORY else None
            new_directory = new if new is not None and new.kind is NodeKind.DIRECTORY else None
            if old_directory is not None or new_directory is not None:
                stack.append(_Step(old_path + b"/", new_path + b"/", self._merged(old_directory, new_directory)))

    def _find_renames(self, changes: Iterable[Change], first: list[Change]) -> Renames:
        """The renames in `changes`, of which BUFFERED_MAX + 1 are put into `first`."""
        gone: dict[bytes, Traces] = {}
        came: dict[bytes, Traces] = {}
        for change in changes:
            if change.after is None and change.before is not None:
                gone[change.path] = traces_of(change.before)
            elif change.before is None and change.after is not None:
                came[change.path] = traces_of(change.after)
            if max(len(gone), len(came)) > RENAMES_MAX:
                return NO_RENAMES
            if len(first) <= BUFFERED_MAX:
                first.append(change)
        return Renames(gone, came)

    def _at(self, path: bytes) -> Inode:
        """What the earlier side has under `path`, where something is."""
        inode = self._before.inode
        for name in path.split(b"/"):
            found = self._tree.lookup(inode.directory, name)
            assert found is not None
            inode = found
        return inode

    def _renamed(self, old_path: bytes, path: bytes, old: Inode, new: Inode) -> Change:
        before, after = self._resolved(old, self._before.links), self._resolved(new, self._after.links)
        content, attributes = content_differs(before, after), attributes_differ(before, after)
        return Change(ChangeKind.RENAMED, path, before, after, content, attributes, old_path)

    def _merged(self, before: Inode | None, after: Inode | None) -> Iterator[tuple[bytes, Inode | None, Inode | None]]:
        """Names of both listings in order, with the inode of either side. Nothing where the listings are the same."""
        if before is not None and after is not None and before.directory == after.directory and not self._changed_links:
            return
        one = self._tree.scan(before.directory) if before is not None else iter(())
        other = self._tree.scan(after.directory) if after is not None else iter(())
        left, right = next(one, None), next(other, None)
        while left is not None or right is not None:
            if right is None or (left is not None and left.name < right.name):
                assert left is not None
                yield left.name, left.inode, None
                left = next(one, None)
            elif left is None or right.name < left.name:
                yield right.name, None, right.inode
                right = next(other, None)
            else:
                yield left.name, left.inode, right.inode
                left, right = next(one, None), next(other, None)

    def _pair(self, path: bytes, before: Inode | None, after: Inode | None) -> Iterator[Change]:
        if before is not None:
            if before == after and (before.kind is not NodeKind.LINK or before.file_id not in self._changed_links):
                return
            before = self._resolved(before, self._before.links)
        if after is not None:
            after = self._resolved(after, self._after.links)
        if before is None:
            yield Change(ChangeKind.ADDED, path, None, after, True, True)
        elif after is None:
            yield Change(ChangeKind.DELETED, path, before, None, True, True)
        else:
            content, attributes = content_differs(before, after), attributes_differ(before, after)
            if content or attributes:
                yield Change(ChangeKind.MODIFIED, path, before, after, content, attributes)

    def _resolved(self, inode: Inode, links: RecordId | None) -> Inode:
        if inode.kind is not NodeKind.LINK:
            return inode
        return self._tree.link(links, inode.file_id) or inode

    def _find_changed_links(self) -> BitMap64:
        """File ids that both links tables hold with different inodes: their names say nothing of the difference."""
        changed = BitMap64()
        if self._before.links == self._after.links:
            return changed
        one, other = self._tree.scan_links(self._before.links), self._tree.scan_links(self._after.links)
        left, right = next(one, None), next(other, None)
        while left is not None and right is not None:
            if left.file_id < right.file_id:
                left = next(one, None)
            elif right.file_id < left.file_id:
                right = next(other, None)
            else:
                if left != right:
                    changed.add(left.file_id)
                left, right = next(one, None), next(other, None)
        return changed


def content_differs(before: Inode, after: Inode) -> bool:
    """Whether type, bytes or target differ. Of directories only the type counts."""
    if before.kind is not after.kind:
        return True
    if before.kind is NodeKind.DIRECTORY:
        return False
    return (before.size, before.target, before.extents) != (after.size, after.target, after.extents)


def attributes_differ(before: Inode, after: Inode) -> bool:
    """Whether owner, mode, extended attributes, device number or (not of directories) modification time differ."""
    if before.kind is NodeKind.DIRECTORY or after.kind is NodeKind.DIRECTORY:
        before, after = replace(before, mtime_ns=0), replace(after, mtime_ns=0)
    return _attributes(before) != _attributes(after)


def _attributes(inode: Inode) -> tuple[int, int, int, int, int, tuple[tuple[bytes, bytes], ...]]:
    return inode.mode, inode.uid, inode.gid, inode.rdev, inode.mtime_ns, inode.xattrs
