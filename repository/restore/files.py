"""Writes regular files of a snapshot into target directories, in worker threads.

Chunks of a batch are read together, in the order in which they lie in the packs. Where one of them is damaged, the
files of the batch are written one by one, so that only those that need it fail.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from repository.errors import DamagedError, InterruptedByUserError, VolumeError
from repository.format.inode import Extent, Inode
from repository.format.record import Record
from repository.ids import RecordId
from repository.notices import Notices
from repository.ports import Progress
from repository.restore.target import TargetDirectory, TargetError
from repository.units import MIB

WINDOW_BYTES: Final = 8 * MIB
"""Bytes of a large file that are read at once: constant memory whatever the file's size."""

Chunks = dict[RecordId, bytes]


class ChunkReader(Protocol):
    """Where the bytes come from. Raises DamagedError."""

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]: ...


class ExtentReader(Protocol):
    """Which chunks a file consists of. Raises DamagedError."""

    def extents(self, inode: Inode, start: int, end: int) -> list[Extent]: ...


@dataclass(slots=True)
class WriteTask:
    """A file to be written as `name` in `directory`, which is held until it is done."""

    directory: TargetDirectory
    name: bytes
    inode: Inode


class FileWriter:
    """Its `write_batch` may run in many threads at once."""

    def __init__(self, store: ChunkReader, trees: ExtentReader, notices: Notices, progress: Progress) -> None:
        self._store = store
        self._trees = trees
        self._notices = notices
        self._progress = progress
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make running batches give up at the next window."""
        self._stopped.set()

    def pulse(self) -> None:
        """Nothing more is done, but the progress may want to end the work here."""
        self._progress.advance(0, 0)

    def write_batch(self, tasks: Sequence[WriteTask]) -> list[bool]:
        """Whether each file was written whole; those that were not have been told about."""
        small = [task for task in tasks if isinstance(task.inode.extents, tuple) and task.inode.size <= WINDOW_BYTES]
        chunks: Chunks | None
        done: list[bool] = []
        begun = 0
        try:
            try:
                chunks = self._chunks(extent for task in small for extent in _direct(task.inode))
            except DamagedError:
                chunks = None
            for task in tasks:
                begun += 1
                data = None if chunks is None else _whole(task.inode, chunks)
                done.append(self._write(task, chunks) if data is None else self._write_whole(task, data))
        finally:
            for task in tasks[begun:]:
                self._release(task)
        return done

    def _write_whole(self, task: WriteTask, data: bytes) -> bool:
        if self._stopped.is_set():
            self._release(task)
            raise InterruptedByUserError("Interrupted.")
        try:
            lack = task.directory.put_file(task.name, task.inode, data)
            if lack:
                self._notices.problem(task.directory.path_of(task.name), lack)
            self._progress.advance(len(data), 1)
        except TargetError as error:
            self._notices.problem(task.directory.path_of(task.name), str(error))
            return False
        finally:
            self._release(task)
        return True

    def _write(self, task: WriteTask, chunks: Chunks | None) -> bool:
        written = False
        try:
            with task.directory.create_file(task.name) as file:
                size = task.inode.size
                for start in range(0, size, WINDOW_BYTES):
                    if self._stopped.is_set():
                        raise InterruptedByUserError("Interrupted.")
                    end = min(start + WINDOW_BYTES, size)
                    extents = self._trees.extents(task.inode, start, end)
                    known = chunks
                    if known is None or size > WINDOW_BYTES or not isinstance(task.inode.extents, tuple):
                        known = self._chunks(extents)
                    for extent in extents:
                        data, offset = _cut(extent, known[extent.chunk], start, end)
                        file.write(data, offset)
                    if size > WINDOW_BYTES:
                        self._progress.advance(end - start, 0)
                lack = file.finish(task.inode)
            if lack:
                self._notices.problem(task.directory.path_of(task.name), lack)
            self._progress.advance(0 if size > WINDOW_BYTES else size, 1)
            written = True
        except (TargetError, DamagedError) as error:
            self._notices.problem(task.directory.path_of(task.name), str(error))
        finally:
            self._release(task)
        return written

    def _chunks(self, extents: Iterable[Extent]) -> Chunks:
        """The bytes of all chunks, each read once. A disk that cannot read them is damage like any other."""
        ids = list({extent.chunk: None for extent in extents})
        try:
            records = self._store.read_many(ids)
        except VolumeError as error:
            raise DamagedError(str(error)) from error
        return {record_id: record.payload for record_id, record in zip(ids, records, strict=True)}

    def _release(self, task: WriteTask) -> None:
        try:
            task.directory.release()
        except TargetError as error:
            self._notices.problem(task.directory.path, str(error))


def _direct(inode: Inode) -> tuple[Extent, ...]:
    assert isinstance(inode.extents, tuple)
    return inode.extents


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


def _cut(extent: Extent, chunk: bytes, start: int, end: int) -> tuple[memoryview, int]:
    """The bytes of `extent` that lie between `start` and `end` of the file, and where they begin."""
    first = max(extent.offset, start)
    last = min(extent.offset + extent.length, end)
    shift = extent.chunk_offset - extent.offset
    data = memoryview(chunk)[first + shift : last + shift]
    if len(data) != last - first:
        raise DamagedError(f"The chunk {extent.chunk.hex()} is shorter than the file says.")
    return data, first
