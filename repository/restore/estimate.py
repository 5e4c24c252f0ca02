"""Before `restore` writes anything: whether it can fit. What `policy.preflight` decides on is gathered here."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pyroaring import BitMap64

from repository.create.mounts import mountpoint_of
from repository.errors import DamagedError, NoSpaceError
from repository.format.inode import DirRef, Inode, NodeKind
from repository.locate import Located
from repository.policy.preflight import refuses, restore_shortage_text, usable_bytes
from repository.ports import Progress
from repository.repo import Repository
from repository.restore.target import WhenThere
from repository.trees.reader import TreeReader

SECTOR_BYTES: Final = 512
"""The unit of st_blocks, whatever the file system."""


def require_room(
    repo: Repository, what: Located, destination: bytes, when_there: WhenThere | None, progress: Progress
) -> None:
    """Raises NoSpaceError where `what` cannot fit into the directory `destination` (absolute), which may be missing."""
    is_directory = what.inode.kind is NodeKind.DIRECTORY
    upper = what.inode.totals.content_bytes if is_directory else what.inode.size
    if is_directory:
        upper += repo.reader.link_totals(what.links).content_bytes
    volume = _existing(destination)
    try:
        figures = os.statvfs(volume)
    except OSError:
        return  # opening it will tell what is wrong with it
    usable = usable_bytes(figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize)
    if not refuses(upper, usable):
        return
    counter = _Counter(repo.reader, what, destination, when_there, progress)
    lower = counter.lower_bytes()
    if refuses(lower, usable):
        where = os.fsdecode(mountpoint_of(os.path.realpath(volume)))
        raise NoSpaceError(restore_shortage_text(usable, lower, where), lower)


def _existing(path: bytes) -> bytes:
    """`path` or its nearest parent that is there."""
    while path != b"/" and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


@dataclass(slots=True)
class _Counter:
    """Sums up what the files take at least: holes take nothing, nor does what is there already."""

    reader: TreeReader
    what: Located
    destination: bytes
    when_there: WhenThere | None
    progress: Progress

    def lower_bytes(self) -> int:
        if self.what.inode.kind is not NodeKind.DIRECTORY:
            return self._file(self.what.inode, os.path.join(self.destination, self.what.name))
        total = 0
        linked = BitMap64()
        stack = [(self.destination, self.what.inode.directory)]
        while stack:
            path, ref = stack.pop()
            self.progress.advance(0, 0)
            for name, inode in self._entries(ref):
                if inode.kind is NodeKind.DIRECTORY:
                    stack.append((os.path.join(path, name), inode.directory))
                elif inode.kind is NodeKind.LINK:
                    if inode.file_id not in linked:
                        linked.add(inode.file_id)
                        total += self._linked(inode, os.path.join(path, name))
                else:
                    total += self._file(inode, os.path.join(path, name))
        return total

    def _entries(self, ref: DirRef) -> Iterator[tuple[bytes, Inode]]:
        """A listing, as far as it can be read: the restore will tell."""
        with suppress(DamagedError):
            for entry in self.reader.scan(ref):
                yield entry.name, entry.inode

    def _linked(self, inode: Inode, path: bytes) -> int:
        try:
            found = self.reader.link(self.what.links, inode.file_id)
        except DamagedError:
            found = None
        return 0 if found is None else self._file(found, path)

    def _file(self, inode: Inode, path: bytes) -> int:
        nbytes = min(inode.size, inode.allocated_bytes)
        if self.when_there is None or not nbytes:
            return nbytes
        try:
            there = os.lstat(path)
        except OSError:
            return nbytes
        if self.when_there is WhenThere.KEEP:
            return 0
        return max(0, nbytes - there.st_blocks * SECTOR_BYTES)
