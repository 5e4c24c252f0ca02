"""What the walk has handed out and waits for."""

from concurrent.futures import Future
from dataclasses import dataclass, field

from repository.format.inode import Inode
from repository.restore.jobs import Job, Outcome
from repository.restore.target import TargetDirectory, TargetFile


@dataclass(slots=True)
class Batch:
    """A job being put together, then on its way."""

    job: Job
    directories: list[TargetDirectory] = field(default_factory=list)
    files: int = 0
    nbytes: int = 0
    future: "Future[Outcome] | None" = None

    def place(self, directory: TargetDirectory) -> int:
        """Which of the job's directories this is."""
        if not self.directories or self.directories[-1] is not directory:
            self.directories.append(directory.fill())
            self.job.fresh.append(directory.fresh)
            self.job.hidden.append(directory.hidden)
        return len(self.directories) - 1


@dataclass(slots=True)
class Large:
    """A file of which parts are on their way."""

    directory: TargetDirectory
    name: bytes
    inode: Inode
    file: TargetFile
    failure: Exception | None = None
    written: bool | None = None
    """Whether it is there; None while that is open."""


@dataclass(slots=True)
class Stretch:
    """A part of a large file on its way."""

    future: "Future[None]"
    large: Large


@dataclass(slots=True)
class FirstNamed:
    """Where the first name of a hard-linked file was restored; `way` while it may still be on its way."""

    names: tuple[bytes, ...]
    way: "tuple[Batch, int] | Large | None"
