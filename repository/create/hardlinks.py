"""Files with several names: which of them a scan has met, and what the parent snapshot has of them.

Owner of: all names of one file get one file id, and an id of the parent snapshot is taken over by one file at most.
Memory: a file whose other names are still to come, and a bit for each that was taken over.
"""

import os

from pyroaring import BitMap64

from repository.create.plan import Base, BaseReader
from repository.create.skim import same_file
from repository.format.inode import Inode, NodeKind
from repository.ids import FileId


class HardLinks:
    """Of one scan."""

    def __init__(self, base: Base | None, reader: BaseReader, racy_ns: int) -> None:
        self._base = base
        self._reader = reader
        self._racy_ns = racy_ns
        self._met: dict[tuple[int, int], tuple[FileId, int]] = {}
        """By device and inode number: the id, and how many names are left to come."""
        self._taken = BitMap64()

    def met(self, found: os.stat_result) -> FileId | None:
        """The id of a file of which another name was met before."""
        known = self._met.get((found.st_dev, found.st_ino))
        return None if known is None else known[0]

    def note(self, found: os.stat_result, file_id: FileId) -> None:
        """One more of its names was met; forgotten with the last."""
        key = (found.st_dev, found.st_ino)
        _, left = self._met.get(key, (file_id, found.st_nlink))
        if left > 1:
            self._met[key] = (file_id, left - 1)
        else:
            self._met.pop(key, None)

    def unchanged(self, found: os.stat_result, base: Inode | None) -> Inode | None:
        """The inode that the parent snapshot has of a file met for the first time, if it still is that; taken over
        then. `base`: the parent's entry under this name."""
        if base is None or base.kind is not NodeKind.LINK or base.file_id in self._taken:
            return None
        assert self._base is not None
        known = self._reader.link(self._base.links, base.file_id)
        if known is None or not same_file(known, found, self._racy_ns):
            return None
        self._taken.add(base.file_id)
        return known
