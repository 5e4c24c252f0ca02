"""What the walk hands out: small files in jobs, large ones in parts; and waiting for it, in order.

Owner of: what was handed out is settled before the restore ends, well or not, and what holds a directory lets it go.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from repository.errors import BallastError, DamagedError
from repository.format.inode import Inode
from repository.ids import FileId, RecordId
from repository.notices import Notices
from repository.ports import Progress
from repository.restore.attributes import TargetError
from repository.restore.batches import Batch, FirstNamed, Large, Stretch
from repository.restore.files import WINDOW_BYTES, FileWriter
from repository.restore.hands import Hands
from repository.restore.jobs import FirstName, Job, Span
from repository.restore.rows import Row
from repository.restore.target import TargetDirectory

JOB_FILES: Final = 256
JOB_BYTES: Final = WINDOW_BYTES
JOB_DIRECTORIES: Final = 64
"""Directories kept open for one job."""


@dataclass(slots=True)
class RestoreCounts:
    """What became of the files (everything that is not a directory) and directories."""

    files: int = 0
    directories: int = 0
    content_bytes: int = 0
    kept: int = 0


class Sending:
    """What one restore has under way. For the walking thread."""

    def __init__(
        self,
        writer: FileWriter,
        hands: Hands,
        ahead: Callable[[Sequence[RecordId]], None],
        notices: Notices,
        progress: Progress,
        counts: RestoreCounts,
    ) -> None:
        self._writer = writer
        self._hands = hands
        self._ahead = ahead
        self._notices = notices
        self._progress = progress
        self._counts = counts
        self._numbers = count(1)
        self._batch = Batch(Job(next(self._numbers)))
        self._under_way: deque[Batch | Stretch | Large] = deque()
        self._filling: Large | None = None

    def is_full(self, files: int, nbytes: int) -> bool:
        """Whether the job would be with `files` of `nbytes` more."""
        return self._batch.files + files >= JOB_FILES or self._batch.nbytes + nbytes >= JOB_BYTES

    def add(self, directory: TargetDirectory, segment: Row, first: int, end: int, files: int, nbytes: int) -> None:
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
        if self.is_full(0, 0) or len(batch.directories) >= JOB_DIRECTORIES:
            self._send()

    def add_first_name(
        self, directory: TargetDirectory, name: bytes, file_id: FileId, nbytes: int
    ) -> tuple[Batch, int]:
        """A hard-linked file more to the job, under its first name; where it is found there."""
        batch = self._batch
        batch.job.names.append(FirstName(batch.place(directory), name, file_id))
        batch.files += 1
        batch.nbytes += nbytes
        way = batch, len(batch.job.names) - 1
        self._send_full()
        return way

    def large(self, directory: TargetDirectory, name: bytes, inode: Inode) -> Large:
        """Begin a large file, and hand its parts out."""
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
            self.release(large.directory)

    def arrived(self, first: FirstNamed) -> bool:
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
                self._counts.files += outcome.files
                self._counts.content_bytes += outcome.content_bytes
                self._counts.kept += outcome.kept
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

    def drain(self) -> None:
        """Hand out what there is, and wait for all of it."""
        self._send()
        while self._under_way:
            self._settle(self._under_way.popleft())

    def abandon(self) -> None:
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
                self.release(unfinished.directory)
        self._under_way.clear()

    def release(self, directory: TargetDirectory) -> None:
        """One holder of a directory less."""
        self._hands.release([directory])
