"""The lock that stands in for trio's under pyfuse3."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusefs.quickloop import LUCK_MAX, PROBE_EVERY, RUN_MAX, SPIN_S, Patience, QuickLock, _QuickLowlevel
from fusefs.workers import Workers


async def test_the_lock_excludes_and_is_fair() -> None:
    lock = QuickLock()
    order: list[int] = []
    inside = 0

    async def task(number: int) -> None:
        nonlocal inside
        async with lock:
            inside += 1
            assert inside == 1
            await trio.lowlevel.checkpoint()
            inside -= 1
            order.append(number)

    async with trio.open_nursery() as nursery, lock:
        for number in range(5):
            nursery.start_soon(task, number)
            await wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4]
    async with lock:
        pass


async def test_who_lets_go_may_go_on_until_he_waits_for_something() -> None:
    lock = QuickLock()
    order: list[str] = []

    async def waits(name: str) -> None:
        async with lock:
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with lock:
            for name in ("first", "second"):
                nursery.start_soon(waits, name)
                await wait_all_tasks_blocked()
        for _ in range(3):
            async with lock:
                order.append("again")
        await wait_all_tasks_blocked()
        assert order == ["again", "again", "again", "first", "second"]
        async with lock:
            nursery.start_soon(waits, "third")
            await wait_all_tasks_blocked()
        async with lock:
            await wait_all_tasks_blocked()
            assert order[-1] == "second", "woken, and found it held again"
    assert order[-1] == "third"


async def test_who_gives_up_waiting_leaves_the_lock_to_the_next() -> None:
    lock = QuickLock()
    got = trio.Event()

    async def wants(scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                got.set()

    async with trio.open_nursery() as nursery:
        first, second = trio.CancelScope(), trio.CancelScope()
        async with lock:
            nursery.start_soon(wants, first)
            await wait_all_tasks_blocked()
            nursery.start_soon(wants, second)
            await wait_all_tasks_blocked()
            first.cancel()
            await wait_all_tasks_blocked()
        await got.wait()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


class Device:
    """Has a request each time that it was asked so often since the last; never for None. Ten questions take SPIN_S."""

    def __init__(self) -> None:
        self.after: int | None = None
        self.asked = 0
        self._now = count()

    def clock(self) -> float:
        return next(self._now) * SPIN_S / 10

    def ready(self) -> bool:
        self.asked += 1
        return self.after is not None and self.asked % self.after == 0


def test_asking_again_goes_on_while_it_pays_and_ends_when_it_does_not() -> None:
    device = Device()
    patience = Patience(device.clock)
    device.after = 3
    probed = [patience.spin(device.ready) for _ in range(PROBE_EVERY)]
    assert probed == [False] * (PROBE_EVERY - 1) + [True], "without luck it is tried now and then"
    assert all(patience.spin(device.ready) for _ in range(5 * LUCK_MAX))
    device.after = None
    device.asked = 0
    assert not any(patience.spin(device.ready) for _ in range(100 * PROBE_EVERY))
    assert device.asked < 10 * (100 + LUCK_MAX), "a tenth of SPIN_S each"


async def test_the_device_is_not_asked_again_while_others_have_something_to_do(pipe: tuple[int, int]) -> None:
    workers = Workers()
    quick = _QuickLowlevel(None, workers.is_idle)
    assert quick._nobody_waits()
    go_on = threading.Event()

    async def waits() -> None:
        await workers.read(go_on.wait, 10.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert not quick._nobody_waits(), "a task is about to run"
        await wait_all_tasks_blocked()
        assert quick._nobody_waits()
        nursery.start_soon(waits)
        await wait_all_tasks_blocked()
        assert not quick._nobody_waits(), "a worker will have something"
        go_on.set()
    assert quick._nobody_waits()


async def test_a_busy_device_does_not_starve_the_other_tasks(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"x")
    quick = _QuickLowlevel(None, lambda: True)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(20 * (RUN_MAX + 1)):
            await quick.wait_readable(reading)
        nursery.cancel_scope.cancel()
    assert turns >= 15


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks by name."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen[task.name] += 1


async def test_who_waits_is_not_woken_while_another_goes_on() -> None:
    """Each look at a lock that was held again already was a round of trio's loop."""
    lock = QuickLock()
    steps = Steps()

    async def waits() -> None:
        async with lock:
            pass

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(waits, name="waits")
            await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        for _ in range(50):
            async with lock:  # taken again in the step in which it was let go, and then waited with
                await trio.lowlevel.checkpoint()
        assert steps.seen["waits"] == 0
        await wait_all_tasks_blocked()
        assert steps.seen["waits"] == 1, "but when its holder waits for something else"
        trio.lowlevel.remove_instrument(steps)
