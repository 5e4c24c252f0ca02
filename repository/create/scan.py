"""Walks the directories to be stored, compares them with the parent snapshot, and tells the builder what is new.

One thread. A file whose size, modification time, change time and type are those of the parent snapshot costs one
lstat and nothing else. (Its inode number is not kept in a snapshot, so that it cannot be compared; the change time
moves with everything that could make it another file, a rename included.) Files with times younger than two seconds
before the parent snapshot's beginning are read again: a later write within one tick of the clock would be missed.

Where somebody looks ahead, the scanner is told of whole subtrees what differs there, and looks at nothing else.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from repository.create.events import (
    Event,
    FileFound,
    FileTask,
    Frame,
    FrameDone,
    LinkedNode,
    LinkFound,
    NodeFound,
)
from repository.create.exclude import CACHE_TAG_NAME, CACHE_TAG_SIGNATURE
from repository.create.found import inode_of
from repository.create.hardlinks import HardLinks
from repository.create.plan import Base, BaseReader, FileIds, Lookahead, ScanOptions, Wanted
from repository.create.skim import Known, Look, PlainLook, ScanCounts, differing, identity_of, same_file
from repository.create.source import Directory, SourceError, Xattrs, open_ancestor, open_root, xattrs_of
from repository.format.inode import Inode, NodeKind
from repository.ids import FileId
from repository.notices import Notices
from repository.units import NS_PER_S

RACY_NS: Final = 2 * NS_PER_S
"""FAT keeps times to two seconds; every other file system is finer."""


@dataclass(slots=True)
class Level:
    """A directory that is being looked at."""

    frame: Frame
    directory: Directory
    entries: Iterator[tuple[bytes, Known | Inode | None]]
    """What is left to be looked at, and what the parent snapshot has of it."""
    wanted: Wanted | None
    found: os.stat_result
    has_mounts: bool
    """Whether a Ballast mount lies right in it."""
    looks: dict[bytes, PlainLook]
    """What is known already of directories in it."""


class Scanner:
    """Call `step` until it says False; what it finds is in `events`, oldest first.

    File ids: a directory keeps its own from the parent snapshot, an unchanged file too (also one that had to be read
    to know that); anything else gets a fresh one, because (id, version) must never mean two contents, even where
    snapshots branch.
    """

    step_events: int = 64
    """How many events one step gathers, of one directory."""

    def __init__(
        self,
        options: ScanOptions,
        base: Base | None,
        reader: BaseReader,
        ids: FileIds,
        notices: Notices,
        ahead: Lookahead | None = None,
    ) -> None:
        self._options = options
        self._ahead = ahead
        self._base = base
        self._reader = reader
        self._ids = ids
        self._notices = notices
        self._racy_ns = base.time_ns - RACY_NS if base is not None else 0
        self._stack: list[Level] = []
        self._hard_links = HardLinks(base, reader, self._racy_ns)
        self._mount_parents = frozenset(os.path.dirname(mount) for mount in options.mounts)
        self._held: list[Directory] = []
        self.events: deque[Event] = deque()
        self.counts = ScanCounts()

    def begin(self, wanted: Wanted) -> None:
        """Start at the root directory. Raises SourceError."""
        directory = open_root() if wanted.whole else open_ancestor(b"/")
        base = self._base.root if self._base is not None else None
        self._enter(None, b"", directory, base, wanted)

    def step(self) -> bool:
        """Look at names until there are `step_events` to tell, or a directory is done with or entered. False when
        everything has been told."""
        events = self.events
        if events:
            return True
        self._let_go()
        if not self._stack:
            self._stop_ahead()
            return False
        level = self._stack[-1]
        counts, visit, most = self.counts, self._visit, self.step_events
        directories = counts.directories
        for name, known in level.entries:
            if not visit(level, name, known) and known is not None:
                self._gone(level.frame, name)
            if len(events) >= most or counts.directories != directories:
                return True
        if events:
            return True  # their directory is let go of when they were taken
        events.append(FrameDone(level.frame))
        level.directory.release()
        self._stack.pop()
        return True

    def put_back(self, events: deque[Event], held: list[Directory]) -> None:
        """Tell `events`, which were taken out, once more. `held`, the directories of their files, are let go of at the
        first step after that."""
        self.events.extendleft(reversed(events))
        self._held += held

    def close(self) -> None:
        """Let go of every directory (after an error)."""
        self._stop_ahead()
        self._let_go()
        while self._stack:
            self._stack.pop().directory.release()

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _let_go(self) -> None:
        while self._held:
            self._held.pop().release()

    def _gone(self, frame: Frame, name: bytes) -> None:
        self.events.append(NodeFound(frame, name, None))

    def _visit(self, level: Level, name: bytes, known: Known | Inode | None) -> bool:
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
                return self._visit_directory(level, name, found, self._base_inode(known), wanted)
            self.counts.files += 1
            if found.st_nlink > 1:
                self._visit_linked(level, name, found, self._base_inode(known))
            elif known is not None and same_file(known, found, self._racy_ns):
                self.counts.unchanged_files += 1
                self.counts.unchanged_bytes += known.size
            elif stat.S_ISREG(found.st_mode):
                task = FileTask(directory, name, self._ids.fresh(), found.st_size)
                base = None if known is None else self._base_inode(known)
                self.events.append(FileFound(level.frame, name, task, False, base))
            else:
                self.events.append(NodeFound(level.frame, name, self._special(directory, name, found)))
        except SourceError as error:
            self._unreadable(directory, name, error, explicit=wanted is not None)
            return False
        return True

    def _base_inode(self, known: Known | Inode | None) -> Inode | None:
        return known if known is None or isinstance(known, Inode) else self._reader.inode_of(known)

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

    def _special(self, directory: Directory, name: bytes, found: os.stat_result) -> Inode:
        """The inode of anything that is neither a regular file nor a directory."""
        target = directory.readlink(name) if stat.S_ISLNK(found.st_mode) else b""
        size = len(target) if target else None
        return inode_of(found, self._ids.fresh(), xattrs=directory.xattrs(name), target=target, size=size)

    def _visit_linked(self, level: Level, name: bytes, found: os.stat_result, base: Inode | None) -> None:
        file_id = self._hard_links.met(found)
        if file_id is None:
            file_id = self._first_name(level, name, found, base)
        else:
            self._link_name(level, name, file_id, base)
        self._hard_links.note(found, file_id)

    def _link_name(self, level: Level, name: bytes, file_id: FileId, base: Inode | None) -> None:
        unchanged = base is not None and base.kind is NodeKind.LINK and base.file_id == file_id
        self.events.append(LinkFound(level.frame, name, file_id, unchanged))

    def _first_name(self, level: Level, name: bytes, found: os.stat_result, base: Inode | None) -> FileId:
        """Tell of a hard-linked file that is met for the first time: known already, or to be read. Its id."""
        known = self._hard_links.unchanged(found, base)
        if known is None and stat.S_ISREG(found.st_mode):
            task = FileTask(level.directory, name, self._ids.fresh(), found.st_size)
            self.events.append(FileFound(level.frame, name, task, linked=True, base=base))
            return task.file_id
        if known is not None:
            self.counts.unchanged_files += 1
            self.counts.unchanged_bytes += known.size
        inode = self._special(level.directory, name, found) if known is None else known
        self.events.append(LinkedNode(inode, unchanged=known is not None))
        self._link_name(level, name, inode.file_id, base)
        return inode.file_id

    def _visit_directory(
        self, level: Level, name: bytes, found: os.stat_result, base: Inode | None, wanted: Wanted | None
    ) -> bool:
        directory = level.directory
        if (found.st_dev, found.st_ino) == self._options.repository:
            path = os.fsdecode(directory.path_of(name))
            self._notices.note(f"'{path}' is the repository itself and is left out.")
            return False
        look: Look | None = None
        if wanted is not None and wanted.inside and stat.S_ISDIR(found.st_mode):
            wanted = Wanted(whole=True, inside=True, children=wanted.children)
        if wanted is not None and not wanted.whole:
            child = open_ancestor(directory.path_of(name))
        else:
            if self._options.one_file_system and wanted is None and found.st_dev != level.found.st_dev:
                self._empty_directory(level.frame, name, found, base)
                return True
            if wanted is None and base is not None and base.kind is NodeKind.DIRECTORY:
                look = self._look(level, name, found)
                if look is not None and look.pristine:
                    self._count_unchanged(look)
                    return True
            try:
                child = directory.open_directory(name)
            except SourceError as error:
                if error.vanished:
                    return False
                self._unreadable(directory, name, error, explicit=wanted is not None)
                self._empty_directory(level.frame, name, found, base)
                return True
        self._enter(level.frame, name, child, base, wanted, look)
        return True

    def _look(self, level: Level, name: bytes, found: os.stat_result) -> Look | None:
        """What is known already of a directory, if it is still the one that was looked at."""
        plain = level.looks.get(name)
        if plain is None and self._ahead is not None:
            plain = self._ahead.take(level.directory.path_of(name))
            if plain is not None:
                found = level.directory.lstat(name)  # what was found before the answer came may be older than it
        return Look(*plain) if plain is not None and plain[0] == identity_of(found) else None

    def _count_unchanged(self, look: Look) -> None:
        counts = self.counts
        counts.files += look.files
        counts.unchanged_files += look.files
        counts.unchanged_bytes += look.nbytes
        counts.directories += look.directories

    def _empty_directory(self, frame: Frame, name: bytes, found: os.stat_result, base: Inode | None) -> None:
        """A directory whose content is not looked at: a mount point under --one-file-system, or unreadable."""
        file_id = base.file_id if base is not None and base.kind is NodeKind.DIRECTORY else self._ids.fresh()
        self.events.append(NodeFound(frame, name, inode_of(found, file_id)))

    def _enter(
        self,
        parent: Frame | None,
        name: bytes,
        directory: Directory,
        base: Inode | None,
        wanted: Wanted | None,
        look: Look | None = None,
    ) -> None:
        """Go on with a directory. `look`: what is known of it already."""
        self.counts.directories += 1
        found = directory.own_stat()
        if look is not None and look.identity != identity_of(found):
            look = None
        known = base if base is not None and base.kind is NodeKind.DIRECTORY else None
        try:
            if known is not None and known.xattrs and known.ctime_ns == found.st_ctime_ns < self._racy_ns:
                xattrs = known.xattrs
            else:  # also where it had none: it may have had too many, which is told each time
                xattrs = self._directory_xattrs(directory, whole=wanted is None or wanted.whole)
            names = self._names(directory, wanted) if look is None else look.names
        except SourceError as error:
            self._notices.problem(directory.path, str(error))
            xattrs, names, look = (), [], None
        file_id = known.file_id if known is not None else self._ids.fresh()
        frame = Frame(parent, name, inode_of(found, file_id, xattrs=xattrs), known)
        has_mounts = directory.path in self._mount_parents
        entries: Iterator[tuple[bytes, Known | Inode | None]] = ((name, None) for name in names)
        if known is not None:
            frame.ref, frame.totals = known.directory, known.totals
            try:
                if look is not None:
                    entries = self._noted(frame, look)
                else:
                    if self._ahead is None or not self._ahead.looks_into(known.totals):
                        self._reader.load_below(known.directory)
                    entries = self._differing(frame, directory, names, look=wanted is None and not has_mounts)
            except BaseException:
                directory.release()
                raise
        looks = {} if look is None else look.below
        self._stack.append(Level(frame, directory, entries, wanted, found, has_mounts, looks))

    def _noted(self, frame: Frame, look: Look) -> Iterator[tuple[bytes, Inode | None]]:
        """As `_differing`, from what is known."""
        self._count_unchanged(look)
        for name in look.gone:
            self._gone(frame, name)
        listing = frame.ref
        return ((name, self._reader.lookup(listing, name)) for name in look.names)

    def _differing(
        self, frame: Frame, directory: Directory, names: list[bytes], *, look: bool
    ) -> Iterator[tuple[bytes, Known | None]]:
        """See `skim.differing`."""
        excludes = self._options.excludes
        path = directory.path
        return differing(
            directory,
            names,
            self._reader.scan_segments(frame.ref),
            look=look,
            racy_ns=self._racy_ns,
            leaves_out=(lambda name: excludes.leaves_out(path, name, False)) if excludes else None,
            counts=self._counts_for_entry(),
            gone=lambda name: self._gone(frame, name),
        )

    def _counts_for_entry(self) -> ScanCounts:
        """Where the unchanged files of the directory that is being entered are counted."""
        return self.counts

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
