"""Walks a snapshot and makes the destination look like it.

Regular files are handed out in jobs; everything else is made by the walking thread. A directory gets its attributes
when the last thing in it is done, so its times are right. Memory is bounded by the depth of the tree and by the number
of hard-linked files (a path for each).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from repository.errors import BallastError, DamagedError
from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.ports import Progress
from repository.restore.attributes import TargetError
from repository.restore.batches import Batch, FirstNamed, Large, Stretch
from repository.restore.files import WINDOW_BYTES, FileWriter, check_name, kept
from repository.restore.hands import Hands
from repository.restore.jobs import FirstName, Job, Span
from repository.restore.rows import Row, Tree
from repository.restore.target import TargetDirectory, WhenThere
from repository.units import MIB

__all__ = ["RestoreCounts", "Restorer", "WhenThere"]

JOB_FILES: Final = 256
JOB_BYTES: Final = WINDOW_BYTES
JOB_DIRECTORIES: Final = 64
"""Directories kept open for one job."""
HIDDEN_FILES_MIN: Final = 2
"""Fewer files in a directory are renamed one by one: that costs as much as renaming the directory."""
HIDDEN_FILES_MAX: Final = 4096
HIDDEN_BYTES_MAX: Final = 256 * MIB
"""What a killed restore may leave under the temporary name of a directory."""
_FILE: Final = int(NodeKind.FILE)
_DIRECTORY: Final = int(NodeKind.DIRECTORY)


@dataclass(slots=True)
class RestoreCounts:
    """What became of the files (everything that is not a directory) and directories."""

    files: int = 0
    directories: int = 0
    content_bytes: int = 0
    kept: int = 0


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
        self._ahead = ahead
        self._when_there = writer.when_there
        self._notices = notices
        self._progress = progress
        self._numbers = count(1)
        self._batch = Batch(Job(next(self._numbers)))
        self._under_way: deque[Batch | Stretch | Large] = deque()
        self._filling: Large | None = None
        self._first_names: dict[FileId, FirstNamed] = {}
        self._destination: TargetDirectory | None = None
        self.counts = RestoreCounts()

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
                    self._release(frame.directory)
                    self._progress.advance(0, 0)
                    continue
                opened, name, ref = child
                self._enter(stack, opened, ref, (*frame.names, name))
            self._drain()
        finally:
            for frame in stack:
                self._release(frame.directory)
            self._abandon()
            self._release(self._destination)

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
            self._drain()
        finally:
            self._release(destination)
            self._abandon()
            self._release(self._destination)

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
                if self._batch.files + files >= JOB_FILES or self._batch.nbytes + nbytes >= JOB_BYTES:
                    self._add(directory, segment, first, row + 1, files, nbytes)
                    first, files, nbytes = row + 1, 0, 0
            elif kind == _FILE:  # a span must not reach over it
                self._add(directory, segment, first, row, files, nbytes)
                first, files, nbytes = row + 1, 0, 0
                self._other(directory, segment._replace(position=row), names)
            elif kind != _DIRECTORY:
                self._other(directory, segment._replace(position=row), names)
        self._add(directory, segment, first, len(sizes), files, nbytes)

    def _add(self, directory: TargetDirectory, segment: Row, first: int, end: int, files: int, nbytes: int) -> None:
        """`files` more to the job. What else stands between two of them is passed over by whoever does it."""
        if not files:
            return
        batch = self._batch
        batch.job.spans.append(Span(batch.place(directory), segment.content_id, segment.attrs_id, first, end))
        batch.files += files
        batch.nbytes += nbytes
        self._send_full()

    def _send_full(self) -> None:
        batch = self._batch
        if batch.files >= JOB_FILES or batch.nbytes >= JOB_BYTES or len(batch.directories) >= JOB_DIRECTORIES:
            self._send()

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
        return self._large(directory, name, inode) if inode.size > WINDOW_BYTES else False

    def _large(self, directory: TargetDirectory, name: bytes, inode: Inode) -> Large:
        file = directory.create_file(name)
        large = Large(directory.hold(), name, inode, file)
        self._filling = large
        number = next(self._numbers)
        try:
            for stretch in self._writer.stretches(inode):
                if large.failure is not None:
                    break
                self._ahead([extent.chunk for extent in stretch])
                self._sent(Stretch(self._hands.fill(number, large.file.fd, stretch), large))
        except DamagedError as error:
            large.failure = error
        self._filling = None
        self._sent(large)
        return large

    def _finish(self, large: Large) -> None:
        """All its parts are there, or it failed."""
        large.written = False
        try:
            with large.file as file:
                if large.failure is not None:
                    raise large.failure
                lack = file.finish(large.inode)
            if lack:
                self._notices.problem(large.directory.path_of(large.name), lack)
            large.written = True
            self._progress.advance(large.inode.size - large.inode.allocated_bytes, 1)
        except (TargetError, DamagedError) as error:
            self._notices.problem(large.directory.path_of(large.name), str(error))
        finally:
            self._release(large.directory)

    def _linked(self, directory: TargetDirectory, name: bytes, file_id: FileId, names: tuple[bytes, ...]) -> None:
        first = self._first_names.get(file_id)
        if first is not None and self._arrived(first):
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
                self._release(source)
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
                batch = self._batch
                batch.job.names.append(FirstName(batch.place(directory), name, file_id))
                batch.files += 1
                batch.nbytes += inode.size
                way = batch, len(batch.job.names) - 1
                self._send_full()
        self._first_names[file_id] = FirstNamed((*names, name), way)

    def _arrived(self, first: FirstNamed) -> bool:
        """Wait for the first name; whether it is there."""
        if isinstance(first.way, Large):
            while first.way.written is None:
                self._settle(self._under_way.popleft())
            written = first.way.written
        elif first.way is not None:
            batch, item = first.way
            if batch.future is None:
                self._send()
            assert batch.future is not None
            written = item not in batch.future.result().failed
        else:
            return True
        if written:
            first.way = None
        return written

    def _reopen(self, names: tuple[bytes, ...]) -> TargetDirectory:
        """A directory of the destination again, never through a symlink."""
        try:
            return self._reopened(names)
        except TargetError:  # it may have a temporary name until its files are there
            self._drain()
            return self._reopened(names)

    def _reopened(self, names: tuple[bytes, ...]) -> TargetDirectory:
        assert self._destination is not None
        directory = self._destination.hold()
        try:
            for name in names:
                child = directory.open_directory(name, None)
                self._release(directory)
                directory = child
        except TargetError:
            self._release(directory)
            raise
        return directory

    def _send(self) -> None:
        batch = self._batch
        if not batch.directories:
            return
        self._batch = Batch(Job(next(self._numbers)))
        batch.future = self._hands.write(batch.directories, batch.job)
        self._sent(batch)

    def _sent(self, one: Batch | Stretch | Large) -> None:
        self._under_way.append(one)
        while len(self._under_way) > self._hands.under_way_max:
            self._settle(self._under_way.popleft())

    def _settle(self, one: Batch | Stretch | Large) -> None:
        """Wait for what was handed out. Raises what ends the restore."""
        match one:
            case Batch():
                assert one.future is not None
                outcome = one.future.result()
                one.directories = []
                self.counts.files += outcome.files
                self.counts.content_bytes += outcome.content_bytes
                self.counts.kept += outcome.kept
            case Stretch():
                try:
                    one.future.result()
                except (TargetError, DamagedError) as error:
                    one.large.failure = one.large.failure or error
                except BallastError:
                    self._filling = self._filling or one.large
                    raise
            case Large():
                self._finish(one)

    def _drain(self) -> None:
        self._send()
        while self._under_way:
            self._settle(self._under_way.popleft())

    def _abandon(self) -> None:
        """After an error: let go of what nobody has begun, and wait for the others."""
        self._writer.stopped.set()
        large = {id(self._filling): self._filling} if self._filling is not None else {}
        for one in (*self._under_way, self._batch):
            match one:
                case Batch():
                    if one.future is None or one.future.cancel():
                        self._hands.let_go(one.directories)
                    else:
                        one.future.exception()
                case Stretch():
                    if not one.future.cancel():
                        one.future.exception()
                    large[id(one.large)] = one.large
                case Large():
                    large[id(one)] = one
        for unfinished in large.values():
            if unfinished.written is None:
                unfinished.failure = TargetError("not finished")
                with unfinished.file:
                    pass
                self._release(unfinished.directory)
        self._under_way.clear()

    def _release(self, directory: TargetDirectory) -> None:
        self._hands.release([directory])
