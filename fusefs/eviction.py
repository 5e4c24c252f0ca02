"""Keeps the table of places bounded: takes the oldest names away from the kernel, which then forgets their inodes.

Never on the loop thread: the kernel may answer only after a request that is waiting for the loop.
"""

import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
NAMES_A_HOP: Final = 32
"""Names looked up together: their segments have to be in memory at once."""
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
        _log.debug(
            "places.evicted",
            extra={"names": len(names), "gone": gone, "left": len(self._places), "rows": self._places.rows},
        )
        return gone


async def evict_live(overdue: Callable[[], list[tuple[InodeNumber, bytes]]], workers: Workers) -> None:
    """Pushes out what is in `live`, whose names `overdue` tells. Runs until cancelled."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        while names := overdue():
            if not await workers.notify(_take_away, names):
                break
            await trio.sleep(ANSWER_S)


async def _names(places: Sequence[Place], trees: Trees) -> list[tuple[InodeNumber, bytes]]:
    """(parent, name) of each; without those whose tree cannot be read any more."""
    found: list[tuple[InodeNumber, bytes]] = []
    for start in range(0, len(places), NAMES_A_HOP):
        some = places[start : start + NAMES_A_HOP]
        try:
            found += await _names_at(some, trees)
        except BallastError:
            for place in some:
                with suppress(BallastError):
                    found += await _names_at([place], trees)
    return found


async def _names_at(places: Sequence[Place], trees: Trees) -> list[tuple[InodeNumber, bytes]]:
    names = await trees.ask(trees.reader.names_at, [(place.row.content, place.position) for place in places])
    return [(place.row.parent, name) for place, name in zip(places, names, strict=True)]


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
