"""Keeps the table of places bounded: takes the oldest names away from the kernel, which then forgets their inodes.

Never on the loop thread: the kernel may answer only after a request that is waiting for the loop.
"""

import errno
import logging
from collections.abc import Callable, Iterable
from typing import Final

import pyfuse3
import trio

from fusefs import mountpoints
from fusefs.inodes import InodeNumber
from fusefs.places import Place, PlaceTable
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import BallastError

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
"""A walk adds some ten thousand places a second: the table passes its bound by about that much."""
ANSWER_S: Final = 0.05
"""Time for the kernel's forgets to come in before the table is looked at again: without it far too much would go."""


class Eviction:
    """Pushes out snapshot inodes.

    The kernel drops the name of a directory even while it is somebody's working directory, whose getcwd() then
    fails until the path is walked again. So directories in use count as young, with all above them.
    """

    def __init__(
        self,
        places: PlaceTable,
        trees: Trees,
        workers: Workers,
        mountpoint: str,
        open_directories: Callable[[], Iterable[int]],
    ) -> None:
        self._places = places
        self._trees = trees
        self._workers = workers
        self._mountpoint = mountpoint
        self._open_directories = open_directories

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            while self._places.is_full():
                if not await self._evict():
                    break
                await trio.sleep(ANSWER_S)

    async def _evict(self) -> int:
        """One batch; returns how many of its names the kernel knew."""
        in_use = await self._workers.notify(mountpoints.directories_in_use, self._mountpoint)
        for number in (*self._open_directories(), *in_use):
            self._places.used(number)
        names = await _names(self._places.overdue(), self._trees)
        gone = await self._workers.notify(_take_away, names)
        _log.debug("places.evicted", extra={"names": len(names), "gone": gone, "left": len(self._places)})
        return gone


async def evict_live(overdue: Callable[[], list[tuple[InodeNumber, bytes]]], workers: Workers) -> None:
    """Pushes out what is in `live`, whose names `overdue` tells. Runs until cancelled."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        while names := overdue():
            if not await workers.notify(_take_away, names):
                break
            await trio.sleep(ANSWER_S)


async def _names(oldest: list[tuple[InodeNumber, Place]], trees: Trees) -> list[tuple[InodeNumber, bytes]]:
    """(parent, name) of each; without those whose tree cannot be read any more."""
    found: list[tuple[InodeNumber, bytes]] = []
    for _, (row, position) in oldest:
        try:
            entry = await trees.ask(trees.reader.entry_at, row.content, row.attrs, position)
        except BallastError:
            continue
        found.append((row.parent, entry.name))
    return found


def _take_away(names: list[tuple[InodeNumber, bytes]]) -> int:
    """Invalidates each name; returns how many the kernel knew."""
    known = 0
    for parent, name in names:
        try:
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
            known += 1
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                _log.info("places.not_evicted", extra={"error": str(error)})
                if error.errno in (errno.ENOTCONN, errno.ENODEV, errno.EBADF):
                    break
    return known
