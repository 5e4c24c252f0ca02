"""Jobs on their way: in threads, which let processes of a crew do them where there are any.

Whatever a process could not do, as it met damage or died, is done again here: only the process that began the restore
looks for other copies of a record, and nothing is told twice.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from repository.crew import ASKED_AT_ONCE, Crew, WorkerLostError
from repository.errors import DamagedError, NoSpaceError, VolumeError
from repository.format.inode import Extent
from repository.format.record import Buffer
from repository.notices import Notices
from repository.ports import Progress
from repository.restore.attributes import Attributes, TargetError
from repository.restore.early import EarlyWriting
from repository.restore.files import FileWriter
from repository.restore.jobs import (
    Job,
    Outcome,
    decode_job,
    decode_outcome,
    encode_end,
    encode_job,
    encode_outcome,
    undone_job,
)
from repository.restore.target import TargetDirectory, job_prefix

THREADS: Final = 2
"""Without a crew: each waits for the disk or the interpreter while the other works."""

_log: Final = logging.getLogger(__name__)


class RestoringWork:
    """What a process of the crew does. It sees the repository as it was when it was forked."""

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer

    def __call__(self, request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        job = decode_job(request)
        try:
            return encode_outcome(self._stretch(job, descriptors[0]) if job.stretch else self._files(job, descriptors))
        except (NoSpaceError, VolumeError) as error:
            return encode_end(error)

    def _files(self, job: Job, descriptors: Sequence[int]) -> Outcome:
        attributes = Attributes(inherited_acls=job.inherited_acls)
        prefix = job_prefix(job.number)
        directories = [
            TargetDirectory(fd, b"", None, fresh=fresh, hidden=hidden, inode=None, attributes=attributes, prefix=prefix)
            for fd, fresh, hidden in zip(descriptors, job.fresh, job.hidden, strict=True)
        ]
        return self._writer.write(directories, job)

    def _stretch(self, job: Job, fd: int) -> Outcome:
        outcome = Outcome()
        try:
            self._writer.fill(fd, job.stretch)
        except (TargetError, DamagedError):
            outcome.undone_stretch = True
        return outcome


class Hands:
    """Threads that have jobs done. `crew` None: by themselves."""

    def __init__(
        self,
        writer: FileWriter,
        attributes: Attributes,
        crew: Crew | None,
        early: EarlyWriting,
        notices: Notices,
        progress: Progress,
    ) -> None:
        self._writer = writer
        self._attributes = attributes
        self._crew = crew
        self._early = early
        self._notices = notices
        self._progress = progress
        threads = THREADS if crew is None else crew.workers * ASKED_AT_ONCE
        self.under_way_max: Final = threads + 2
        """Jobs that are handed out before the walk waits. Bounds what is in memory, and open."""
        self._pool = ThreadPoolExecutor(threads, "restore")

    def close(self) -> None:
        """Wait for everything that was handed out."""
        self._pool.shutdown()

    def write(self, directories: Sequence[TargetDirectory], job: Job) -> "Future[Outcome]":
        """Have a job done; the directories are let go of. The outcome's problems have been told."""
        return self._pool.submit(self._write, directories, job)

    def fill(self, number: int, fd: int, stretch: Sequence[Extent]) -> "Future[None]":
        """Have a part of a large file written. Raises (later) TargetError, DamagedError; NoSpaceError, VolumeError."""
        return self._pool.submit(self._fill, number, fd, stretch)

    def _write(self, directories: Sequence[TargetDirectory], job: Job) -> Outcome:
        try:
            job.inherited_acls = self._attributes.inherited_acls
            outcome = self._done(directories, job)
            for place, name, why in outcome.problems:
                directory = directories[place]
                self._notices.problem((directory.path_of(name) if name else directory.path) or b".", why)
            self._early.wrote(outcome.written_bytes, outcome.written_files)
            self._progress.advance(outcome.written_bytes, outcome.written_files)
            return outcome
        finally:
            self.let_go(directories)

    def _done(self, directories: Sequence[TargetDirectory], job: Job) -> Outcome:
        if self._crew is None:
            return self._writer.write(directories, job)
        try:
            outcome = decode_outcome(self._crew.ask(encode_job(job), [directory.fd for directory in directories]))
        except WorkerLostError:
            _log.warning("restore.worker_lost", extra={"job": job.number})
            for directory in directories:
                directory.sweep(job_prefix(job.number))
            self._writer.sweep(directories, job)
            return self._writer.write(directories, job)
        if outcome.undone or outcome.undone_names:
            outcome.add(self._writer.write(directories, undone_job(job, outcome)))
        return outcome

    def _fill(self, number: int, fd: int, stretch: Sequence[Extent]) -> None:
        undone = True
        if self._crew is not None:
            try:
                reply = self._crew.ask(encode_job(Job(number, stretch=list(stretch))), [fd])
                undone = decode_outcome(reply).undone_stretch
            except WorkerLostError:
                _log.warning("restore.worker_lost", extra={"job": number})
        if undone:
            self._writer.fill(fd, stretch)
        self._progress.advance(sum(extent.length for extent in stretch), 0)

    def let_go(self, directories: Sequence[TargetDirectory]) -> None:
        """A job's directories, for which it did what it could."""
        self.filled(directories)
        self.release(directories)

    def filled(self, directories: Sequence[TargetDirectory]) -> None:
        """All that somebody would put into each of them is there; telling of one that does not get its name."""
        for directory in directories:
            try:
                directory.filled()
            except TargetError as error:
                self._notices.problem(directory.path, str(error))

    def release(self, directories: Sequence[TargetDirectory]) -> None:
        """Release each of them, telling what could not be set."""
        for directory in directories:
            try:
                directory.release()
            except TargetError as error:
                self._notices.problem(directory.path or b".", str(error))
