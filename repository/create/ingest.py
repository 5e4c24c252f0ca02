"""Reads files and puts their bytes into the store, in worker threads.

Small files travel in batches: one hop to a worker and one `put` for hundreds of them. A large file is read through a
ring of fixed buffers; while one is hashed, compressed and appended by the storing pool, the next is read and cut.
Memory per worker is therefore constant, whatever the file's size.
"""

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from repository.chunker import Chunker, is_zero
from repository.create.events import FileTask, Outcome
from repository.create.scan import inode_of
from repository.create.source import Directory, SourceError, SourceFile, Xattrs
from repository.errors import InterruptedByUserError
from repository.format.inode import Extent, ExtentsRef
from repository.format.record import Buffer, RecordKind, Stored
from repository.ids import FileId
from repository.leases import Lease
from repository.units import MIB

BUFFER_BYTES: Final = 4 * MIB
"""Bytes of a large file that go to the store in one call: about sixteen chunks."""
RING_BUFFERS: Final = 5
"""One being read, four being stored or waiting for it: where one is slow to compress, the next two are not held up."""
EXTENTS_AT_ONCE: Final = 65_536
"""Extents of one file held in memory (about 16 GiB of it) before they are written as records."""
CHANGED: Final = "it changed while it was read, twice; what was read last is stored"


class ChunkStore(Protocol):
    """Where the bytes go."""

    def put(self, kind: RecordKind, payloads: Sequence[Buffer], lease: Lease) -> list[Stored]: ...


class ExtentWriter(Protocol):
    """Writes long extent lists as records."""

    def write_extents(self, extents: Sequence[Extent]) -> tuple[Extent, ...] | ExtentsRef: ...

    def rewrite_extents(
        self, base: ExtentsRef, changed: Sequence[tuple[int, int, Sequence[Extent]]]
    ) -> tuple[Extent, ...] | ExtentsRef: ...


class _Extents:
    """Collects a file's extents in order, writing them away now and then so that they never pile up."""

    def __init__(self, writer: ExtentWriter) -> None:
        self._writer = writer
        self._written: ExtentsRef | None = None
        self._pending: list[Extent] = []
        self.allocated_bytes = 0

    def add(self, extents: list[Extent]) -> None:
        self._pending += extents
        self.allocated_bytes += sum(extent.length for extent in extents)
        if len(self._pending) >= EXTENTS_AT_ONCE:
            written = self._write()
            assert isinstance(written, ExtentsRef)
            self._written = written
            self._pending.clear()

    def finish(self) -> tuple[Extent, ...] | ExtentsRef:
        if not self._pending and self._written is not None:
            return self._written
        return self._write()

    def _write(self) -> tuple[Extent, ...] | ExtentsRef:
        if self._written is None:
            return self._writer.write_extents(self._pending)
        last = self._pending[-1]
        change = (self._pending[0].offset, last.offset + last.length, self._pending)
        return self._writer.rewrite_extents(self._written, [change])


class Ingest:
    """Turns FileTasks into inodes. Its methods may be called from many threads at once.

    `storing` runs the puts of large files.
    """

    def __init__(
        self,
        store: ChunkStore,
        extents: ExtentWriter,
        chunker: Chunker,
        *,
        lease: Lease,
        storing: ThreadPoolExecutor,
    ) -> None:
        self._store = store
        self._extents = extents
        self._chunker = chunker
        self._lease = lease
        self._storing = storing
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make readers of large files give up at the next buffer."""
        self._stopped.set()

    def read_batch(self, tasks: Sequence[FileTask]) -> list[Outcome]:
        """One outcome per task, in order. Errors of the store are raised, those of single files are outcomes."""
        outcomes: list[Outcome | None] = [None] * len(tasks)
        whole: list[tuple[int, _Whole]] = []
        for row, task in enumerate(tasks):
            try:
                read = self._read_whole(task)
                if read is None:
                    outcomes[row] = self._read_large(task)
                else:
                    whole.append((row, read))
            except SourceError as error:
                outcomes[row] = Outcome(None, "" if error.vanished else str(error), 0)
        if whole:
            payloads = [piece for _, read in whole for piece in read.pieces]
            stored = self._store.put(RecordKind.CHUNK, payloads, self._lease) if payloads else []
            at = 0
            for row, read in whole:
                outcomes[row] = self._outcome(read, stored[at : at + len(read.pieces)])
                at += len(read.pieces)
        return [outcome for outcome in outcomes if outcome is not None]

    def _read_whole(self, task: FileTask) -> "_Whole | None":
        """All bytes of a file that fits one buffer, cut into chunks; None for a larger one."""
        for last_try in (False, True):
            with _open(task.directory, task.name) as file:
                size = file.stat.st_size
                if size > BUFFER_BYTES:
                    return None
                data = file.read_all(size)
                steady = len(data) == size and file.unchanged()
                xattrs = file.xattrs()
                if steady or last_try:
                    break
        offsets, pieces = self._pieces(data)
        return _Whole(task.file_id, file.stat, xattrs, len(data), "" if steady else CHANGED, offsets, pieces)

    def _pieces(self, data: bytes) -> tuple[list[int], list[Buffer]]:
        """The chunks of a file's bytes, those that are all zero left out, and where they begin."""
        size = len(data)
        if size <= self._chunker.parameters.min_bytes:
            return ([0], [data]) if size and not is_zero(data) else ([], [])
        offsets: list[int] = []
        pieces: list[Buffer] = []
        offset = 0
        view = memoryview(data)
        for length in self._chunker.lengths(data, final=True):
            piece = view[offset : offset + length]
            if not is_zero(piece):
                offsets.append(offset)
                pieces.append(piece)
            offset += length
        return offsets, pieces

    def _outcome(self, read: "_Whole", stored: list[Stored]) -> Outcome:
        extents = _extents(read.offsets, stored)
        inode = inode_of(
            read.stat,
            read.file_id,
            xattrs=read.xattrs,
            size=read.size,
            extents=tuple(extents) if len(extents) <= 1 else self._extents.write_extents(extents),
            allocated_bytes=sum([extent.length for extent in extents]),
        )
        return Outcome(inode, read.problem, read.size)

    def _read_large(self, task: FileTask) -> Outcome:
        for _ in range(2):
            with _open(task.directory, task.name) as file:
                extents = _Extents(self._extents)
                size = self._stream(file, extents)
                steady = size == file.stat.st_size and file.unchanged()
                inode = inode_of(
                    file.stat,
                    task.file_id,
                    xattrs=file.xattrs(),
                    size=size,
                    extents=extents.finish(),
                    allocated_bytes=extents.allocated_bytes,
                )
                if steady:
                    break
        return Outcome(inode, "" if steady else CHANGED, size)

    def _stream(self, file: SourceFile, extents: _Extents) -> int:
        """Store the bytes of `file`; returns how long it was found to be."""
        size = file.stat.st_size
        if not file.is_sparse():
            return self._stream_range(file, 0, size, extents)
        offset = 0
        while offset < size:
            start, end = file.next_data(offset, size)
            if start < end and (read_to := self._stream_range(file, start, end, extents)) < end:
                return read_to
            offset = end
        return size

    def _stream_range(self, file: SourceFile, start: int, end: int, extents: _Extents) -> int:
        """Store bytes `start` up to `end`; returns where the reading ended, earlier if the file did."""
        buffer_bytes = min(BUFFER_BYTES, end - start) + self._chunker.parameters.max_bytes
        ring = [bytearray(buffer_bytes) for _ in range(RING_BUFFERS)]
        under_way: deque[_Part] = deque()
        tail = memoryview(b"")
        offset = start
        turn = 0
        try:
            while offset < end:
                if self._stopped.is_set():
                    raise InterruptedByUserError("Interrupted.")
                if len(under_way) == RING_BUFFERS - 1:
                    extents.add(self._settle(under_way.popleft()))
                buffer = memoryview(ring[turn % RING_BUFFERS])
                turn += 1
                buffer[: len(tail)] = tail
                base = offset - len(tail)
                count = file.read_into(buffer[len(tail) : min(len(buffer), end - base)], offset)
                offset += count
                if offset - base < min(len(buffer), end - base):
                    end = offset
                filled = buffer[: offset - base]
                part, tail = self._cut(filled, base, final=offset >= end)
                under_way.append(part)
        finally:
            done = [self._settle(part) for part in under_way]
        for found in done:
            extents.add(found)
        return offset

    def _cut(self, filled: memoryview, base: int, *, final: bool) -> "tuple[_Part, memoryview]":
        """Send the chunks of `filled`, which begins at byte `base`, to the store; the rest has no cut yet."""
        offsets: list[int] = []
        payloads: list[memoryview] = []
        at = 0
        for length in self._chunker.lengths(filled, final=final):
            piece = filled[at : at + length]
            if not is_zero(piece):
                offsets.append(base + at)
                payloads.append(piece)
            at += length
        future = self._storing.submit(self._store.put, RecordKind.CHUNK, payloads, self._lease) if payloads else None
        return _Part(offsets, future), filled[at:]

    def _settle(self, part: "_Part") -> list[Extent]:
        if part.future is None:
            return []
        stored = part.future.result()
        return _extents(part.offsets, stored)


class _Part:
    """Chunks of one buffer on their way into the store, and where they begin in the file."""

    __slots__ = ("future", "offsets")

    def __init__(self, offsets: list[int], future: "Future[list[Stored]] | None") -> None:
        self.offsets = offsets
        self.future = future


class _Whole(NamedTuple):
    """A file of which all bytes are in memory, cut into chunks. `size` is how many bytes there were."""

    file_id: FileId
    stat: os.stat_result
    xattrs: Xattrs
    size: int
    problem: str
    offsets: list[int]
    pieces: list[Buffer]


def _extents(offsets: list[int], stored: list[Stored]) -> list[Extent]:
    """The extents of whole chunks that begin at `offsets` in the file."""
    if len(offsets) == 1 == len(stored):
        return [Extent(offsets[0], stored[0].raw_length, stored[0].id, 0)]
    return [Extent(offset, one.raw_length, one.id, 0) for offset, one in zip(offsets, stored, strict=True)]


def _open(directory: Directory, name: bytes) -> SourceFile:
    file = SourceFile(directory, name)
    if not file.is_regular():
        file.__exit__()
        raise SourceError(FileNotFoundError(2, "it is no regular file any more"))
    return file
