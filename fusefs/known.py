"""Which inodes of `live` the kernel knows, who has them open, and which it is made to forget.

The kernel keeps every number that it was told of, and sends no `forget` without memory pressure. So beyond a bound the
oldest names are taken away from it (`eviction.py`), upon which it does. The live tree remembers the place of an inode
as long as the kernel knows it or somebody has it open. Loop thread only.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final

from fusefs.inodes import InodeNumber, live_file_id, live_number
from repository.format.inode import NodeKind
from repository.format.stats import Stat
from repository.ids import ROOT_FILE_ID, FileId
from repository.live.node import View
from repository.live.tree import LiveTree

KNOWN_MAX: Final = 131_072
"""Inodes that the kernel keeps numbers of, beyond which the oldest are taken away from it; about 220 bytes each."""
EVICTED_AT_ONCE: Final = 4_096


class KnownInodes:
    """Look-ups and opens of `live`, counted."""

    def __init__(self, tree: LiveTree) -> None:
        self._tree: Final = tree
        self._lookups: dict[FileId, int] = {}
        """Of directories, and of whatever else was looked up more than once."""
        self._opens: dict[FileId, int] = {}
        self._evictable: dict[FileId, tuple[FileId, bytes] | None] = {}
        """What was looked up, oldest first; where it was last seen, if the tree does not remember that. No directories:
        somebody may stand in one, and a name taken away would show there as deleted."""

    def told(self, parent: FileId, name: bytes, view: View | Stat, *, linked: bool) -> None:
        """The kernel is being told of an inode: one look-up more."""
        file_id = view.file_id
        if view.kind is NodeKind.DIRECTORY or file_id in self._evictable:
            self._lookups[file_id] = self._count(file_id) + 1
        if view.kind is not NodeKind.DIRECTORY:
            self._evictable[file_id] = (parent, name) if linked else None
        self._tree.remember(parent, name, file_id, linked=linked)

    def _count(self, file_id: FileId) -> int:
        """Look-ups that the kernel has not given back."""
        return self._lookups.get(file_id, 1 if file_id in self._evictable else 0)

    def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        """The kernel gives back look-ups: (number, how many)."""
        for number, lookups in counts:
            file_id = live_file_id(number)
            left = self._count(file_id) - lookups
            if left > 0:
                self._lookups[file_id] = left
            else:
                self._lookups.pop(file_id, None)
                self._evictable.pop(file_id, None)
                self.drop_unused(file_id)

    def opened(self, file_id: FileId) -> None:
        """One more has it open."""
        self._opens[file_id] = self._opens.get(file_id, 0) + 1

    def closed(self, file_id: FileId) -> bool:
        """One fewer has it open; whether it was the last."""
        left = self._opens.get(file_id, 0) - 1
        if left > 0:
            self._opens[file_id] = left
            return False
        self._opens.pop(file_id, None)
        return True

    def drop_unused(self, file_id: FileId) -> None:
        """Lets the tree forget an inode that nobody knows and nobody has open."""
        if not self._count(file_id) and file_id not in self._opens and file_id != ROOT_FILE_ID:
            self._tree.forget(file_id)

    def overdue(self) -> list[tuple[InodeNumber, bytes]]:
        """The oldest names beyond the bound, at most a batch, as (directory's number, name); they age anew."""
        if len(self._evictable) <= KNOWN_MAX:
            return []
        oldest = list(islice(self._evictable, EVICTED_AT_ONCE))
        places = [(file_id, self._evictable.pop(file_id)) for file_id in oldest]
        self._evictable.update(places)
        now = [self._tree.places.get(file_id) or seen for file_id, seen in places]
        return [(live_number(place[0]), place[1]) for place in now if place is not None]
