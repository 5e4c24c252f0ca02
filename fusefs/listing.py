"""Listing a stored directory, with positions to go on from: one segment's entries at a time, straight from its columns.

Loop thread only. What an `await` may change: nothing, for trees don't change, and what is put into an answer counts as
known only when the answer is complete. There is no `await` between that and its leaving, so no `forget` can overtake.
"""

from collections.abc import Callable
from typing import Final

import pyfuse3

from fusefs.attributes import FOREVER_S, attributes
from fusefs.inodes import InodeNumber, snapshot_directory_number, snapshot_file_number
from fusefs.nodes import SnapshotNodes
from fusefs.places import Row
from fusefs.snapshots import View
from fusefs.trees import Trees
from repository.errors import MissingRecordError
from repository.format.inode import DirRef, NodeKind
from repository.trees.reader import Page

Put = Callable[[bytes, pyfuse3.EntryAttributes, int], bool]
"""Puts an entry (name, attributes, the next entry's number) into the answer; False where it does not fit any more."""

_DIRECTORY: Final = NodeKind.DIRECTORY
_LINK: Final = NodeKind.LINK


class TreeListing:
    """One open directory. Its tree cannot change, so entry ids are simply ordinals from 0 on."""

    def __init__(self, trees: Trees, nodes: SnapshotNodes, number: InodeNumber, view: View, directory: DirRef) -> None:
        """The directory `directory`, which is `number` in the snapshot `view`."""
        self._trees = trees
        self._nodes = nodes
        self._number = number
        self._view = view
        self._directory = directory
        self._start = 0
        """Ordinal of the page's first entry."""
        self._page: Page | None = None

    async def reply(self, start: int, put: Put) -> None:
        """Puts entries from the `start`-th on until the kernel's buffer is full; it knows them from then on.

        Raises DamagedError, or FUSEError where the snapshot was collected meanwhile; then it knows none of them.
        """
        position = start
        told: list[tuple[Row, list[tuple[int, int]]]] = []
        is_full = False
        while not is_full and (found := await self._turn(position)) is not None:
            page, skip = found
            seen: list[tuple[int, int]] = []
            told.append((Row(self._number, page.content, page.attrs), seen))
            for index in range(skip, len(page.names)):
                stat = page.stats[index]
                position += 1
                kind = stat.kind
                if kind is _DIRECTORY:
                    number = snapshot_directory_number(self._view.snapshot, stat.file_id)
                    entry = attributes(stat, number, FOREVER_S)
                elif kind is _LINK:
                    inode = await self._nodes.linked(stat.file_id, self._view)
                    number = snapshot_file_number(inode.file_id, inode.version)
                    entry = attributes(inode, number, FOREVER_S)
                else:
                    number = snapshot_file_number(stat.file_id, stat.version)
                    entry = attributes(stat, number, FOREVER_S)
                if not put(page.names[index], entry, position):
                    is_full = True
                    break
                seen.append((number, page.first + index))
        for row, seen in told:
            self._nodes.told(row, seen)

    async def _turn(self, position: int) -> tuple[Page, int] | None:
        """The page with the entry number `position`, and how many of its entries come before; None behind the end."""
        page = self._page
        if page is not None and position >= page.entries:
            return None
        if page is None or not self._start <= position < self._start + len(page.names):
            try:
                page = await self._trees.ask(self._trees.reader.page, self._directory, position)
            except MissingRecordError:
                raise await self._nodes.loss_in(self._view) from None
            if page is None:
                return None
            self._start = position
            self._page = page
        return page, position - self._start
