"""Walks a snapshot and makes the destination look like it.

Regular files are written by worker threads, in batches; everything else by the walking thread. A directory gets its
attributes when the last thing in it is done, so its times are right. Memory is bounded by the depth of the tree and by
the number of hard-linked files (a path for each).
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from repository.errors import DamagedError
from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.restore.files import FileWriter, WriteTask
from repository.restore.target import TargetDirectory, TargetError
from repository.units import MIB

BATCH_FILES: Final = 256
BATCH_BYTES: Final = 8 * MIB
BATCH_DIRECTORIES: Final = 64
"""Directories kept open for one batch."""
BATCHES_UNDER_WAY: Final = 4
"""Bounds the chunks in memory, and the directories kept open at 320."""


class WhenThere(Enum):
    """What happens to a file that stands in the way."""

    KEEP = "keep"
    """It stays; unless it has the same size and time as the one in the snapshot, that is reported."""
    OVERWRITE = "overwrite"
    """It is replaced. A directory in the way of anything else stays, and is reported."""


class Tree(Protocol):
    """What is read of the snapshot."""

    def load_below(self, ref: DirRef) -> None: ...

    def scan(self, ref: DirRef, after: bytes | None = None) -> Iterator[Entry]: ...

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
    tasks: list[WriteTask]
    nbytes: int = 0
    directories: int = 0
    future: "Future[list[bool]] | None" = None
    done: "list[bool] | None" = None

    def written(self, row: int) -> bool:
        if self.done is None:
            assert self.future is not None
            self.done = self.future.result()
        return self.done[row]


@dataclass(slots=True)
class _FirstName:
    """Where the first name of a hard-linked file was restored; `batch` while it may still be on its way."""

    names: tuple[bytes, ...]
    batch: _Batch | None
    row: int


class Restorer:
    """One restore. `run` is called once, by one thread."""

    def __init__(
        self,
        tree: Tree,
        links: RecordId | None,
        writer: FileWriter,
        pool: ThreadPoolExecutor,
        *,
        when_there: WhenThere,
        notices: Notices,
    ) -> None:
        self._tree = tree
        self._links = links
        self._writer = writer
        self._pool = pool
        self._when_there = when_there
        self._notices = notices
        self._batch = _Batch([])
        self._under_way: deque[_Batch] = deque()
        self._first_names: dict[FileId, _FirstName] = {}
        self._destination: TargetDirectory | None = None
        self.counts = RestoreCounts()

    def directory(self, destination: TargetDirectory, listing: DirRef) -> None:
        """Restore everything in `listing` into `destination`, which is let go of. Raises NoSpaceError, VolumeError."""
        self._destination = destination.hold()
        stack: list[tuple[TargetDirectory, Iterator[Entry], tuple[bytes, ...]]] = []
        stack.append((destination, self._listing(listing), ()))
        try:
            while stack:
                directory, entries, names = stack[-1]
                try:
                    entry = next(entries, None)
                except DamagedError as error:
                    self._notices.problem(directory.path or b".", f"the rest of its listing cannot be read: {error}")
                    entry = None
                if entry is None:
                    stack.pop()
                    self._release(directory)
                    self._writer.pulse()
                    continue
                child = self._entry(directory, entry, names)
                if child is not None:
                    stack.append((child, self._listing(entry.inode.directory), (*names, entry.name)))
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
            self._entry(destination, entry, ())
            self._drain()
        finally:
            self._release(destination)
            self._abandon()
            self._release(self._destination)

    def _listing(self, ref: DirRef) -> Iterator[Entry]:
        self._tree.load_below(ref)
        return self._tree.scan(ref)

    def _entry(self, directory: TargetDirectory, entry: Entry, names: tuple[bytes, ...]) -> TargetDirectory | None:
        """Restore one entry; for a directory, the open one to go on in."""
        name, inode = entry
        try:
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise TargetError("such a name cannot be restored")
            if inode.kind is NodeKind.DIRECTORY:
                return self._directory(directory, name, inode)
            if inode.kind is NodeKind.LINK:
                self._linked(directory, name, inode.file_id, names)
            else:
                self._file(directory, name, inode)
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

    def _file(self, directory: TargetDirectory, name: bytes, inode: Inode) -> tuple[_Batch | None, int]:
        """Restore a file; the batch and row with which it is on its way, None where it is there already."""
        there = directory.existing(name)
        if there is not None:
            if there.is_directory:
                raise TargetError("a directory stands where a file belongs")
            if self._when_there is WhenThere.KEEP:
                same = there.is_file == (inode.kind is NodeKind.FILE) and there.mtime_ns == inode.mtime_ns
                if not same or (there.is_file and there.size != inode.size):
                    raise TargetError("another file stands there and is kept")
                self.counts.kept += 1
                return None, 0
        self.counts.files += 1
        self.counts.content_bytes += inode.size
        if inode.kind is not NodeKind.FILE:
            lack = directory.make_special(name, inode)
            if lack:
                self._notices.problem(directory.path_of(name), lack)
            return None, 0
        batch = self._batch
        if not batch.tasks or batch.tasks[-1].directory is not directory:
            batch.directories += 1
        batch.tasks.append(WriteTask(directory.hold(), name, inode))
        batch.nbytes += inode.size
        place = batch, len(batch.tasks) - 1
        if len(batch.tasks) >= BATCH_FILES or batch.nbytes >= BATCH_BYTES or batch.directories >= BATCH_DIRECTORIES:
            self._send()
        return place

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
        self._first_names[file_id] = _FirstName((*names, name), *self._file(directory, name, inode))

    def _arrived(self, first: _FirstName) -> bool:
        """Wait for the first name; whether it is there."""
        if first.batch is None:
            return True
        if first.batch.future is None:
            self._send()
        written = first.batch.written(first.row)
        if written:
            first.batch = None
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
        if not batch.tasks:
            return
        self._batch = _Batch([])
        batch.future = self._pool.submit(self._writer.write_batch, batch.tasks)
        self._under_way.append(batch)
        while len(self._under_way) > BATCHES_UNDER_WAY:
            self._settle(self._under_way.popleft())

    def _settle(self, batch: _Batch) -> None:
        assert batch.future is not None
        batch.done = batch.future.result()
        batch.tasks = []

    def _drain(self) -> None:
        self._send()
        while self._under_way:
            self._settle(self._under_way.popleft())

    def _abandon(self) -> None:
        """After an error: let go of what no worker has begun, and wait for the others."""
        self._writer.stop()
        for batch in (*self._under_way, self._batch):
            if batch.future is None or batch.future.cancel():
                for task in batch.tasks:
                    self._release(task.directory)
            else:
                batch.future.exception()
        self._under_way.clear()

    def _release(self, directory: TargetDirectory) -> None:
        try:
            directory.release()
        except TargetError as error:
            self._notices.problem(directory.path or b".", str(error))
