"""Keeps the table of places bounded: takes the oldest names away from the kernel, which then forgets their inodes.

Never on the loop thread: the kernel may answer only after a request that is waiting for the loop.
"""

import errno
import logging
from collections.abc import Callable
from typing import Final

import pyfuse3
import trio

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


async def evict_places(places: PlaceTable, trees: Trees, workers: Workers) -> None:
    """Runs until cancelled."""
    while True:
        await trio.sleep(LOOK_EVERY_S)
        while oldest := places.overdue():
            names = await _names(oldest, trees)
            gone = await workers.notify(_take_away, names)
            _log.debug("places.evicted", extra={"names": len(names), "gone": gone, "left": len(places)})
            if not gone:
                break
            await trio.sleep(ANSWER_S)


async def evict_live(overdue: Callable[[], list[tuple[InodeNumber, bytes]]], workers: Workers) -> None:
    """The same for `live`, whose names `overdue` tells. Runs until cancelled."""
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
