"""Puts the tree of a new snapshot together from what the scanner tells and the workers read.

The scanner runs ahead of the builder by at most LOOKAHEAD_EVENTS, so that workers always have files to read, also
where every directory holds only a few. Memory does not grow with the number of files: a directory's changes are
written whenever FLUSH_CHANGES of them have come together (`rewrite_directory` gives the same tree, however the changes
are divided), and an unchanged directory is never written at all.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from repository.create.events import (
    Event,
    FileFound,
    FileTask,
    Frame,
    FrameDone,
    LinkedNode,
    LinkFound,
    NodeFound,
    Outcome,
)
from repository.create.ingest import Ingest, Reading
from repository.create.readers import Readers
from repository.create.scan import Scanner
from repository.create.skim import same_inode
from repository.create.source import Directory
from repository.format.inode import DirRef, Inode, NodeKind, Totals
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.ports import Progress
from repository.units import MIB

LOOKAHEAD_EVENTS: Final = 8192
"""About 5 MB of inodes and tasks."""
BATCH_FILES: Final = 256
BATCH_BYTES: Final = 4 * MIB
"""One hop to a worker costs as much as hashing 256 KiB: this makes it less than a tenth."""
BATCH_DIRECTORIES: Final = 64
"""Directories that one batch keeps open: with all batches under way below half of the usual 1,024 descriptors."""
BATCHES_UNDER_WAY: Final = 6
"""Batches submitted and not yet built in: bounds the bytes in memory at 24 MiB and what a worker adds."""
TELL_FILES: Final = 32
"""Files that were read, or BATCH_BYTES of them, before the progress is told."""
FLUSH_CHANGES: Final = 8192
"""Changed entries of one directory held in memory, about 5 MB."""
FLUSH_LINKS: Final = 65_536
"""Hard-linked inodes held in memory, about 40 MB, before the links table is written."""


class TreeSink(Protocol):
    """Writes directories and links tables."""

    def rewrite_directory(self, base: DirRef, changes: Mapping[bytes, Inode | None]) -> tuple[DirRef, Totals]: ...

    def rewrite_links(self, base: RecordId | None, changes: Mapping[FileId, Inode | None]) -> RecordId | None: ...


class Built(NamedTuple):
    """A finished tree: its root with listing and totals, and its links table."""

    root: Inode
    links: RecordId | None


class _Batch:
    """Tasks that travel together, and their outcomes once they are back. Holds their directories open."""

    __slots__ = ("_directories", "_outcomes", "_reading", "full", "nbytes", "tasks")

    def __init__(self) -> None:
        self.tasks: list[FileTask] = []
        self.nbytes = 0
        self.full = False
        self._directories: list[Directory] = []
        self._reading: Reading | None = None
        self._outcomes: list[Outcome] = []

    def add(self, task: FileTask) -> None:
        """Take a task along; the scanner still has its directory open."""
        tasks, directories = self.tasks, self._directories
        if not tasks or tasks[-1].directory is not task.directory:
            directories.append(task.directory.hold())
        tasks.append(task)
        self.nbytes += task.size_bytes
        self.full = len(tasks) >= BATCH_FILES or self.nbytes >= BATCH_BYTES or len(directories) >= BATCH_DIRECTORIES

    def begin(self, readers: Readers, ingest: Ingest, *, here: bool = False) -> None:
        """Have it read by others, or `here`."""
        self._reading = ingest.begin(self.tasks, readers.submit, here=here)

    def _release(self) -> None:
        for directory in self._directories:
            directory.release()
        self._directories.clear()

    @property
    def begun(self) -> bool:
        return self._reading is not None

    def ready(self) -> bool:
        """Whether its outcomes need not be waited for, as far as a worker makes them."""
        return self._reading is not None and self._reading.ready()

    def outcome(self, row: int, ingest: Ingest) -> Outcome:
        """The outcome of the task `row`; waits for it."""
        if not self._outcomes:
            assert self._reading is not None
            self._outcomes = ingest.finish(self.tasks, self._reading)
            self._release()
        return self._outcomes[row]

    def abandon(self) -> None:
        """Give up what no thread has begun."""
        future = None if self._reading is None else self._reading.future
        if future is None or future.cancel():
            self._release()
        else:
            future.add_done_callback(lambda _: self._release())


class _Waiting(NamedTuple):
    event: Event
    batch: _Batch | None
    row: int


class Builder:
    """Runs one scan to its end. Used by one thread; `readers` do the reading."""

    def __init__(
        self,
        scanner: Scanner,
        ingest: Ingest,
        trees: TreeSink,
        readers: Readers,
        *,
        notices: Notices,
        progress: Progress,
    ) -> None:
        self._scanner = scanner
        self._ingest = ingest
        self._trees = trees
        self._readers = readers
        self._notices = notices
        self._progress = progress
        self._waiting: deque[_Waiting] = deque()
        self._batch = _Batch()
        self._under_way: deque[_Batch] = deque()
        self._failed_links: set[FileId] = set()
        self._link_changes: dict[FileId, Inode | None] = {}
        self._links: RecordId | None = None
        self._told_files = 0
        self._told_bytes = 0
        self._read_files = 0
        self._read_bytes = 0
        self.changed_files = 0
        self._root: Inode | None = None

    def run(self) -> Built:
        """Scan, read and build everything. Raises what the store raises."""
        events, waiting, under_way = self._scanner.events, self._waiting, self._under_way
        more = True
        while more:
            more = self._scanner.step()
            if not events:
                self._tell()
            while events:
                self._admit(events.popleft())
                while len(waiting) > LOOKAHEAD_EVENTS or len(under_way) > BATCHES_UNDER_WAY:
                    self._build_next()
        while waiting:
            self._build_next()
        self._tell()
        self._flush_links()
        assert self._root is not None
        return Built(self._root, self._links)

    def abandon(self) -> None:
        """Let go of every file that will not be read any more (after an error)."""
        self._scanner.close()
        for batch in (*self._under_way, self._batch):
            batch.abandon()
        self._under_way.clear()
        self._batch = _Batch()

    def _admit(self, event: Event) -> None:
        """Take an event into the queue; its file, if it is one, into the batch that is being filled."""
        if not isinstance(event, FileFound):
            self._waiting.append(_Waiting(event, None, 0))
            return
        batch = self._batch
        self._waiting.append(_Waiting(event, batch, len(batch.tasks)))
        batch.add(event.task)
        if batch.full:
            self._send()

    def _send(self) -> None:
        batch = self._batch
        if batch.tasks:
            self._readers.begin(more=batch.full)
            self._under_way.append(batch)
            self._batch = _Batch()
            self._feed()

    def _feed(self) -> None:
        """Begin what is to be read, as far as others have time for it."""
        for batch in self._under_way:
            if not batch.begun:
                if self._readers.crew_busy:
                    return
                batch.begin(self._readers, self._ingest)

    def _outcome(self, batch: _Batch, row: int) -> Outcome:
        """Waits for the batch. While the crew is at work on it, what nobody has begun is read here: so this process and
        the crew are both busy, whoever has more to do otherwise."""
        if row == 0:
            while not batch.ready():
                behind = next((one for one in self._under_way if not one.begun), None)
                if behind is None:
                    break
                behind.begin(self._readers, self._ingest, here=True)
        outcome = batch.outcome(row, self._ingest)
        if row == 0:
            self._feed()
        return outcome

    def _build_next(self) -> None:
        event, batch, row = self._waiting.popleft()
        match event:
            case FileFound():
                assert batch is not None
                if batch is self._batch:
                    self._send()
                outcome = self._outcome(batch, row)
                while self._under_way and self._under_way[0] is not batch:
                    self._under_way.popleft()
                if row == len(batch.tasks) - 1:
                    self._under_way.popleft()
                self._file(event, outcome)
            case NodeFound(frame, name, inode):
                self.changed_files += inode is not None and inode.kind is not NodeKind.DIRECTORY
                self._change(frame, name, inode)
            case LinkedNode(inode, unchanged):
                self.changed_files += not unchanged
                self._linked(inode)
            case LinkFound(frame, name, file_id, unchanged):
                if file_id in self._failed_links:
                    self._change(frame, name, None)
                elif not unchanged:
                    self._change(frame, name, Inode(NodeKind.LINK, file_id))
            case FrameDone(frame):
                self._finish(frame)
                self._tell()

    def _file(self, event: FileFound, outcome: Outcome) -> None:
        if outcome.problem:
            self._notices.problem(event.task.directory.path_of(event.name), outcome.problem)
        inode = outcome.inode
        self._read_files += 1
        self._read_bytes += outcome.read_bytes
        if self._read_files >= TELL_FILES or self._read_bytes >= BATCH_BYTES:
            self._tell()
        if inode is None:
            if event.linked:
                self._failed_links.add(event.task.file_id)
            if event.base is not None:
                self._change(event.frame, event.name, None)
            return
        base = event.base
        if base is not None and not event.linked and same_inode(base, inode, inode.directory, inode.totals):
            self._scanner.counts.unchanged_files += 1
            self._told_files += 1
            return
        self.changed_files += 1
        if event.linked:
            self._linked(inode)
            inode = Inode(NodeKind.LINK, inode.file_id)
        self._change(event.frame, event.name, inode)

    def _linked(self, inode: Inode) -> None:
        self._link_changes[inode.file_id] = inode
        if len(self._link_changes) >= FLUSH_LINKS:
            self._flush_links()

    def _flush_links(self) -> None:
        if self._link_changes:
            self._links = self._trees.rewrite_links(self._links, self._link_changes)
            self._link_changes.clear()

    def _change(self, frame: Frame, name: bytes, inode: Inode | None) -> None:
        frame.changes[name] = inode
        if len(frame.changes) >= FLUSH_CHANGES:
            self._write(frame)

    def _write(self, frame: Frame) -> None:
        if frame.changes:
            frame.ref, frame.totals = self._trees.rewrite_directory(frame.ref, frame.changes)
            frame.changes.clear()

    def _finish(self, frame: Frame) -> None:
        """The directory is complete: write it, and tell its parent if that made a difference."""
        self._write(frame)
        base = frame.base
        if base is not None and same_inode(base, frame.inode, frame.ref, frame.totals):
            inode = base
        else:
            inode = replace(frame.inode, directory=frame.ref, totals=frame.totals)
        if frame.parent is None:
            self._root = inode
        elif inode is not base:
            self._change(frame.parent, frame.name, inode)

    def _tell(self) -> None:
        """Bring the progress up to date: with what was read since, and what needed no reading; also a place where it
        may end the work."""
        counts = self._scanner.counts
        files = counts.unchanged_files - self._told_files
        nbytes = counts.unchanged_bytes - self._told_bytes
        self._told_files += files
        self._told_bytes += nbytes
        files += self._read_files
        nbytes += self._read_bytes
        self._read_files = self._read_bytes = 0
        self._progress.advance(nbytes, files)
