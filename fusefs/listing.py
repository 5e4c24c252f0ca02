"""Listing a stored directory page by page, with positions to go on from."""

from itertools import islice
from typing import Final, NamedTuple

from fusefs.trees import Trees
from repository.format.inode import DirRef, Inode
from repository.ids import RecordId

PAGE_ENTRIES: Final = 256
"""Entries held per open directory: about one tree segment, some ten of the kernel's buffers."""


class Listed(NamedTuple):
    """An entry and where it stands; hard links are not resolved yet."""

    name: bytes
    inode: Inode
    content: RecordId
    attrs: RecordId
    position: int


class TreeListing:
    """One open directory. Its tree cannot change, so entry ids are simply ordinals from 0 on."""

    def __init__(self, trees: Trees, directory: DirRef) -> None:
        self._trees = trees
        self._directory = directory
        self._start = 0
        self._page: list[Listed] = []
        self._end: int | None = None
        """Number of entries, once the end was seen."""

    async def page(self, start: int) -> list[Listed]:
        """Entries from the `start`-th on, as many as are at hand; empty at the end. Raises DamagedError."""
        if self._end is not None and start >= self._end:
            return []
        if not self._start <= start < self._start + len(self._page):
            await self._turn(start)
        return self._page[start - self._start :]

    async def _turn(self, start: int) -> None:
        """Loads the page that begins with the `start`-th entry: cheap for the next one; a seek goes from the front."""
        following = bool(self._page) and start == self._start + len(self._page)
        after = self._page[-1].name if following else None
        page = await self._trees.ask(self._load, after, 0 if following else start)
        if len(page) < PAGE_ENTRIES and (page or following or start == 0):
            self._end = start + len(page)
        self._page = page
        self._start = start

    def _load(self, after: bytes | None, skip: int) -> list[Listed]:
        entries = self._trees.reader.scan_places(self._directory, after)
        return [Listed(name, inode, *place) for (name, inode), place in islice(entries, skip, skip + PAGE_ENTRIES)]
