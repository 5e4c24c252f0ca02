"""Walks a snapshot and makes the destination look like it.

Regular files are handed out in jobs; everything else is made by the walking thread. A directory gets its attributes
when the last thing in it is done, so its times are right. Memory is bounded by the depth of the tree and by the number
of hard-linked files (a path for each).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from repository.errors import BallastError, DamagedError
from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.ports import Progress
from repository.restore.attributes import TargetError
from repository.restore.files import WINDOW_BYTES, FileWriter, check_name, kept
from repository.restore.hands import Hands
from repository.restore.jobs import FirstName, Job, Outcome, Span
from repository.restore.target import TargetDirectory, TargetFile, WhenThere
from repository.trees.reader import Row

__all__ = ["RestoreCounts", "Restorer", "WhenThere"]

JOB_FILES: Final = 256
JOB_BYTES: Final = WINDOW_BYTES
JOB_DIRECTORIES: Final = 64
"""Directories kept open for one job."""


class Tree(Protocol):
    """What is read of the snapshot."""

    def load_below(self, ref: DirRef) -> None: ...

    def scan_rows(self, ref: DirRef) -> Iterator[Row]: ...

    def inode_of(self, row: Row) -> Inode: ...

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None: ...


@dataclass(slots=True)
class RestoreCounts:
    """What became of the files (everything that is not a directory) and directories."""

    files: int = 0
    directories: int = 0
    content_bytes: int = 0
    kept: int = 0


@dataclass(slots=True)
class _Batch:
    """A job being put together, then on its way."""

    job: Job
    directories: list[TargetDirectory] = field(default_factory=list)
    files: int = 0
    nbytes: int = 0
    future: "Future[Outcome] | None" = None

    def place(self, directory: TargetDirectory) -> int:
        """Which of the job's directories this is."""
        if not self.directories or self.directories[-1] is not directory:
            self.directories.append(directory.hold())
            self.job.fresh.append(directory.fresh)
        return len(self.directories) - 1

    def add_row(self, directory: TargetDirectory, row: Row) -> None:
        """One more regular file. What else stands between two of them is passed over by whoever does the job."""
        place = self.place(directory)
        content = row.content.files.origin
        spans = self.job.spans
        if spans and spans[-1].place == place and spans[-1].content == content:
            spans[-1] = spans[-1]._replace(end=row.position + 1)
        else:
            spans.append(Span(place, content, row.attrs.columns.origin, row.position, row.position + 1))
        self.files += 1
        self.nbytes += row.stat.size

    @property
    def full(self) -> bool:
        return self.files >= JOB_FILES or self.nbytes >= JOB_BYTES or len(self.directories) >= JOB_DIRECTORIES


@dataclass(slots=True)
class _Large:
    """A file of which parts are on their way."""

    directory: TargetDirectory
    name: bytes
    inode: Inode
    file: TargetFile
    failure: Exception | None = None
    written: bool | None = None
    """Whether it is there; None while that is open."""


@dataclass(slots=True)
class _Stretch:
    """A part of a large file on its way."""

    future: "Future[None]"
    large: _Large


@dataclass(slots=True)
class _FirstNamed:
    """Where the first name of a hard-linked file was restored; `way` while it may still be on its way."""

    names: tuple[bytes, ...]
    way: "tuple[_Batch, int] | _Large | None"


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
        self._batch = _Batch(Job(next(self._numbers)))
        self._under_way: deque[_Batch | _Stretch | _Large] = deque()
        self._filling: _Large | None = None
        self._first_names: dict[FileId, _FirstNamed] = {}
        self._destination: TargetDirectory | None = None
        self.counts = RestoreCounts()

    def directory(self, destination: TargetDirectory, listing: DirRef) -> None:
        """Restore everything in `listing` into `destination`, which is let go of. Raises NoSpaceError, VolumeError."""
        self._destination = destination.hold()
        stack: list[tuple[TargetDirectory, Iterator[Row], tuple[bytes, ...]]] = []
        stack.append((destination, self._listing(listing), ()))
        try:
            while stack:
                directory, rows, names = stack[-1]
                try:
                    child = self._rows(directory, rows, names)
                except DamagedError as error:
                    self._notices.problem(directory.path or b".", f"the rest of its listing cannot be read: {error}")
                    child = None
                if child is None:
                    stack.pop()
                    self._release(directory)
                    self._progress.advance(0, 0)
                    continue
                opened, name, ref = child
                stack.append((opened, self._listing(ref), (*names, name)))
            self._drain()
        finally:
            for directory, _, _ in stack:
                self._release(directory)
            self._abandon()
            self._release(self._destination)

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

    def _listing(self, ref: DirRef) -> Iterator[Row]:
        self._tree.load_below(ref)
        return self._tree.scan_rows(ref)

    def _rows(
        self, directory: TargetDirectory, rows: Iterator[Row], names: tuple[bytes, ...]
    ) -> tuple[TargetDirectory, bytes, DirRef] | None:
        """Restore what follows in a listing, up to the next directory: that, open, or None at the end."""
        for row in rows:
            kind = row.stat.kind
            if kind is NodeKind.FILE and row.stat.size <= WINDOW_BYTES:
                self._batch.add_row(directory, row)
                if self._batch.full:
                    self._send()
                continue
            name = row.name
            try:
                check_name(name)
                if kind is NodeKind.LINK:
                    self._linked(directory, name, row.stat.file_id, names)
                    continue
                inode = self._tree.inode_of(row)
                if kind is NodeKind.DIRECTORY:
                    return self._directory(directory, name, inode), name, inode.directory
                if not self._in_the_way(directory, name, inode):
                    self._made(directory, name, inode)
            except (TargetError, DamagedError) as error:
                self._notices.problem(directory.path_of(name), str(error))
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
        return directory.make_directory(name, inode)

    def _in_the_way(self, directory: TargetDirectory, name: bytes, inode: Inode) -> bool:
        """Whether a file is there already, and counted as such; else it is counted as restored."""
        if kept(directory.existing(name), inode, self._when_there):
            self.counts.kept += 1
            return True
        self.counts.files += 1
        self.counts.content_bytes += inode.size
        return False

    def _made(self, directory: TargetDirectory, name: bytes, inode: Inode) -> "_Large | bool":
        """Make what is no regular file, or begin a large one; False for a small one, of which nothing was done."""
        if inode.kind is not NodeKind.FILE:
            lack = directory.make_special(name, inode)
            if lack:
                self._notices.problem(directory.path_of(name), lack)
            return True
        return self._large(directory, name, inode) if inode.size > WINDOW_BYTES else False

    def _large(self, directory: TargetDirectory, name: bytes, inode: Inode) -> _Large:
        self._send()  # a span must not reach over it
        file = directory.create_file(name)
        large = _Large(directory.hold(), name, inode, file)
        self._filling = large
        number = next(self._numbers)
        try:
            for stretch in self._writer.stretches(inode):
                if large.failure is not None:
                    break
                self._ahead([extent.chunk for extent in stretch])
                self._sent(_Stretch(self._hands.fill(number, large.file.fd, stretch), large))
        except DamagedError as error:
            large.failure = error
        self._filling = None
        self._sent(large)
        return large

    def _finish(self, large: _Large) -> None:
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
            source = self._reopen(first.names[:-1])
            try:
                directory.make_link(name, source, first.names[-1])
            finally:
                self._release(source)
            self.counts.files += 1
            return
        inode = self._tree.link(self._links, file_id)
        if inode is None:
            raise DamagedError("its entry in the snapshot's table of hard links is missing")
        way: tuple[_Batch, int] | _Large | None = None
        if not self._in_the_way(directory, name, inode):
            made = self._made(directory, name, inode)
            way = made if isinstance(made, _Large) else None
            if not made:
                batch = self._batch
                batch.job.names.append(FirstName(batch.place(directory), name, file_id))
                batch.files += 1
                batch.nbytes += inode.size
                way = batch, len(batch.job.names) - 1
                if batch.full:
                    self._send()
        self._first_names[file_id] = _FirstNamed((*names, name), way)

    def _arrived(self, first: _FirstNamed) -> bool:
        """Wait for the first name; whether it is there."""
        if isinstance(first.way, _Large):
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
        assert self._destination is not None
        directory = self._destination.hold()
        for name in names:
            child = directory.open_directory(name, None)
            self._release(directory)
            directory = child
        return directory

    def _send(self) -> None:
        batch = self._batch
        if not batch.directories:
            return
        self._batch = _Batch(Job(next(self._numbers)))
        batch.future = self._hands.write(batch.directories, batch.job)
        self._sent(batch)

    def _sent(self, one: _Batch | _Stretch | _Large) -> None:
        self._under_way.append(one)
        while len(self._under_way) > self._hands.under_way_max:
            self._settle(self._under_way.popleft())

    def _settle(self, one: _Batch | _Stretch | _Large) -> None:
        """Wait for what was handed out. Raises what ends the restore."""
        match one:
            case _Batch():
                assert one.future is not None
                outcome = one.future.result()
                one.directories = []
                self.counts.files += outcome.files
                self.counts.content_bytes += outcome.content_bytes
                self.counts.kept += outcome.kept
            case _Stretch():
                try:
                    one.future.result()
                except (TargetError, DamagedError) as error:
                    one.large.failure = one.large.failure or error
                except BallastError:
                    self._filling = self._filling or one.large
                    raise
            case _Large():
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
                case _Batch():
                    if one.future is None or one.future.cancel():
                        self._hands.let_go(one.directories)
                    else:
                        one.future.exception()
                case _Stretch():
                    if not one.future.cancel():
                        one.future.exception()
                    large[id(one.large)] = one.large
                case _Large():
                    large[id(one)] = one
        for unfinished in large.values():
            if unfinished.written is None:
                unfinished.failure = TargetError("not finished")
                with unfinished.file:
                    pass
                self._release(unfinished.directory)
        self._under_way.clear()

    def _release(self, directory: TargetDirectory) -> None:
        self._hands.let_go([directory])
