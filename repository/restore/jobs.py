"""What the walk hands out, and what comes back, as values: the same whether a thread or another process does it. Pure.

Requests name rows of a listing, not files: whoever does the work reads and decodes them itself, and they take a few
bytes however many files there are.
"""

import marshal
from dataclasses import dataclass, field
from typing import NamedTuple

from repository.errors import BallastError, NoSpaceError, VolumeError
from repository.format.inode import Extent
from repository.format.record import Buffer
from repository.ids import FileId, RecordId


class Span(NamedTuple):
    """The regular files in rows `first` up to `end` of a segment. `place`: which of the job's directories."""

    place: int
    content: RecordId
    attrs: RecordId
    first: int
    end: int


class FirstName(NamedTuple):
    """A hard-linked file under its first name. Whatever stands there is in the way no more."""

    place: int
    name: bytes
    file_id: FileId


@dataclass(slots=True)
class Job:
    """Files for the job's directories. `fresh` and `hidden`: what `TargetDirectory` says of each of them; `number`
    stands in the temporary names."""

    number: int
    inherited_acls: bool = False
    fresh: list[bool] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    names: list[FirstName] = field(default_factory=list)
    stretch: list[Extent] = field(default_factory=list)
    """Instead of all that: a part of one large file, which is open."""


@dataclass(slots=True)
class Outcome:
    """What became of a job. `written_files` and `written_bytes` are those that are whole."""

    files: int = 0
    content_bytes: int = 0
    kept: int = 0
    written_files: int = 0
    written_bytes: int = 0
    failed: list[int] = field(default_factory=list)
    """Positions of those `names` that are not there."""
    problems: list[tuple[int, bytes, str]] = field(default_factory=list)
    """Place, name, and what is to be said about it."""
    undone: list[Span] = field(default_factory=list)
    """Rows that met damage; they, and the two following, are for the process that may look for other copies."""
    undone_names: list[int] = field(default_factory=list)
    undone_stretch: bool = False

    def add(self, other: "Outcome") -> None:
        """Take over what became of that which this one left undone."""
        self.files += other.files
        self.content_bytes += other.content_bytes
        self.kept += other.kept
        self.written_files += other.written_files
        self.written_bytes += other.written_bytes
        self.failed += [self.undone_names[item] for item in other.failed]
        self.problems += other.problems


def encode_job(job: Job) -> list[Buffer]:
    """The request of a job. Descriptors go beside it."""
    spans, names, stretch = list(map(tuple, job.spans)), list(map(tuple, job.names)), list(map(tuple, job.stretch))
    return [marshal.dumps((job.number, job.inherited_acls, job.fresh, job.hidden, spans, names, stretch))]


def decode_job(request: Buffer) -> Job:
    """The inverse."""
    number, inherited_acls, fresh, hidden, spans, names, stretch = marshal.loads(request)
    return Job(
        number,
        inherited_acls,
        fresh,
        hidden,
        list(map(Span._make, spans)),
        list(map(FirstName._make, names)),
        list(map(Extent._make, stretch)),
    )


_FULL = "full"
_VOLUME = "volume"


def encode_outcome(outcome: Outcome) -> list[Buffer]:
    """The reply to a job that was done."""
    fields = (
        outcome.files,
        outcome.content_bytes,
        outcome.kept,
        outcome.written_files,
        outcome.written_bytes,
        outcome.failed,
        outcome.problems,
        list(map(tuple, outcome.undone)),
        outcome.undone_names,
        outcome.undone_stretch,
    )
    return [marshal.dumps(("", "", 0, fields))]


def encode_end(error: NoSpaceError | VolumeError) -> list[Buffer]:
    """The reply where the destination takes no more."""
    if isinstance(error, NoSpaceError):
        return [marshal.dumps((_FULL, str(error), 0, ()))]
    return [marshal.dumps((_VOLUME, str(error), error.errno, ()))]


def decode_outcome(reply: Buffer) -> Outcome:
    """What a reply says. Raises NoSpaceError, VolumeError: see `encode_end`."""
    end, text, errno, fields = marshal.loads(reply)
    if end:
        error: BallastError = NoSpaceError(text) if end == _FULL else VolumeError(text, errno)
        raise error
    outcome = Outcome(*fields)
    outcome.undone = list(map(Span._make, outcome.undone))
    return outcome


def undone_job(job: Job, outcome: Outcome) -> Job:
    """What `outcome` left undone of `job`, as a job for the same directories."""
    names = [job.names[item] for item in outcome.undone_names]
    return Job(job.number, job.inherited_acls, job.fresh, job.hidden, outcome.undone, names)
