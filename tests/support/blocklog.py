"""A disk's writes and flushes in their order, and what a power cut may leave of them.

The model: whatever was written before a flush that was answered is there. Of what came later any part may be there, in
any order, torn at sectors; nothing else changes. `blocklog_fuse` is the disk that keeps such a log.
"""

import os
import random
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

SECTOR_BYTES: Final = 512
WHOLE_BYTES: Final = 4096
"""At the beginning of the disk writes of this size are not torn: a torn superblock is the end of ext4 by itself, and
disks that are sold write 4 KiB whole."""
STYLES: Final = ("none", "all", "subset", "subset", "sectors", "sectors")
"""What becomes of the writes under way: all, none or some of them; or each sector is as of some moment."""
PIECE_BYTES: Final = 1 << 20

_HEAD: Final = struct.Struct("<BQI")
"""kind, offset, length; the bytes follow."""


class Kind(IntEnum):
    WRITE = 1
    FLUSH = 2
    NOTE = 3
    """What a program said at this moment; no matter of the disk."""


class Entry(NamedTuple):
    """One line of the log. Offset and data only where the kind has them."""

    kind: Kind
    offset: int = 0
    data: bytes = b""


def pack(entry: Entry) -> bytes:
    """For the file of the log."""
    return _HEAD.pack(entry.kind, entry.offset, len(entry.data)) + entry.data


def read_log(path: Path) -> list[Entry]:
    """All of it, in order."""
    log, at, entries = path.read_bytes(), 0, list[Entry]()
    while at < len(log):
        kind, offset, length = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        entries.append(Entry(Kind(kind), offset, log[at : at + length]))
        at += length
    assert at == len(log), "the log's end is missing"
    return entries


def copy_sparse(source: Path, target: Path) -> None:
    """Copies a file; its holes stay holes."""
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        for start, end in _data(old.fileno(), size):
            for at in range(start, end, PIECE_BYTES):
                os.pwrite(new.fileno(), os.pread(old.fileno(), min(PIECE_BYTES, end - at), at), at)


def _data(file: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts [start, end) of a file that are no holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


class LoggedDisk:
    """A disk that follows a log, entry by entry. `durable` is a file that holds what is certain, and changes."""

    def __init__(self, durable: Path) -> None:
        self._durable = durable
        self._pending: list[Entry] = []
        """Writes since the last flush."""

    def take(self, entry: Entry) -> None:
        """The next of the log."""
        match entry.kind:
            case Kind.WRITE:
                self._pending.append(entry)
            case Kind.FLUSH:
                _apply(self._durable, self._pending)
                self._pending.clear()
            case Kind.NOTE:
                pass

    def crash(self, target: Path, style: str, rng: random.Random) -> int:
        """Makes `target` an image that a power cut now may leave; returns how many writes were under way."""
        copy_sparse(self._durable, target)
        match style:
            case "none":
                kept: Sequence[Entry] = ()
            case "all":
                kept = self._pending
            case "subset":
                kept = list(_subset(self._pending, rng))
            case "sectors":
                kept = list(_by_sectors(self._pending, rng))
            case _:
                raise AssertionError(style)
        _apply(target, kept)
        return len(self._pending)


def _apply(path: Path, entries: Sequence[Entry]) -> None:
    if entries:
        with path.open("r+b", buffering=0) as file:
            for entry in entries:
                os.pwrite(file.fileno(), entry.data, entry.offset)


def _subset(entries: Sequence[Entry], rng: random.Random) -> Iterator[Entry]:
    """Each write kept or dropped, each kept one whole or torn."""
    for entry in entries:
        if rng.random() < 0.5:
            continue
        if rng.random() < 0.5:
            yield entry
        else:
            yield from (part for part in _sectors(entry) if rng.random() < 0.7)


def _by_sectors(entries: Sequence[Entry], rng: random.Random) -> Iterator[Entry]:
    """Each sector as of some moment since the last flush."""
    moments: dict[int, int] = {}
    for index, entry in enumerate(entries):
        for part in _sectors(entry):
            if index < moments.setdefault(part.offset, rng.randint(0, len(entries))):
                yield part


def _sectors(entry: Entry) -> Iterator[Entry]:
    """A write in parts that a disk writes whole. Writes begin and end at sectors."""
    at = 0
    while at < len(entry.data):
        offset = entry.offset + at
        length = WHOLE_BYTES - offset if offset < WHOLE_BYTES else SECTOR_BYTES
        yield Entry(Kind.WRITE, offset, entry.data[at : at + length])
        at += length
