"""Reading ahead among neighbours: who opens several of a directory's small files, or lists several of its directories,
will want the others.

A hop to a worker and back for one small record costs as much as one that brings thirty. Loop thread only, but for
`_small_chunks`.
"""

import logging
from collections import OrderedDict
from itertools import count
from typing import Final

import trio

from fusefs.places import Place, Row
from fusefs.readpath import ReadPath
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import BallastError
from repository.format.inode import NodeKind
from repository.ids import RecordId
from repository.trees.reader import TreeReader
from repository.units import KIB, MIB

_log = logging.getLogger(__name__)

SMALL_BYTES: Final = 64 * KIB
"""Larger files are chunked, read ahead by themselves, and pay for their own hop."""
OPENED_MIN: Final = 3
"""Files of one segment opened before the rest is fetched: two may be chance."""
FETCH_BYTES_MAX: Final = 4 * MIB
"""Of one segment, so that a wrong guess costs some 10 ms of a worker and a part of the cache."""
ROWS_MAX: Final = 256
"""Segments remembered with their counts; about 200 bytes each."""
FETCHES_MAX: Final = 2
"""Under way at once; a guess that finds both taken is dropped."""
DIRECTORIES_FIRST: Final = 4
"""Directories read with the first of a segment that is listed: a walk mostly goes on, and a single look pays little."""
DIRECTORIES_NEXT: Final = 32
"""The same for every further one of that segment: 64 records, some 5 ms of a worker."""


class Neighbours:
    """Watches which files are opened and which directories are listed, segment by segment."""

    def __init__(
        self, reader: TreeReader, trees: Trees, reads: ReadPath, workers: Workers, nursery: trio.Nursery
    ) -> None:
        """`reader` may read by itself (inline): it is used on worker threads alone."""
        self._reader = reader
        self._trees = trees
        self._reads = reads
        self._workers = workers
        self._nursery = nursery
        self._opened: OrderedDict[tuple[RecordId, RecordId], int] = OrderedDict()
        self._listed: OrderedDict[RecordId, None] = OrderedDict()
        self._fetches = 0

    def opened(self, place: Place, size: int) -> None:
        """The file at `place` was opened for reading."""
        if size > SMALL_BYTES:
            return
        key = (place.row.content, place.row.attrs)
        opened = self._opened.get(key, 0) + 1
        self._opened[key] = opened
        self._opened.move_to_end(key)
        if len(self._opened) > ROWS_MAX:
            self._opened.popitem(last=False)
        if opened == OPENED_MIN and self._fetches < FETCHES_MAX:
            self._fetches += 1
            self._nursery.start_soon(self._fetch, place)

    async def listed(self, place: Place) -> None:
        """The directory at `place` is about to be listed: brings its records into memory, if they are not there, and
        those of its next neighbours along with them. Errors are silent: whoever needs a record will see them."""
        row = place.row
        known = row.attrs in self._listed
        self._listed[row.attrs] = None
        self._listed.move_to_end(row.attrs)
        if len(self._listed) > ROWS_MAX:
            self._listed.popitem(last=False)
        most = DIRECTORIES_NEXT if known else DIRECTORIES_FIRST
        try:
            reader = self._trees.reader
            unread = await self._trees.ask(reader.unread_directories, row.content, row.attrs, place.position, most)
            if unread:
                await self._workers.read(self._reader.cache.load, unread)
        except BallastError as error:
            _log.debug("neighbours.failed", extra={"error": str(error)})

    async def _fetch(self, place: Place) -> None:
        try:
            chunks = await self._workers.read(_small_chunks, self._reader, place.row, place.position)
            await self._reads.prefetch(chunks)
        except BallastError as error:
            _log.debug("neighbours.failed", extra={"error": str(error)})
        except Exception:
            _log.exception("neighbours.crashed")
        finally:
            self._fetches -= 1


def _small_chunks(reader: TreeReader, row: Row, behind: int) -> list[RecordId]:
    """Chunks of the small files that stand behind a position of a segment. On a worker thread."""
    found: list[RecordId] = []
    found_bytes = 0
    for position in count(behind + 1):
        try:
            inode = reader.entry_at(row.content, row.attrs, position).inode
        except IndexError:
            break
        if inode.kind is NodeKind.FILE and inode.size <= SMALL_BYTES and isinstance(inode.extents, tuple):
            found += [extent.chunk for extent in inode.extents]
            found_bytes += inode.size
            if found_bytes > FETCH_BYTES_MAX:
                break
    return found
