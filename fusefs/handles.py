"""The open files and directories of `Browse`, by handle number."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

import pyfuse3

from fusefs.inodes import InodeNumber
from fusefs.listing import TreeListing
from fusefs.places import Place
from fusefs.readpath import Stream
from fusefs.snapshots import View
from repository.ids import SnapshotId
from repository.trees.reader import Content

BROWSE_BIT: Final = 1 << 62
"""Set in every handle of Browse and in none of `live/`: most requests carry the handle alone."""


class FileHandle(NamedTuple):
    """An open file of a snapshot: its bytes cannot change. `place` is where it was found, for those that stand beside
    it."""

    number: InodeNumber
    file: Content
    snapshot: SnapshotId
    stream: Stream
    place: Place | None


@dataclass(slots=True)
class TreeHandle:
    """An open directory of a snapshot. `listing` is None until somebody wants it."""

    number: InodeNumber
    view: View
    listing: TreeListing | None


@dataclass(frozen=True, slots=True)
class ListingHandle:
    """An open made-up directory: its names as of when it was last read from the beginning."""

    number: InodeNumber
    names: list[bytes] = field(default_factory=list)


Handle = bytes | FileHandle | TreeHandle | ListingHandle
"""Bytes: an open made-up file is its text as of open."""


def is_browse_handle(fh: int) -> bool:
    """Whether the handle number belongs to Browse."""
    return bool(fh & BROWSE_BIT)


class Handles:
    """Handle number -> what is open. Bounded by the kernel's own limits on open files."""

    def __init__(self) -> None:
        self._open: dict[int, Handle] = {}
        self._next = count(BROWSE_BIT)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._open.values())

    def add(self, handle: Handle) -> pyfuse3.FileHandleT:
        """A new number for `handle`."""
        number = next(self._next)
        self._open[number] = handle
        return pyfuse3.FileHandleT(number)

    def get(self, number: int) -> Handle | None:
        """What is open under `number`."""
        return self._open.get(number)

    def drop(self, number: int) -> Handle | None:
        """Closes `number`."""
        return self._open.pop(number, None)
