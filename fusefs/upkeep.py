"""What a mount does to snapshots that exist: on request, and by itself (condensing, the hourly collection).

All of it runs on worker threads against the facade, which serialises it; nothing here keeps state across an `await`.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from fusefs.workers import Workers
from repository.errors import BallastError, BusyError, NoSuchSnapshotError
from repository.format.catalog import SnapshotKind
from repository.ids import SnapshotId
from repository.policy.collect import Safety
from repository.policy.condense import Candidate, condense
from repository.repo import Repository
from repository.snapshots import LIVE_SOURCE

_log = logging.getLogger(__name__)

CONDENSE_EVERY_S: Final = 600.0
"""Reads the catalog in memory; more often would find nothing new, as its finest period is an hour."""
COLLECT_EVERY_S: Final = 3600.0
"""The safety window is a day: sooner gains nothing, and a collection reads bitmaps and directories."""


class Upkeep:
    """Changes of snapshots, for one writable mount."""

    def __init__(self, repository: Repository, workers: Workers, deleted: Callable[[], None]) -> None:
        """`deleted` is called after deletions: while room is short they are collected at once, in the background."""
        self._repository: Final = repository
        self._workers: Final = workers
        self._deleted: Final = deleted

    async def delete(self, snapshot: SnapshotId) -> None:
        """Into the trash. Raises BusyError, NoSuchSnapshotError."""
        await self._workers.slow(self._delete, snapshot)
        self._deleted()

    async def undelete(self, snapshot: SnapshotId, name: str) -> None:
        """Out of the trash, under `name`. Raises NameTakenError, NoSuchSnapshotError."""
        get = self._repository.catalog.get
        await self._workers.slow(lambda: self._repository.undelete(get(snapshot), name))

    async def rename(self, snapshot: SnapshotId, name: str) -> None:
        """Another name. Raises BusyError for a pinned one, NameTakenError, UsageError, NoSuchSnapshotError."""
        get = self._repository.catalog.get
        await self._workers.slow(lambda: self._repository.rename(get(snapshot), name))

    async def condense_now_and_then(self) -> None:
        """Thins the implicit snapshots of `live`; runs until cancelled."""
        while True:
            await self._try("condense", self._condense)
            self._deleted()
            await trio.sleep(CONDENSE_EVERY_S)

    async def collect_now_and_then(self) -> None:
        """Collects what is unreferenced and old enough; runs until cancelled."""
        while True:
            await trio.sleep(COLLECT_EVERY_S)
            await self._try("collect", partial(self._repository.gc, safety=Safety.FULL))

    def _delete(self, snapshot: SnapshotId) -> None:
        self._repository.delete(self._repository.catalog.get(snapshot))

    def _condense(self) -> None:
        """On a worker thread."""
        implicit = [
            slot
            for slot in self._repository.listed()
            if slot.kind is SnapshotKind.IMPLICIT and slot.source == LIVE_SOURCE
        ]
        candidates = [Candidate(slot.snapshot_id, slot.time_ns, slot.pinned) for slot in implicit]
        gone = condense(candidates, self._repository.clock.now_ns())
        for snapshot in gone:
            with suppress(BusyError, NoSuchSnapshotError):  # pinned or deleted since the list was made
                self._delete(snapshot)
        if gone:
            _log.info("condense.done", extra={"deleted": len(gone)})

    async def _try(self, what: str, work: Callable[[], object]) -> None:
        """By itself: who would be told of an error? The log, and the next time."""
        try:
            await self._workers.slow(work)
        except BallastError as error:
            _log.warning("upkeep.failed", extra={"what": what, "error": str(error)})
        except Exception:
            _log.exception("upkeep.crashed", extra={"what": what})
