"""The lock that stands in for trio's under pyfuse3."""

import os
from collections import Counter

import trio
from trio.testing import wait_all_tasks_blocked

from fusefs.quickloop import RUN_MAX, QuickLock, _QuickLowlevel


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


async def test_a_busy_device_does_not_starve_the_other_tasks() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    quick = _QuickLowlevel(None)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(20 * (RUN_MAX + 1)):
                await quick.wait_readable(reading)
            nursery.cancel_scope.cancel()
    finally:
        os.close(reading)
        os.close(writing)
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
