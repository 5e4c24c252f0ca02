"""Walks the directories to be stored, compares them with the parent snapshot, and tells the builder what is new.

One thread. A file whose size, modification time, change time and type are those of the parent snapshot costs one
lstat and nothing else. (Its inode number is not kept in a snapshot, so that it cannot be compared; the change time
moves with everything that could make it another file, a rename included.) Files with times younger than two seconds
before the parent snapshot's beginning are read again: a later write within one tick of the clock would be missed.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyroaring import BitMap64

from repository.create.events import (
    BaseCursor,
    Event,
    FileFound,
    FileTask,
    Frame,
    FrameDone,
    LinkedNode,
    LinkFound,
    NodeFound,
)
from repository.create.exclude import CACHE_TAG_NAME, CACHE_TAG_SIGNATURE, Excludes
from repository.create.source import Directory, SourceError, Xattrs, kind_of, open_ancestor, xattrs_of
from repository.format.inode import DirRef, Extent, ExtentsRef, Inode, NodeKind
from repository.format.stats import Stat
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.trees.reader import Row
from repository.units import NS_PER_S

RACY_NS: Final = 2 * NS_PER_S
"""FAT keeps times to two seconds; every other file system is finer."""


class BaseReader(Protocol):
    """What is read of the parent snapshot."""

    def load_below(self, ref: DirRef) -> None: ...

    def scan_rows(self, ref: DirRef) -> Iterator[Row]: ...

    def inode_of(self, row: Row) -> Inode: ...

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None: ...


@dataclass(frozen=True, slots=True)
class Base:
    """The parent snapshot: its root, links table, and when it began (ns since 1970)."""

    root: Inode
    links: RecordId | None
    time_ns: int


@dataclass(slots=True)
class Wanted:
    """A directory on the way to the paths that were named: all of it (`whole`), or only some children."""

    whole: bool = False
    children: "dict[bytes, Wanted]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What is left out. `repository`: device and inode number of the repository's directory."""

    excludes: Excludes
    exclude_caches: bool
    one_file_system: bool
    repository: tuple[int, int]
    mounts: frozenset[bytes]
    """Absolute paths of Ballast mounts."""


class FileIds:
    """Hands out file ids; `next` is the first that was never used."""

    def __init__(self, next_id: FileId) -> None:
        self.next: int = next_id

    def fresh(self) -> FileId:
        self.next += 1
        return FileId(self.next - 1)


def wanted_tree(paths: list[bytes]) -> Wanted:
    """The directories that lead to these absolute, normalised paths."""
    root = Wanted()
    for path in paths:
        at = root
        for name in path.split(b"/"):
            if name:
                at = at.children.setdefault(name, Wanted())
        at.whole = True
    return root


def inode_of(
    found: os.stat_result,
    file_id: FileId,
    *,
    xattrs: Xattrs = (),
    target: bytes = b"",
    size: int | None = None,
    extents: tuple[Extent, ...] | ExtentsRef = (),
    allocated_bytes: int = 0,
) -> Inode:
    """An inode with the attributes that one lstat told; `size` (bytes) where the reading knows it better."""
    kind = kind_of(found.st_mode)
    assert kind is not None
    if size is None:
        size = found.st_size if kind is NodeKind.FILE or kind is NodeKind.SYMLINK else 0
    return Inode(
        kind=kind,
        file_id=file_id,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev if kind is NodeKind.CHARACTER or kind is NodeKind.BLOCK else 0,
        size=size,
        nlink=found.st_nlink if kind is not NodeKind.DIRECTORY else 1,
        atime_ns=found.st_atime_ns,
        mtime_ns=found.st_mtime_ns,
        ctime_ns=found.st_ctime_ns,
        xattrs=xattrs,
        target=target,
        extents=extents,
        allocated_bytes=allocated_bytes,
    )


@dataclass(slots=True)
class _Level:
    frame: Frame
    directory: Directory
    names: Iterator[bytes]
    cursor: BaseCursor | None
    wanted: Wanted | None
    device: int
    has_mounts: bool
    """Whether a Ballast mount lies right in it."""


@dataclass(slots=True)
class ScanCounts:
    """What was seen: files that are not directories, and among them those that the parent has unchanged."""

    files: int = 0
    unchanged_files: int = 0
    unchanged_bytes: int = 0
    directories: int = 0


class Scanner:
    """Call `step` until it says False; what it finds is in `events`, oldest first.

    File ids: a directory keeps its own from the parent snapshot, an unchanged file too (also one that had to be read
    to know that); anything else gets a fresh one, because (id, version) must never mean two contents, even where
    snapshots branch.
    """

    def __init__(
        self, options: ScanOptions, base: Base | None, reader: BaseReader, ids: FileIds, notices: Notices
    ) -> None:
        self._options = options
        self._base = base
        self._reader = reader
        self._ids = ids
        self._notices = notices
        self._racy_ns = base.time_ns - RACY_NS if base is not None else 0
        self._stack: list[_Level] = []
        self._links: dict[tuple[int, int], tuple[FileId, int]] = {}
        self._links_taken = BitMap64()
        self._mount_parents = frozenset(os.path.dirname(mount) for mount in options.mounts)
        self._held: list[Directory] = []
        self.events: deque[Event] = deque()
        self.counts = ScanCounts()

    def begin(self, wanted: Wanted) -> None:
        """Start at the root directory. Raises SourceError."""
        directory = open_ancestor(b"/")
        base = self._base.root if self._base is not None else None
        self._enter(None, b"", directory, base, wanted)

    def step(self) -> bool:
        """Look at names until there is something to tell. False when everything has been told."""
        if self.events:
            return True
        self._let_go()
        if not self._stack:
            return False
        level = self._stack[-1]
        depth = len(self._stack)
        gone: list[bytes] = []
        plain = level.wanted is None and not level.has_mounts and not self._options.excludes
        for name in level.names:
            base = None if level.cursor is None else level.cursor.take(name, gone)
            if gone:
                self._gone(level.frame, gone)
                gone = []
            if plain and base is not None and self._still_there(level.directory, name, base.stat):
                continue
            if not self._visit(level, name, base) and base is not None:
                self._gone(level.frame, [name])
            if self.events or len(self._stack) != depth:
                return True
        if level.cursor is not None:
            self._gone(level.frame, level.cursor.rest())
        self.events.append(FrameDone(level.frame))
        level.directory.release()
        self._stack.pop()
        return True

    def _still_there(self, directory: Directory, name: bytes, base: Stat) -> bool:
        """Whether this is a file with one name that the parent has unchanged: what `_visit` would find, sooner."""
        kind = base.kind
        if kind is NodeKind.DIRECTORY or kind is NodeKind.LINK:
            return False
        try:
            found = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except OSError:
            return False
        if found.st_nlink != 1 or not self._unchanged(base, found):
            return False
        counts = self.counts
        counts.files += 1
        counts.unchanged_files += 1
        counts.unchanged_bytes += base.size
        return True

    def put_back(self, events: deque[Event], held: list[Directory]) -> None:
        """Tell `events`, which were taken out, once more. `held`, the directories of their files, are let go of at the
        first step after that."""
        self.events.extendleft(reversed(events))
        self._held += held

    def close(self) -> None:
        """Let go of every directory (after an error)."""
        self._let_go()
        while self._stack:
            self._stack.pop().directory.release()

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().release()

    def _gone(self, frame: Frame, names: list[bytes]) -> None:
        self.events.extend(NodeFound(frame, name, None) for name in names)

    def _visit(self, level: _Level, name: bytes, row: Row | None) -> bool:
        """Whether an entry of this name belongs into the snapshot."""
        directory = level.directory
        wanted = level.wanted.children.get(name) if level.wanted is not None else None
        options = self._options
        if level.has_mounts and directory.path_of(name) in options.mounts:
            self._notices.note(f"'{os.fsdecode(directory.path_of(name))}' is a Ballast mount and is left out.")
            return False
        try:
            found = directory.lstat(name)
        except SourceError as error:
            self._unreadable(directory, name, error, explicit=wanted is not None)
            return False
        is_directory = stat.S_ISDIR(found.st_mode)
        if wanted is None and options.excludes and options.excludes.leaves_out(directory.path, name, is_directory):
            return False
        try:
            if is_directory or (wanted is not None and not wanted.whole):
                return self._visit_directory(level, name, found, self._base_inode(row), wanted)
            self.counts.files += 1
            if found.st_nlink > 1:
                self._visit_linked(level, name, found, self._base_inode(row))
            elif row is not None and self._unchanged(row.stat, found):
                self.counts.unchanged_files += 1
                self.counts.unchanged_bytes += row.stat.size
            elif stat.S_ISREG(found.st_mode):
                task = FileTask(directory, name, self._ids.fresh(), found.st_size)
                self.events.append(FileFound(level.frame, name, task, linked=False, base=self._base_inode(row)))
            else:
                self.events.append(NodeFound(level.frame, name, self._special(directory, name, found)))
        except SourceError as error:
            self._unreadable(directory, name, error, explicit=wanted is not None)
            return False
        return True

    def _base_inode(self, row: Row | None) -> Inode | None:
        return None if row is None else self._reader.inode_of(row)

    def _unreadable(self, directory: Directory, name: bytes, error: SourceError, *, explicit: bool) -> None:
        """Tell about it, unless it merely vanished or would have been left out anyway."""
        excludes = self._options.excludes
        if not explicit and (
            error.vanished
            or excludes.leaves_out(directory.path, name, True)
            or excludes.leaves_out(directory.path, name, False)
        ):
            return
        self._notices.problem(directory.path_of(name), str(error))

    def _unchanged(self, base: Inode | Stat, found: os.stat_result) -> bool:
        return (
            base.ctime_ns == found.st_ctime_ns < self._racy_ns
            and base.mtime_ns == found.st_mtime_ns < self._racy_ns
            and (base.size == found.st_size or base.kind is not NodeKind.FILE)
            and base.kind is kind_of(found.st_mode)
        )

    def _special(self, directory: Directory, name: bytes, found: os.stat_result) -> Inode:
        """The inode of anything that is neither a regular file nor a directory."""
        target = directory.readlink(name) if stat.S_ISLNK(found.st_mode) else b""
        size = len(target) if target else None
        return inode_of(found, self._ids.fresh(), xattrs=directory.xattrs(name), target=target, size=size)

    def _visit_linked(self, level: _Level, name: bytes, found: os.stat_result, base: Inode | None) -> None:
        key = (found.st_dev, found.st_ino)
        file_id, left = self._links.get(key, (FileId(0), found.st_nlink))
        if file_id == 0:
            file_id, first = self._first_name(level.directory, name, found, base)
            if isinstance(first, FileTask):
                self.events.append(FileFound(level.frame, name, first, linked=True, base=base))
            else:
                self.events.append(LinkedNode(first, unchanged=file_id in self._links_taken))
                self._link_name(level, name, file_id, base)
        else:
            self._link_name(level, name, file_id, base)
        if left > 1:
            self._links[key] = (file_id, left - 1)
        else:
            self._links.pop(key, None)

    def _link_name(self, level: _Level, name: bytes, file_id: FileId, base: Inode | None) -> None:
        unchanged = base is not None and base.kind is NodeKind.LINK and base.file_id == file_id
        self.events.append(LinkFound(level.frame, name, file_id, unchanged))

    def _first_name(
        self, directory: Directory, name: bytes, found: os.stat_result, base: Inode | None
    ) -> tuple[FileId, Inode | FileTask]:
        """The inode of a hard-linked file that is met for the first time: known already, or to be read."""
        if base is not None and base.kind is NodeKind.LINK and base.file_id not in self._links_taken:
            assert self._base is not None
            known = self._reader.link(self._base.links, base.file_id)
            if known is not None and self._unchanged(known, found):
                self._links_taken.add(base.file_id)
                self.counts.unchanged_files += 1
                self.counts.unchanged_bytes += known.size
                return base.file_id, known
        if stat.S_ISREG(found.st_mode):
            file_id = self._ids.fresh()
            return file_id, FileTask(directory, name, file_id, found.st_size)
        inode = self._special(directory, name, found)
        return inode.file_id, inode

    def _visit_directory(
        self, level: _Level, name: bytes, found: os.stat_result, base: Inode | None, wanted: Wanted | None
    ) -> bool:
        directory = level.directory
        if (found.st_dev, found.st_ino) == self._options.repository:
            path = os.fsdecode(directory.path_of(name))
            self._notices.note(f"'{path}' is the repository itself and is left out.")
            return False
        if wanted is not None and not wanted.whole:
            child = open_ancestor(directory.path_of(name))
        else:
            if self._options.one_file_system and wanted is None and found.st_dev != level.device:
                self._empty_directory(level.frame, name, found, base)
                return True
            try:
                child = directory.open_directory(name)
            except SourceError as error:
                if error.vanished:
                    return False
                self._unreadable(directory, name, error, explicit=wanted is not None)
                self._empty_directory(level.frame, name, found, base)
                return True
        self._enter(level.frame, name, child, base, wanted)
        return True

    def _empty_directory(self, frame: Frame, name: bytes, found: os.stat_result, base: Inode | None) -> None:
        """A directory whose content is not looked at: a mount point under --one-file-system, or unreadable."""
        file_id = base.file_id if base is not None and base.kind is NodeKind.DIRECTORY else self._ids.fresh()
        self.events.append(NodeFound(frame, name, inode_of(found, file_id)))

    def _enter(
        self, parent: Frame | None, name: bytes, directory: Directory, base: Inode | None, wanted: Wanted | None
    ) -> None:
        self.counts.directories += 1
        found = directory.own_stat()
        known = base if base is not None and base.kind is NodeKind.DIRECTORY else None
        try:
            if known is not None and known.xattrs and known.ctime_ns == found.st_ctime_ns < self._racy_ns:
                xattrs = known.xattrs
            else:  # also where it had none: it may have had too many, which is told each time
                xattrs = self._directory_xattrs(directory, whole=wanted is None or wanted.whole)
            names = self._names(directory, wanted)
        except SourceError as error:
            self._notices.problem(directory.path, str(error))
            xattrs, names = (), []
        file_id = known.file_id if known is not None else self._ids.fresh()
        frame = Frame(parent, name, inode_of(found, file_id, xattrs=xattrs), known)
        cursor = None
        if known is not None:
            frame.ref, frame.totals = known.directory, known.totals
            try:
                self._reader.load_below(known.directory)
                cursor = BaseCursor(self._reader.scan_rows(known.directory))
            except BaseException:
                directory.release()
                raise
        has_mounts = directory.path in self._mount_parents
        self._stack.append(_Level(frame, directory, iter(names), cursor, wanted, found.st_dev, has_mounts))

    def _directory_xattrs(self, directory: Directory, *, whole: bool) -> Xattrs:
        """Those of a directory; one that has too many is told about, and its content stored all the same."""
        try:
            return xattrs_of(directory.fd) if whole else xattrs_of(directory.path)
        except SourceError as error:
            if not error.too_many_xattrs:
                raise
            self._notices.problem(directory.path, f"{error}; the directory is stored without them")
            return ()

    def _names(self, directory: Directory, wanted: Wanted | None) -> list[bytes]:
        if wanted is not None and not wanted.whole:
            return sorted(wanted.children)
        names = directory.names()
        if (
            self._options.exclude_caches
            and CACHE_TAG_NAME in names
            and directory.begins_with(CACHE_TAG_NAME, CACHE_TAG_SIGNATURE)
        ):
            kept = wanted.children if wanted is not None else {}
            return sorted({CACHE_TAG_NAME, *kept})
        return names
