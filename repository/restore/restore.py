"""Walks a snapshot and makes the destination look like it.

Regular files are handed out (`sending.py`); everything else is made by the walking thread. A directory gets its
attributes when the last thing in it is done, so its times are right. Memory is bounded by the depth of the tree and by
the number of hard-linked files (a path for each).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from repository.errors import DamagedError
from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.ports import Progress
from repository.restore.attributes import TargetError
from repository.restore.batches import Batch, FirstNamed, Large
from repository.restore.files import WINDOW_BYTES, FileWriter, check_name, kept
from repository.restore.hands import Hands
from repository.restore.rows import Row, Tree
from repository.restore.sending import RestoreCounts, Sending
from repository.restore.target import TargetDirectory, WhenThere
from repository.units import MIB

__all__ = ["Restorer", "WhenThere"]

HIDDEN_FILES_MIN: Final = 2
"""Fewer files in a directory are renamed one by one: that costs as much as renaming the directory."""
HIDDEN_FILES_MAX: Final = 4096
HIDDEN_BYTES_MAX: Final = 256 * MIB
"""What a killed restore may leave under the temporary name of a directory."""
_FILE: Final = int(NodeKind.FILE)
_DIRECTORY: Final = int(NodeKind.DIRECTORY)


@dataclass(slots=True)
class _Frame:
    """A directory on the way down. Its files were handed out before the first directory in it is entered."""

    directory: TargetDirectory
    ref: DirRef
    names: tuple[bytes, ...]
    unreadable: bool = False
    """That was told."""
    below: Iterator[Row] = iter(())


class Restorer:
    """One restore. `directory` or `single` is called once, by one thread.

    `ahead` is told the chunks of each part of a large file when that is handed out, some parts before it is at work.
    """

    def __init__(
        self,
        tree: Tree,
        links: RecordId | None,
        writer: FileWriter,
        hands: Hands,
        *,
        ahead: Callable[[Sequence[RecordId]], None],
        notices: Notices,
        progress: Progress,
    ) -> None:
        self._tree = tree
        self._links = links
        self._writer = writer
        self._hands = hands
        self._when_there = writer.when_there
        self._notices = notices
        self._progress = progress
        self._first_names: dict[FileId, FirstNamed] = {}
        self._destination: TargetDirectory | None = None
        self.counts = RestoreCounts()
        self._sending = Sending(writer, hands, ahead, notices, progress, self.counts)

    def directory(self, destination: TargetDirectory, listing: DirRef) -> None:
        """Restore everything in `listing` into `destination`, which is let go of. Raises NoSpaceError, VolumeError."""
        self._destination = destination.hold()
        stack: list[_Frame] = []
        try:
            self._enter(stack, destination, listing, ())
            while stack:
                frame = stack[-1]
                try:
                    child = self._next_directory(frame)
                except DamagedError as error:
                    self._unreadable(frame, error)
                    child = None
                if child is None:
                    stack.pop()
                    self._sending.release(frame.directory)
                    self._progress.advance(0, 0)
                    continue
                opened, name, ref = child
                self._enter(stack, opened, ref, (*frame.names, name))
            self._sending.drain()
        finally:
            for frame in stack:
                self._sending.release(frame.directory)
            self._sending.abandon()
            self._sending.release(self._destination)

    def _enter(self, stack: list[_Frame], directory: TargetDirectory, ref: DirRef, names: tuple[bytes, ...]) -> None:
        """One level down: everything in `directory` but the directories is made or handed out."""
        frame = _Frame(directory, ref, names)
        stack.append(frame)
        try:
            self._tree.load_contents_below(ref)
            for segment in self._tree.scan_contents(ref):
                self._segment(directory, Row(*segment, 0), names)
        except DamagedError as error:
            self._unreadable(frame, error)
        finally:
            self._hands.filled([directory])
        frame.below = self._directories(ref)

    def _unreadable(self, frame: _Frame, error: DamagedError) -> None:
        """Told once, though a listing is gone through twice."""
        if not frame.unreadable:
            self._notices.problem(frame.directory.path or b".", f"the rest of its listing cannot be read: {error}")
        frame.unreadable = True

    def single(self, destination: TargetDirectory, entry: Entry) -> None:
        """Restore one file (anything that is not a directory) into `destination`, which is let go of."""
        self._destination = destination.hold()
        try:
            self._single(destination, entry)
            self._sending.drain()
        finally:
            self._sending.release(destination)
            self._sending.abandon()
            self._sending.release(self._destination)

    def _single(self, destination: TargetDirectory, entry: Entry) -> None:
        name, inode = entry
        try:
            check_name(name)
            if not self._in_the_way(destination, name, inode) and not self._made(destination, name, inode):
                outcome = self._writer.put(destination, name, inode)
                for _, _, why in outcome.problems:
                    self._notices.problem(destination.path_of(name), why)
                self._progress.advance(outcome.written_bytes, outcome.written_files)
        except (TargetError, DamagedError) as error:
            self._notices.problem(destination.path_of(name), str(error))

    def _directories(self, ref: DirRef) -> Iterator[Row]:
        for segment in self._tree.scan_contents(ref):
            kinds = segment[2].files.kinds
            row = kinds.find(NodeKind.DIRECTORY)
            while row >= 0:
                yield Row(*segment, row)
                row = kinds.find(NodeKind.DIRECTORY, row + 1)

    def _inode(self, row: Row) -> Inode:
        return self._tree.entry_at(row.content_id, row.attrs_id, row.position).inode

    def _segment(self, directory: TargetDirectory, segment: Row, names: tuple[bytes, ...]) -> None:
        """Hand out a segment's small files, and make what is neither that nor a directory."""
        sizes = segment.content.files.plain_sizes()
        first = files = nbytes = 0
        for row, kind in enumerate(segment.content.files.kinds):
            if kind == _FILE and sizes[row] <= WINDOW_BYTES:
                files += 1
                nbytes += sizes[row]
                if self._sending.is_full(files, nbytes):
                    self._sending.add(directory, segment, first, row + 1, files, nbytes)
                    first, files, nbytes = row + 1, 0, 0
            elif kind == _FILE:  # a span must not reach over it
                self._sending.add(directory, segment, first, row, files, nbytes)
                first, files, nbytes = row + 1, 0, 0
                self._other(directory, segment._replace(position=row), names)
            elif kind != _DIRECTORY:
                self._other(directory, segment._replace(position=row), names)
        self._sending.add(directory, segment, first, len(sizes), files, nbytes)

    def _other(self, directory: TargetDirectory, row: Row, names: tuple[bytes, ...]) -> None:
        """A link, a special file or a large one."""
        name = row.name
        try:
            check_name(name)
            inode = self._inode(row)
            if inode.kind is NodeKind.LINK:
                self._linked(directory, name, inode.file_id, names)
                return
            if not self._in_the_way(directory, name, inode):
                self._made(directory, name, inode)
        except (TargetError, DamagedError) as error:
            self._notices.problem(directory.path_of(name), str(error))

    def _next_directory(self, frame: _Frame) -> tuple[TargetDirectory, bytes, DirRef] | None:
        """The next directory in that of `frame`, open; None where that was the last."""
        for row in frame.below:
            try:
                check_name(row.name)
                inode = self._inode(row)
                return self._directory(frame.directory, row.name, inode), row.name, inode.directory
            except (TargetError, DamagedError) as error:
                self._notices.problem(frame.directory.path_of(row.name), str(error))
        return None

    def _directory(self, directory: TargetDirectory, name: bytes, inode: Inode) -> TargetDirectory:
        there = directory.existing(name)
        overwrite = self._when_there is WhenThere.OVERWRITE
        if there is not None and there.is_directory:
            return directory.open_directory(name, inode if overwrite else None)
        if there is not None:
            if not overwrite:
                raise TargetError("a file stands where a directory belongs; nothing in it is restored")
            directory.remove(name)
        self.counts.directories += 1
        hidden = directory.fresh and self._is_quick(inode)
        return directory.make_directory(name, inode, hidden=hidden)

    def _is_quick(self, inode: Inode) -> bool:
        """Whether the files of a directory are soon there, so that all of them may wait for that under one temporary
        name."""
        light = inode.totals.content_bytes <= HIDDEN_BYTES_MAX
        try:
            self._tree.load_contents_below(inode.directory)
            files = self._tree.small_directory(inode.directory)
            if files is None:
                return light and HIDDEN_FILES_MIN <= self._tree.count(inode.directory) <= HIDDEN_FILES_MAX
            if files.kinds.count(_FILE) < HIDDEN_FILES_MIN:
                return False
            return light or sum(size for size in files.plain_sizes() if size <= WINDOW_BYTES) <= HIDDEN_BYTES_MAX
        except DamagedError:  # it is met again
            return False

    def _in_the_way(self, directory: TargetDirectory, name: bytes, inode: Inode) -> bool:
        """Whether a file is there already, and counted as such; else it is counted as restored."""
        if kept(directory.existing(name), inode, self._when_there):
            self.counts.kept += 1
            return True
        self.counts.files += 1
        self.counts.content_bytes += inode.size
        return False

    def _made(self, directory: TargetDirectory, name: bytes, inode: Inode) -> "Large | bool":
        """Make what is no regular file, or begin a large one; False for a small one, of which nothing was done."""
        if inode.kind is not NodeKind.FILE:
            lack = directory.make_special(name, inode)
            if lack:
                self._notices.problem(directory.path_of(name), lack)
            return True
        return self._sending.large(directory, name, inode) if inode.size > WINDOW_BYTES else False

    def _linked(self, directory: TargetDirectory, name: bytes, file_id: FileId, names: tuple[bytes, ...]) -> None:
        first = self._first_names.get(file_id)
        if first is not None and self._sending.arrived(first):
            there = directory.existing(name)
            if there is not None and there.is_directory:
                raise TargetError("a directory stands where a file belongs")
            if there is not None and self._when_there is WhenThere.KEEP:
                self.counts.kept += 1
                return
            source = directory.hold() if first.names[:-1] == names else self._reopen(first.names[:-1])
            try:
                directory.make_link(name, source, first.names[-1])
            finally:
                self._sending.release(source)
            self.counts.files += 1
            return
        inode = self._tree.link(self._links, file_id)
        if inode is None:
            raise DamagedError("its entry in the snapshot's table of hard links is missing")
        way: tuple[Batch, int] | Large | None = None
        if not self._in_the_way(directory, name, inode):
            made = self._made(directory, name, inode)
            way = made if isinstance(made, Large) else None
            if not made:
                way = self._sending.add_first_name(directory, name, file_id, inode.size)
        self._first_names[file_id] = FirstNamed((*names, name), way)

    def _reopen(self, names: tuple[bytes, ...]) -> TargetDirectory:
        """A directory of the destination again, never through a symlink."""
        try:
            return self._reopened(names)
        except TargetError:  # it may have a temporary name until its files are there
            self._sending.drain()
            return self._reopened(names)

    def _reopened(self, names: tuple[bytes, ...]) -> TargetDirectory:
        assert self._destination is not None
        directory = self._destination.hold()
        try:
            for name in names:
                child = directory.open_directory(name, None)
                self._sending.release(directory)
                directory = child
        except TargetError:
            self._sending.release(directory)
            raise
        return directory
