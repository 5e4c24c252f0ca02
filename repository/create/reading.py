"""Reading small files whole, and cutting them into chunks: the same in a thread and in a worker of the crew."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from repository.chunker import Chunker, is_zero
from repository.create.source import Directory, SourceError, SourceFile, Xattrs
from repository.format.record import Buffer
from repository.units import MIB

WHOLE_MAX_BYTES: Final = 4 * MIB
"""Files up to this size are read at once."""
TOGETHER_MAX_BYTES: Final = 2 * WHOLE_MAX_BYTES
"""Bytes of one batch: it is put together by the sizes of before, and files grow."""
CHANGED: Final = "it changed while it was read, twice; what was read last is stored"


class Attributes(NamedTuple):
    """What fstat told of a regular file; `size` in bytes is what was read of it."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Whole(NamedTuple):
    """A file of which all bytes are in memory, cut into chunks, which begin at `offsets` in it."""

    attributes: Attributes
    xattrs: Xattrs
    problem: str
    offsets: list[int]
    pieces: list[Buffer]


class Unread(NamedTuple):
    """A file that could not be read; without a word where it merely vanished."""

    problem: str


Answer = Whole | Unread | None
"""None: it is too large to be read whole."""


def read_whole(chunker: Chunker, directory: Directory, name: bytes, max_bytes: int = WHOLE_MAX_BYTES) -> Answer:
    """The file `name`, twice where it changed meanwhile."""
    try:
        for last_try in (False, True):
            with open_regular(directory, name) as file:
                found = file.stat
                size = found.st_size
                if size > max_bytes:
                    return None
                data = file.read_all(size)
                steady = len(data) == size and file.unchanged()
                xattrs = file.xattrs()
                if steady or last_try:
                    break
    except SourceError as error:
        return Unread("" if error.vanished else str(error))
    attributes = Attributes(
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
        len(data),
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    offsets, pieces = _pieces(chunker, data)
    return Whole(attributes, xattrs, "" if steady else CHANGED, offsets, pieces)


def _pieces(chunker: Chunker, data: bytes) -> tuple[list[int], list[Buffer]]:
    """The chunks of a file's bytes, those that are all zero left out, and where they begin."""
    size = len(data)
    if size <= chunker.parameters.min_bytes:
        return ([0], [data]) if size and not is_zero(data) else ([], [])
    offsets: list[int] = []
    pieces: list[Buffer] = []
    offset = 0
    view = memoryview(data)
    for length in chunker.lengths(data, final=True):
        piece = view[offset : offset + length]
        if not is_zero(piece):
            offsets.append(offset)
            pieces.append(piece)
        offset += length
    return offsets, pieces


def open_regular(directory: Directory, name: bytes) -> SourceFile:
    """The regular file `name`. Raises SourceError, also where it is none any more."""
    file = SourceFile(directory, name)
    if not file.is_regular():
        file.__exit__()
        raise SourceError(FileNotFoundError(2, "it is no regular file any more"))
    return file


def all_pieces(answers: Sequence[Answer]) -> list[Buffer]:
    """The chunks of all files that were read, in order."""
    return [piece for answer in answers if isinstance(answer, Whole) for piece in answer.pieces]
