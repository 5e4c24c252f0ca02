"""Turns `live` into snapshots: by itself as the schedule says, and on request.

The live tree sees to it that one commit runs at a time. What an `await` may change: everything in `live`, and any
snapshot; so ids are carried across, not slots.
"""

import logging
from typing import Final, Protocol

import trio

from repository.errors import BallastError, NoSpaceError
from repository.format.catalog import Slot, SnapshotKind
from repository.ids import SnapshotId
from repository.policy.schedule import Activity, Pace, Step, decide

_log = logging.getLogger(__name__)

DEFERRED_S: Final = 1.0
"""How often it is looked whether a snapshot that was put off may be made now."""


class LiveHead(Protocol):
    """What the committer needs of the live tree."""

    def activity(self) -> Activity:
        """What changed and was committed so far, on trio's clock."""
        ...

    async def wait_for_change(self) -> None:
        """Returns at the next change of `live` (at once if there is one that no listed snapshot holds)."""
        ...

    def may_commit(self) -> bool:
        """Whether a snapshot that nobody asked for may be made now."""
        ...

    async def commit(self, kind: SnapshotKind, name: str | None) -> Slot | None:
        """Makes `live` as it is now a snapshot; durable on return. None where nothing changed and no name was given.

        Runs alone, and to its end even when its caller is cancelled. Raises BallastError.
        """
        ...

    async def checkpoint(self) -> None:
        """Makes `live` durable, without a snapshot. Raises BallastError."""
        ...


class Shelf(Protocol):
    """What is done to snapshots that exist."""

    async def delete(self, snapshot: SnapshotId) -> None: ...

    async def undelete(self, snapshot: SnapshotId, name: str) -> None: ...

    async def rename(self, snapshot: SnapshotId, name: str) -> None: ...


class Committer:
    """Implements browse.SnapshotActions, and runs the schedule."""

    def __init__(self, live: LiveHead, shelf: Shelf, pace: Pace) -> None:
        self._live = live
        self._shelf = shelf
        self._pace = pace

    async def create_named(self, name: str) -> Slot:
        """`live` under `name`, durable."""
        slot = await self._live.commit(SnapshotKind.NAMED, name)
        assert slot is not None
        return slot

    async def make_durable(self) -> None:
        """What was acknowledged survives from here on."""
        await self._live.checkpoint()

    async def delete(self, snapshot: SnapshotId) -> None:
        """Into the trash."""
        await self._shelf.delete(snapshot)

    async def undelete(self, snapshot: SnapshotId, name: str) -> None:
        """Out of the trash."""
        await self._shelf.undelete(snapshot, name)

    async def rename(self, snapshot: SnapshotId, name: str) -> None:
        """Another name."""
        await self._shelf.rename(snapshot, name)

    async def run(self) -> None:
        """Commits by the schedule until cancelled; a commit that has begun is finished first."""
        while True:
            decision = decide(trio.current_time(), self._live.activity(), self._pace)
            match decision.step:
                case Step.SLEEP if decision.until_s is not None:
                    await trio.sleep_until(decision.until_s)
                case Step.SLEEP:
                    await self._live.wait_for_change()
                case Step.IMPLICIT | Step.PROVISIONAL if not self._live.may_commit():
                    await trio.sleep(DEFERRED_S)
                case Step.IMPLICIT:
                    await self._commit(SnapshotKind.IMPLICIT)
                case Step.PROVISIONAL:
                    await self._commit(SnapshotKind.PROVISIONAL)

    async def _commit(self, kind: SnapshotKind) -> None:
        """One scheduled commit. A failed one shows in the next `activity` and is tried again later."""
        try:
            await self._live.commit(kind, None)
        except NoSpaceError as error:
            _log.info("commit.no_space", extra={"kind": kind.name.lower(), "error": str(error)})
        except BallastError as error:
            _log.error("commit.failed", extra={"kind": kind.name.lower(), "error": str(error)})
