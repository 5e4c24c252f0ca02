"""Writing a stretch of a large file, at the least cost for the processor that the file system allows."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from repository.restore.target import write_at
from repository.storage.calls import Calls
from repository.units import MIB

EXT4_MAGIC: Final = 0xEF53
"""It keeps an account of each block of 4 KiB that has no place yet: writing where room was allocated takes a quarter
less time. Elsewhere nothing is gained, and btrfs would not compress what has its room already."""
ALLOCATED_BYTES_MIN: Final = 1 * MIB
"""Allocating less costs what it saves."""


class Piece(NamedTuple):
    """Bytes of a file, and where they begin in it."""

    offset: int
    data: memoryview


class StretchWriter:
    """Writes pieces into open files. Thread safe."""

    def __init__(self, calls: Calls | None = None) -> None:
        self._calls = Calls() if calls is None else calls

    def write(self, fd: int, pieces: Sequence[Piece]) -> None:
        """Write all of them, which come by rising offset, and have the kernel begin to bring them to the disk: else
        that waits until all of the file is there. Raises as `write_at`."""
        if not pieces:
            return
        for start, end in _runs(pieces):
            self._allocate(fd, start, end - start)
        for offset, data in pieces:
            write_at(fd, data, offset)
        start, end = pieces[0].offset, _end(pieces[-1])
        with contextlib.suppress(OSError):
            self._calls.start_writeback(fd, start, end - start)

    def _allocate(self, fd: int, start: int, length: int) -> None:
        """Where there is no room, writing tells."""
        if length < ALLOCATED_BYTES_MIN:
            return
        with contextlib.suppress(OSError):
            if self._calls.filesystem_type(fd) == EXT4_MAGIC:
                self._calls.fallocate(fd, start, length)


def _end(piece: Piece) -> int:
    return piece.offset + len(piece.data)


def _runs(pieces: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """From where to where there is no hole between them."""
    first = 0
    for at in range(1, len(pieces) + 1):
        if at == len(pieces) or pieces[at].offset != _end(pieces[at - 1]):
            yield pieces[first].offset, _end(pieces[at - 1])
            first = at
