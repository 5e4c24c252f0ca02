"""The committer on a clock of its own: when it commits, and that a failure is tried again."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from fusefs.committer import Committer
from repository.errors import BusyError, NoSpaceError
from repository.format.catalog import FREE_SLOT, Slot, SnapshotKind
from repository.ids import SnapshotId
from repository.policy.schedule import Activity, Pace


class Live:
    """A live tree of which only the times are real."""

    def __init__(self) -> None:
        self.now = Activity()
        self.commits: list[tuple[float, SnapshotKind, str | None]] = []
        self.failures = 0
        self.full = False
        self._changed = trio.Event()

    def change(self) -> None:
        now_s = trio.current_time()
        self.now = replace(
            self.now,
            changed_since_s=now_s if self.now.changed_since_s is None else self.now.changed_since_s,
            unsaved_since_s=now_s if self.now.unsaved_since_s is None else self.now.unsaved_since_s,
            last_change_s=now_s,
        )
        self._changed.set()

    def activity(self) -> Activity:
        return self.now

    def may_commit(self) -> bool:
        return not self.full

    async def wait_for_change(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def commit(self, kind: SnapshotKind, name: str | None) -> Slot | None:
        await trio.sleep(0.1)
        now_s = trio.current_time()
        if self.failures:
            self.failures -= 1
            self.now = replace(self.now, failed_s=now_s)
            raise NoSpaceError("full")
        self.commits.append((round(now_s), kind, name))
        if kind is SnapshotKind.PROVISIONAL:
            self.now = replace(self.now, unsaved_since_s=None)
        else:
            self.now = Activity(last_listed_s=now_s)
        return replace(FREE_SLOT, name=name or "")

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()


class Shelf:
    async def delete(self, snapshot: SnapshotId) -> None:
        raise BusyError("pinned")

    async def undelete(self, snapshot: SnapshotId, name: str) -> None:
        await trio.lowlevel.checkpoint()

    async def rename(self, snapshot: SnapshotId, name: str) -> None:
        await trio.lowlevel.checkpoint()


PACE = Pace(settle_s=5, interval_s=60, max_age_s=600)


async def test_a_burst_of_changes_is_one_snapshot(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    live = Live()
    nursery.start_soon(Committer(live, Shelf(), PACE).run)
    for _ in range(20):
        await trio.sleep(1)
        live.change()
    await trio.sleep(1000)
    assert live.commits == [(25, SnapshotKind.IMPLICIT, None)]


async def test_steady_writing_is_provisional_until_it_pauses(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    live = Live()
    nursery.start_soon(Committer(live, Shelf(), PACE).run)
    for _ in range(1500):
        await trio.sleep(1)
        live.change()
    await trio.sleep(100)
    kinds = [kind for _, kind, _ in live.commits]
    assert kinds == [SnapshotKind.PROVISIONAL, SnapshotKind.PROVISIONAL, SnapshotKind.IMPLICIT]


@pytest.mark.logs("commit.failed")
async def test_a_commit_that_fails_is_tried_again(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    live = Live()
    live.failures = 3
    nursery.start_soon(Committer(live, Shelf(), PACE).run)
    await trio.sleep(1)
    live.change()
    await trio.sleep(400)
    assert [kind for _, kind, _ in live.commits] == [SnapshotKind.IMPLICIT]
    assert 180 < live.commits[0][0] < 200


async def test_named_ones_are_made_at_once_and_errors_are_the_callers(autojump_clock: MockClock) -> None:
    live = Live()
    committer = Committer(live, Shelf(), PACE)
    assert (await committer.create_named("x")).name == "x"
    with pytest.raises(BusyError):
        await committer.delete(SnapshotId(1))
