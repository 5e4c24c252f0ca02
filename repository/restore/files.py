"""Writes regular files of a snapshot into open directories: a job of the walk, in a thread or in a process of its own.

Chunks of a batch are read together, in the order in which they lie in the packs. Where one of them is damaged, the
files of the batch are written one by one, so that only those that need it fail.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

from repository.errors import BallastError, DamagedError, InterruptedByUserError, VolumeError
from repository.format.inode import DirRef, Entry, Extent, Inode, NodeKind
from repository.format.record import Record
from repository.ids import FileId, RecordId
from repository.restore.attributes import TargetError
from repository.restore.jobs import Job, Outcome, Span
from repository.restore.stretches import Piece, StretchWriter
from repository.restore.target import Existing, TargetDirectory, WhenThere, write_at
from repository.trees.reader import RecordCache
from repository.units import MIB

WINDOW_BYTES: Final = 8 * MIB
"""Bytes of chunks that are held at once: of many small files, or of a stretch of a large one."""

Chunks = dict[RecordId, bytes]


class ChunkReader(Protocol):
    """Where the bytes come from. Raises DamagedError."""

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]: ...


class Listings(Protocol):
    """What is read of the snapshot. Raises DamagedError."""

    @property
    def cache(self) -> RecordCache: ...

    def scan(self, ref: DirRef, after: bytes | None = None) -> Iterator[Entry]: ...

    def file_names(self, content_id: RecordId, first: int, end: int) -> list[bytes]: ...

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None: ...

    def extents(self, inode: Inode, start: int, end: int) -> list[Extent]: ...


class _Task:
    """A file on its way: a row of a span, or one of the job's names."""

    __slots__ = ("directory", "inode", "name", "place", "row", "source")

    def __init__(
        self, directory: TargetDirectory, place: int, name: bytes, inode: Inode, source: Span | int, row: int
    ) -> None:
        self.directory = directory
        self.place = place
        self.name = name
        self.inode = inode
        self.source = source
        self.row = row


@dataclass(slots=True)
class FileWriter:
    """Its methods may run in many threads at once. `patient` False: what meets damage is left undone, not reported."""

    store: ChunkReader
    trees: Listings
    links: RecordId | None
    when_there: WhenThere
    stopped: threading.Event
    """Set it, and running jobs give up at the next file."""
    patient: bool = True
    stretch_writer: StretchWriter = field(default_factory=StretchWriter)

    def write(self, directories: Sequence[TargetDirectory], job: Job) -> Outcome:
        """Do a job. Raises NoSpaceError, VolumeError where the destination takes no more, InterruptedByUserError."""
        outcome = Outcome()
        if job.spans:
            with suppress(DamagedError):  # it is met again
                self.trees.cache.load(one for span in job.spans for one in (span.content, span.attrs))
        tasks: list[_Task] = []
        nbytes = 0
        for task in self._tasks(directories, job, outcome):
            if nbytes + task.inode.size > WINDOW_BYTES and tasks:
                self._write_all(tasks, outcome)
                tasks, nbytes = [], 0
            tasks.append(task)
            nbytes += task.inode.size
        self._write_all(tasks, outcome)
        return outcome

    def sweep(self, directories: Sequence[TargetDirectory], job: Job) -> None:
        """Remove what somebody who died left of a job in hidden directories: half files stand under their own names
        there. Where that cannot be read, all files go."""
        for span in job.spans:
            directory = directories[span.place]
            if directory.hidden:
                try:
                    names = self.trees.file_names(span.content, span.first, span.end)
                except DamagedError:
                    directory.sweep(b"")
                    continue
                for name in names:
                    directory.forget(name)
        for place, name, _ in job.names:
            if directories[place].hidden:
                directories[place].forget(name)

    def put(self, directory: TargetDirectory, name: bytes, inode: Inode) -> Outcome:
        """Write one file of which the inode is at hand. Raises as `write`."""
        outcome = Outcome()
        self._write_all([_Task(directory, 0, name, inode, 0, 0)], outcome)
        return outcome

    def fill(self, fd: int, stretch: Sequence[Extent]) -> None:
        """Write these extents of an open file. Raises TargetError, DamagedError; NoSpaceError, VolumeError."""
        self._check()
        chunks = self._chunks(stretch)
        self.stretch_writer.write(fd, [Piece(extent.offset, _bytes_of(extent, chunks)) for extent in stretch])

    def stretches(self, inode: Inode) -> Iterator[list[Extent]]:
        """A large file's extents in turns of about WINDOW_BYTES; holes are left out. Raises DamagedError."""
        for start in range(0, inode.size, WINDOW_BYTES):
            found = self.trees.extents(inode, start, min(start + WINDOW_BYTES, inode.size))
            begun = [extent for extent in found if extent.offset >= start]
            if begun:
                yield begun

    def _check(self) -> None:
        if self.stopped.is_set():
            raise InterruptedByUserError("Interrupted.")

    def _tasks(self, directories: Sequence[TargetDirectory], job: Job, outcome: Outcome) -> Iterator[_Task]:
        """The files of the job that have to be written."""
        for span in job.spans:
            directory = directories[span.place]
            row = span.first
            try:
                entries = self.trees.scan(DirRef(span.content, span.attrs))
                for row, (name, inode) in enumerate(islice(entries, span.first, span.end), span.first):
                    if inode.kind is NodeKind.FILE and self._wanted(directory, span, name, inode, outcome):
                        yield _Task(directory, span.place, name, inode, span, row)
            except DamagedError as error:
                if self.patient:
                    why = f"the rest of its listing cannot be read: {error}"
                    outcome.problems.append((span.place, b"", why))
                else:
                    outcome.undone.append(span._replace(first=row))
        for item, (place, name, file_id) in enumerate(job.names):
            try:
                found = self.trees.link(self.links, file_id)
                if found is None:
                    raise DamagedError("its entry in the snapshot's table of hard links is missing")
                yield _Task(directories[place], place, name, found, item, 0)
            except DamagedError as error:
                self._damaged(_Task(directories[place], place, name, Inode(NodeKind.LINK, file_id), item, 0), error,
                              outcome)  # fmt: skip

    def _wanted(self, directory: TargetDirectory, span: Span, name: bytes, inode: Inode, outcome: Outcome) -> bool:
        """Whether it is to be written: what stands there already may be kept, or be in the way."""
        try:
            check_name(name)
            if kept(directory.existing(name), inode, self.when_there):
                outcome.kept += 1
                return False
        except TargetError as error:
            outcome.problems.append((span.place, name, str(error)))
            return False
        outcome.files += 1
        outcome.content_bytes += inode.size
        return True

    def _write_all(self, tasks: Sequence[_Task], outcome: Outcome) -> None:
        chunks: Chunks | None
        try:
            chunks = self._chunks([extent for task in tasks for extent in _inline(task.inode)])
        except DamagedError:
            chunks = None
        for task in tasks:
            self._check()
            inode = task.inode
            try:
                data = None if chunks is None else _whole(inode, chunks)
                if data is not None:
                    lack = task.directory.put_file(task.name, inode, data)
                else:
                    lack = self._write_parts(task, chunks)
            except TargetError as error:
                outcome.problems.append((task.place, task.name, str(error)))
                self._failed(task, outcome)
                continue
            except DamagedError as error:
                self._damaged(task, error, outcome)
                continue
            if lack:
                outcome.problems.append((task.place, task.name, lack))
            outcome.written_files += 1
            outcome.written_bytes += inode.size

    def _write_parts(self, task: _Task, chunks: Chunks | None) -> str:
        inode = task.inode
        with task.directory.create_file(task.name) as file:
            for stretch in self.stretches(inode):
                self._check()
                known = chunks
                if known is None or not isinstance(inode.extents, tuple):
                    known = self._chunks(stretch)
                for extent in stretch:
                    write_at(file.fd, _bytes_of(extent, known), extent.offset)
            return file.finish(inode)

    def _damaged(self, task: _Task, error: BallastError, outcome: Outcome) -> None:
        if self.patient:
            outcome.problems.append((task.place, task.name, str(error)))
            self._failed(task, outcome)
        elif isinstance(task.source, int):
            outcome.undone_names.append(task.source)
        else:
            outcome.undone.append(task.source._replace(first=task.row, end=task.row + 1))
            outcome.files -= 1
            outcome.content_bytes -= task.inode.size

    def _failed(self, task: _Task, outcome: Outcome) -> None:
        if isinstance(task.source, int):
            outcome.failed.append(task.source)

    def _chunks(self, extents: Sequence[Extent]) -> Chunks:
        """The bytes of all chunks, each read once. A disk that cannot read them is damage like any other."""
        ids = list({extent.chunk: None for extent in extents})
        try:
            records = self.store.read_many(ids)
        except VolumeError as error:
            raise DamagedError(str(error)) from error
        return {record_id: record.payload for record_id, record in zip(ids, records, strict=True)}


def check_name(name: bytes) -> None:
    """Raises TargetError for a name that could lead elsewhere, whatever the listing it comes from was checked for."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise TargetError("such a name cannot be restored")


def kept(there: Existing | None, inode: Inode, when_there: WhenThere) -> bool:
    """Whether a file stays as it is, because it was restored before. Raises TargetError where another is in the way."""
    if there is None:
        return False
    if there.is_directory:
        raise TargetError("a directory stands where a file belongs")
    if when_there is not WhenThere.KEEP:
        return False
    same = there.is_file == (inode.kind is NodeKind.FILE) and there.mtime_ns == inode.mtime_ns
    if not same or (there.is_file and there.size != inode.size):
        raise TargetError("another file stands there and is kept")
    return True


def _inline(inode: Inode) -> tuple[Extent, ...]:
    return inode.extents if isinstance(inode.extents, tuple) else ()


def _whole(inode: Inode, chunks: Chunks) -> bytes | None:
    """All bytes of a file that is a single chunk, or empty; None for any other."""
    extents = inode.extents
    if extents == ():
        return b"" if inode.size == 0 else None
    if isinstance(extents, tuple) and len(extents) == 1:
        extent = extents[0]
        chunk = chunks.get(extent.chunk)
        if (
            chunk is not None
            and len(chunk) == extent.length == inode.size
            and extent.offset == extent.chunk_offset == 0
        ):
            return chunk
    return None


def _bytes_of(extent: Extent, chunks: Chunks) -> memoryview:
    """The bytes of an extent."""
    data = memoryview(chunks[extent.chunk])[extent.chunk_offset : extent.chunk_offset + extent.length]
    if len(data) != extent.length:
        raise DamagedError(f"The chunk {extent.chunk.hex()} is shorter than the file says.")
    return data
