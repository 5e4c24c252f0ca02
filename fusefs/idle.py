"""Giving memory back when nobody has read for a while: a mount is idle most of its life."""

import logging
from typing import Final

import trio

from fusefs import heap
from fusefs.readpath import ReadPath
from fusefs.workers import Workers

_log = logging.getLogger(__name__)

IDLE_S: Final = 60.0
"""Longer than a person browsing pauses; filling the cache again costs milliseconds."""


async def shrink_when_idle(reads: ReadPath, workers: Workers) -> None:
    """Empties the cache of chunks after a minute without a read; runs until cancelled."""
    served = reads.served
    while True:
        await trio.sleep(IDLE_S)
        if reads.served == served and reads.held_bytes:
            held_bytes = reads.held_bytes
            reads.forget()
            trimmed = await workers.slow(heap.trim)
            _log.debug("memory.given_back", extra={"cache_bytes": held_bytes, "trimmed": trimmed})
        served = reads.served
