"""Reading ahead over small files: who opens several of a directory's small files will want the others.

A read of a small file costs a hop to a worker and back; a hop that brings thirty of them costs hardly more. Loop
thread only, but for `_small_chunks`.
"""

import logging
from collections import OrderedDict
from itertools import count
from typing import Final

import trio

from fusefs.places import Place, Row
from fusefs.readpath import ReadPath
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


class Neighbours:
    """Watches which files are opened, segment by segment."""

    def __init__(self, reader: TreeReader, reads: ReadPath, workers: Workers, nursery: trio.Nursery) -> None:
        """`reader` may read by itself (inline): it is used on worker threads alone."""
        self._reader = reader
        self._reads = reads
        self._workers = workers
        self._nursery = nursery
        self._opened: OrderedDict[tuple[RecordId, RecordId], int] = OrderedDict()
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
