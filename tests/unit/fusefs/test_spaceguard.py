"""Who waits for room, in which order, how many and how long; and who does not."""

import threading

import pytest
import trio

from fusefs import spaceguard
from fusefs.cli.arguments import build_parser
from fusefs.spaceguard import DEADLINE_DEFAULT_S, WAITERS_MAX, SpaceGuard
from fusefs.workers import Workers
from repository.errors import NoSpaceError, VolumeError
from repository.ledger import Claim, Ledger
from repository.recovery import Mode
from repository.units import MIB

LONG_S = 60.0


class Head:
    """A headroom of a ledger's."""

    wanted_bytes = 1000

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def take(self, nbytes: int, records: int) -> Claim | None:
        return self._ledger.try_claim(nbytes, records, headroom_left=250)

    def left_bytes(self) -> int:
        return self._ledger.standing()


class Store:
    """A real ledger over a disk of so many segments of 1,000 bytes."""

    def __init__(self, segments: int) -> None:
        self.ledger = Ledger(64 * MIB, MIB)
        self.ledger.want_standing(1000)
        self.ledger.add_room(1000)
        self.segments = segments
        self.allocations = 0
        self.headroom = Head(self.ledger)

    def try_claim(self, nbytes: int, records: int) -> Claim | None:
        return self.ledger.try_claim(nbytes, records)

    def claim(self, nbytes: int, records: int, *, climb: bool = True) -> Claim:
        assert not climb, "climbing on this thread would keep jobs waiting"
        self.allocations += 1
        while True:
            claim = self.ledger.try_claim(nbytes, records)
            if claim is not None:
                return claim
            if self.segments <= 0:
                raise NoSpaceError("full", nbytes)
            self.segments -= 1
            self.ledger.add_room(1000)


class Ladder:
    """A recovery that waits for `gate`, then brings `gain` segments; read-only where that is none."""

    def __init__(self, store: Store, gain: int) -> None:
        self._store = store
        self.gain = gain
        self.mode = Mode.NORMAL
        self.worth = False
        self.climbs = 0
        self.gate = threading.Event()
        self.error: Exception | None = None

    @property
    def refuses(self) -> bool:
        return self.mode is Mode.READ_ONLY and not self.worth

    def climb(self, error: NoSpaceError) -> None:
        self.climbs += 1
        self.mode, self.worth = Mode.EMERGENCY, False
        assert self.gate.wait(LONG_S)
        if self.error is not None:
            raise self.error
        if not self.gain:
            self.mode = Mode.READ_ONLY
            raise NoSpaceError("no way", error.needed_bytes)
        self.mode = Mode.NORMAL
        self._store.segments += self.gain

    def changed(self) -> None:
        self.worth = True


class World:
    """A guard and what it stands between."""

    def __init__(self, nursery: trio.Nursery, *, segments: int = 0, gain: int = 1, deadline_s: float = LONG_S) -> None:
        self.store = Store(segments)
        self.ladder = Ladder(self.store, gain)
        self.guard = SpaceGuard(self.store, self.ladder, Workers(), nursery, deadline_s)
        self.got: list[int] = []
        self.refused: list[int] = []

    async def grow(self, number: int, cost: int = 1000) -> None:
        try:
            await self.guard.grow(cost, cost)
        except NoSpaceError:
            self.refused.append(number)
        else:
            self.got.append(number)

    async def until_waiting(self, count: int) -> None:
        while self.guard.waiting < count:
            await trio.sleep(0.005)


async def test_where_there_is_room_nobody_climbs(nursery: trio.Nursery) -> None:
    world = World(nursery, segments=3)
    for number in range(3):
        await world.grow(number)
    assert world.got == [0, 1, 2]
    assert world.ladder.climbs == 0


async def test_waiters_are_served_in_order_by_one_climb(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=20)
    async with trio.open_nursery() as writers:
        for number in range(20):
            writers.start_soon(world.grow, number)
            await world.until_waiting(number + 1)
        assert not world.got
        world.ladder.gate.set()
    assert world.got == list(range(20))
    assert world.ladder.climbs == 1


async def test_a_climb_that_fails_refuses_all_who_wait_and_then_growth_at_once(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=0)
    async with trio.open_nursery() as writers:
        for number in range(20):
            writers.start_soon(world.grow, number)
        await world.until_waiting(20)
        world.ladder.gate.set()
    assert sorted(world.refused) == list(range(20))
    assert world.ladder.climbs == 1, "they do not climb one after the other"
    allocations = world.store.allocations
    with pytest.raises(NoSpaceError):
        await world.guard.leave_read_only()
    assert (world.ladder.climbs, world.store.allocations) == (1, allocations)


async def test_after_something_changed_read_only_mode_is_tried_once_more(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=0)
    world.ladder.gate.set()
    await world.grow(0)
    world.ladder.changed()
    world.ladder.gain = 5
    await world.guard.leave_read_only()
    await world.grow(1)
    assert (world.got, world.ladder.climbs) == ([1], 2)


async def test_no_more_wait_than_leave_tasks_for_readers(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=200)
    async with trio.open_nursery() as writers:
        for number in range(WAITERS_MAX):
            writers.start_soon(world.grow, number)
        await world.until_waiting(WAITERS_MAX)
        await world.grow(-1)
        assert world.refused == [-1]
        world.ladder.gate.set()
    assert len(world.got) == WAITERS_MAX
    assert world.guard.waiting == 0


@pytest.mark.logs("space.deadline")
async def test_the_deadline_ends_the_wait_but_not_the_climb(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=5, deadline_s=0.05)
    await world.grow(0)
    assert world.refused == [0]
    world.ladder.gate.set()
    while not world.guard.calm:
        await trio.sleep(0.005)
    await world.grow(1)
    assert (world.got, world.ladder.climbs) == ([1], 1)


async def test_names_draw_on_the_headroom_while_others_wait(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=1)
    async with trio.open_nursery() as writers:
        writers.start_soon(world.grow, 0)
        await world.until_waiting(1)
        for _ in range(5):
            await world.guard.change(100, 100, shrinks=False)
        assert world.store.ledger.standing() == 500, "growth leaves half of it"
        world.ladder.gate.set()
    assert world.got == [0]


async def test_names_that_grow_wait_a_second_of_the_climb_in_all(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waiting `create` keeps its directory locked: ten of them, one after the other, must not add up."""
    monkeypatch.setattr(spaceguard, "NAMES_WAIT_S", 0.2)
    world = World(nursery, gain=1)
    async with trio.open_nursery() as writers:
        writers.start_soon(world.grow, 0)
        await world.until_waiting(1)
        waited = 0
        for _ in range(10):
            before_s = trio.current_time()
            with pytest.raises(NoSpaceError):
                await world.guard.change(600, 600, shrinks=False)
            waited += trio.current_time() - before_s > 0.1
        assert waited <= 2
        world.ladder.gate.set()


async def test_what_shrinks_goes_down_to_what_commits_need(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=0)
    world.ladder.gate.set()
    await world.grow(0)
    assert world.ladder.mode is Mode.READ_ONLY
    taken = [await world.guard.change(100, 200, shrinks=True) for _ in range(4)]
    assert [claim.remaining_cost for claim in taken] == [200, 200, 200, 100]
    with pytest.raises(NoSpaceError):
        await world.guard.change(100, 200, shrinks=True)
    assert world.store.ledger.standing() >= 250
    assert world.ladder.climbs == 1, "removing never climbs"


async def test_what_was_removed_is_committed_before_the_climb(nursery: trio.Nursery) -> None:
    world = World(nursery, gain=1)
    order: list[str] = []

    async def commit() -> None:
        order.append(f"commit, {world.ladder.climbs} climbs")
        world.guard.committed(world.guard.removals)

    world.guard.commit_head = commit
    world.guard.freed = lambda: order.append("freed")
    world.guard.removed()
    assert world.guard.has_removals
    world.ladder.gate.set()
    await world.grow(0)
    assert order == ["commit, 0 climbs", "freed"]
    assert not world.guard.has_removals


def test_the_deadline_is_the_command_lines() -> None:
    assert build_parser().parse_args(["mount", "R", "M"]).write_deadline == DEADLINE_DEFAULT_S


async def test_an_error_of_the_volume_goes_to_whoever_waits(nursery: trio.Nursery) -> None:
    world = World(nursery)
    world.ladder.error = VolumeError("gone", 5)
    world.ladder.gate.set()
    with pytest.raises(VolumeError):
        await world.guard.grow(1000, 1000)


@pytest.mark.logs("climb.crashed")
async def test_a_climb_that_crashes_leaves_nobody_waiting(nursery: trio.Nursery) -> None:
    world = World(nursery)
    world.ladder.error = RuntimeError("a mistake")
    world.ladder.gate.set()
    with pytest.raises(Exception, match="a mistake"):
        await world.guard.grow(1000, 1000)
    assert world.guard.calm or world.ladder.mode is not Mode.NORMAL
