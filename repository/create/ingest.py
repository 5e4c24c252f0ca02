"""Reads files and puts their bytes into the store.

Small files travel in batches: one request and one `put` for hundreds of them. A worker of the crew reads, hashes and
compresses them, or the caller, who has nothing else to do; without a crew, threads. A large file is read through a
ring of fixed buffers; while one is hashed, compressed and appended by the storing pool, the next is read and cut.
Memory per thread is therefore constant, whatever the file's size.
"""

import logging
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from repository.chunker import Chunker, is_zero
from repository.codec import Packed
from repository.create.errand import decode_reply, encode_request
from repository.create.events import FileTask, Outcome
from repository.create.found import inode_of
from repository.create.reading import (
    CHANGED,
    WHOLE_MAX_BYTES,
    Answer,
    Whole,
    all_pieces,
    open_regular,
    read_whole,
)
from repository.create.source import SourceError, SourceFile
from repository.crew import Asked, Crew, WorkerLostError
from repository.errors import InterruptedByUserError
from repository.format.inode import Extent, ExtentsRef, Inode, NodeKind
from repository.format.record import Buffer, RecordKind, Stored
from repository.ids import FileId
from repository.leases import Lease
from repository.putting import UnpackedError
from repository.units import MIB

__all__ = ["CHANGED", "Ingest"]

BUFFER_BYTES: Final = WHOLE_MAX_BYTES
"""A file that is no larger is a small one, which is read whole."""
RING_BUFFER_BYTES: Final = 1 * MIB
"""Bytes of a large file that are read, and go to the store, in one call: about four chunks. The kernel took 1.1 s to
copy 900 MB in pieces of 4 MiB, and takes 0.4 in such as these."""
HUGE_FROM_BYTES: Final = 32 * MIB
PORTION_BYTES: Final = 1 * MIB
"""Of small files that are read here, and stored in one call: they come on top of what the crew has under way."""
RING_BUFFERS: Final = 12
"""One being read, the others being stored or waiting for it: one that is slow to compress holds up nobody."""
MIDDLE_RING_BUFFERS: Final = 3
"""Of files below HUGE_FROM_BYTES: two of them at once are enough for the threads that store."""
EXTENTS_AT_ONCE: Final = 65_536
"""Extents of one file held in memory (about 16 GiB of it) before they are written as records."""
LARGE_AT_ONCE: Final = 2
"""Large files that are read at the same time, each through a ring of its own."""

_log: Final = logging.getLogger(__name__)

Submit = Callable[[Callable[[], list[Outcome]]], "Future[list[Outcome]]"]
"""Has a call made in a thread."""


class Reading(NamedTuple):
    """A batch under way: what a thread reads of it, what a worker was asked for, and which small files were read here
    (None for one that has grown large). Without the latter two, a thread reads all of it."""

    future: "Future[list[Outcome]] | None"
    asked: Asked | None
    small: list[Outcome | None] | None

    def ready(self) -> bool:
        """Whether no worker has to be waited for."""
        return self.asked is None or self.asked.ready()


class ChunkStore(Protocol):
    """Where the bytes go."""

    def put(self, kind: RecordKind, payloads: Sequence[Buffer], lease: Lease) -> list[Stored]: ...

    def put_packed(self, kind: RecordKind, packed: Sequence[Packed], lease: Lease) -> list[Stored]: ...


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

    `storing` runs the puts of large files; `crew` is asked for the crew, once it may be there.
    """

    def __init__(
        self,
        store: ChunkStore,
        extents: ExtentWriter,
        chunker: Chunker,
        *,
        lease: Lease,
        storing: ThreadPoolExecutor,
        crew: Callable[[], Crew | None] = lambda: None,
    ) -> None:
        self._store = store
        self._extents = extents
        self._chunker = chunker
        self._lease = lease
        self._storing = storing
        self._crew = crew
        self._large = threading.Semaphore(LARGE_AT_ONCE)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make readers of large files give up at the next buffer."""
        self._stopped.set()

    def read_batch(self, tasks: Sequence[FileTask]) -> list[Outcome]:
        """One outcome per task, in order. Errors of the store are raised, those of single files are outcomes."""
        small = [task for task in tasks if task.size_bytes <= BUFFER_BYTES]
        read = iter(self._read_small(small) if small else ())
        return self._all(tasks, read, iter(()))

    def begin(self, tasks: Sequence[FileTask], submit: Submit, *, here: bool = False) -> Reading:
        """Have `tasks` read: small files by the crew, or where `here`, before this returns; the rest, or where there is
        no crew all, in a thread."""
        crew = self._crew()
        small = [task for task in tasks if task.size_bytes <= BUFFER_BYTES]
        if crew is None or not small:
            return Reading(submit(lambda: self.read_batch(tasks)), None, None)
        large = [task for task in tasks if task.size_bytes > BUFFER_BYTES]
        future = submit(lambda: self.read_batch(large)) if large else None
        if not here:
            request = encode_request(small)
            try:
                return Reading(future, crew.begin(request.parts, request.descriptors), None)
            except WorkerLostError as error:
                _lost(error)
        return Reading(future, None, self._read_small(small))

    def finish(self, tasks: Sequence[FileTask], reading: Reading) -> list[Outcome]:
        """Wait for what `begin` began, and store what the crew made of it. As `read_batch`."""
        small = reading.small
        if reading.asked is not None:
            small = self._answered([task for task in tasks if task.size_bytes <= BUFFER_BYTES], reading.asked)
        large = [] if reading.future is None else reading.future.result()
        return large if small is None else self._all(tasks, iter(small), iter(large))

    def _all(
        self, tasks: Sequence[FileTask], small: Iterator[Outcome | None], large: Iterator[Outcome]
    ) -> list[Outcome]:
        """One outcome a task; those that are missing are of large files, and read here."""
        outcomes: list[Outcome] = []
        for task in tasks:
            outcome = next(small) if task.size_bytes <= BUFFER_BYTES else next(large, None)
            outcomes.append(self._read_large(task) if outcome is None else outcome)
        return outcomes

    def _answered(self, tasks: Sequence[FileTask], asked: Asked) -> list[Outcome | None]:
        """What a worker made of them; read here where it could not. None for a file that has grown large."""
        try:
            reply = decode_reply(asked.wait())
            stored = self._store.put_packed(RecordKind.CHUNK, reply.packed, self._lease) if reply.packed else []
            return self._outcomes(tasks, reply.answers, stored)
        except WorkerLostError as error:
            _lost(error)
        except UnpackedError:
            _log.info("crew.known_no_more", extra={"files": len(tasks)})
        finally:
            asked.release()
        return self._read_small(tasks)

    def _read_small(self, tasks: Sequence[FileTask]) -> list[Outcome | None]:
        """Here. None for a file that has grown large."""
        outcomes: list[Outcome | None] = []
        first = 0
        while first < len(tasks):
            end, nbytes = first, 0
            while end < len(tasks) and nbytes < PORTION_BYTES:
                nbytes += tasks[end].size_bytes
                end += 1
            outcomes += self._read_portion(tasks[first:end])
            first = end
        return outcomes

    def _read_portion(self, tasks: Sequence[FileTask]) -> list[Outcome | None]:
        answers = [read_whole(self._chunker, task.directory, task.name, BUFFER_BYTES) for task in tasks]
        pieces = all_pieces(answers)
        stored = self._store.put(RecordKind.CHUNK, pieces, self._lease) if pieces else []
        return self._outcomes(tasks, answers, stored)

    def _outcomes(
        self, tasks: Sequence[FileTask], answers: Sequence[Answer], stored: Sequence[Stored]
    ) -> list[Outcome | None]:
        outcomes: list[Outcome | None] = []
        at = 0
        for task, answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Whole):
                count = len(answer.offsets)
                outcomes.append(self._outcome(task.file_id, answer, stored[at : at + count]))
                at += count
            else:
                outcomes.append(None if answer is None else Outcome(None, answer.problem, 0))
        return outcomes

    def _outcome(self, file_id: FileId, read: Whole, stored: Sequence[Stored]) -> Outcome:
        extents: tuple[Extent, ...] | ExtentsRef
        if len(stored) == 1:
            allocated_bytes = stored[0].raw_length
            extents = (Extent(read.offsets[0], allocated_bytes, stored[0].id, 0),)
        else:
            allocated_bytes = sum([one.raw_length for one in stored])
            extents = self._extents.write_extents(_extents(read.offsets, stored)) if stored else ()
        mode, uid, gid, nlink, size, atime_ns, mtime_ns, ctime_ns = read.attributes
        inode = Inode(NodeKind.FILE, file_id, 0, stat.S_IMODE(mode), uid, gid, 0, size, nlink, atime_ns, mtime_ns,
                      ctime_ns, read.xattrs, b"", extents, allocated_bytes)  # fmt: skip
        return Outcome(inode, read.problem, size)

    def _read_large(self, task: FileTask) -> Outcome:
        try:
            with self._large:
                return self._stream_twice(task)
        except SourceError as error:
            return Outcome(None, "" if error.vanished else str(error), 0)

    def _stream_twice(self, task: FileTask) -> Outcome:
        """Once, where the file does not change meanwhile. Raises SourceError."""
        for _ in range(2):
            with open_regular(task.directory, task.name) as file:
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
        buffers = RING_BUFFERS if end - start >= HUGE_FROM_BYTES else MIDDLE_RING_BUFFERS
        buffer_bytes = min(RING_BUFFER_BYTES, end - start) + self._chunker.parameters.max_bytes
        ring: list[bytearray] = []
        under_way: deque[_Part] = deque()
        tail = memoryview(b"")
        offset = start
        turn = 0
        try:
            while offset < end:
                if self._stopped.is_set():
                    raise InterruptedByUserError("Interrupted.")
                if len(under_way) == buffers - 1:
                    extents.add(self._settle(under_way.popleft()))
                if len(ring) < buffers:
                    ring.append(bytearray(buffer_bytes))
                buffer = memoryview(ring[turn % buffers])
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


def _lost(error: WorkerLostError) -> None:
    _log.warning("crew.lost", extra={"reason": str(error)})


class _Part:
    """Chunks of one buffer on their way into the store, and where they begin in the file."""

    __slots__ = ("future", "offsets")

    def __init__(self, offsets: list[int], future: "Future[list[Stored]] | None") -> None:
        self.offsets = offsets
        self.future = future


def _extents(offsets: list[int], stored: Sequence[Stored]) -> list[Extent]:
    """The extents of whole chunks that begin at `offsets` in the file."""
    return [Extent(offset, one.raw_length, one.id, 0) for offset, one in zip(offsets, stored, strict=True)]
