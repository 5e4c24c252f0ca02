"""Makes pyfuse3 ask the device before it waits: a request then costs about 12 µs of overhead instead of 21.

pyfuse3 looks trio up under its own global name `trio`, which it replaces itself for asyncio. `install` puts a namespace
there that differs in two things: a lock that nobody holds is taken without a checkpoint, and a device that is readable
already is not waited for. Every RUN_MAX requests a real wait comes in between, so that other tasks get their turn.
"""

import select
from types import TracebackType
from typing import Final

import pyfuse3
import trio

from fusefs.handshake import Handshake

RUN_MAX: Final = 16
"""Requests served without a checkpoint: with 20 to 100 µs each, others wait at most some 2 ms."""


class QuickLock:
    """A lock for one event loop whose use costs a few attribute look-ups unless somebody holds it.

    Who waits longest is woken when a task that let it go makes way for others, and not before: a task that answers
    without waiting has the lock again by then, so they do not take turns over every single request.
    """

    def __init__(self) -> None:
        self._held = False
        self._woken = False
        """Somebody was woken for the lock and had no turn yet."""
        self._waiting = trio.lowlevel.ParkingLot()
        self._watch: _Watch | None = None

    async def __aenter__(self) -> None:
        while self._held:
            if self._watch is None:
                self._watch = _Watch(self)
                trio.lowlevel.add_instrument(self._watch)
            await self._waiting.park()
            self._woken = False
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False

    def wake(self) -> None:
        """Between two tasks: wakes who waits longest, if the lock is free."""
        if not self._held and not self._woken and self._waiting:
            self._woken = True
            self._waiting.unpark()


class _Watch(trio.abc.Instrument):
    """Has trio tell a lock that a task made way for others."""

    def __init__(self, lock: QuickLock) -> None:
        self._wake = lock.wake

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._wake()


class _QuickLowlevel:
    """What pyfuse3 uses of trio.lowlevel."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self, handshake: Handshake | None) -> None:
        self._handshake = handshake
        self._run = 0
        self._poll: select.poll | None = None

    async def wait_readable(self, descriptor: int) -> None:
        """Returns when the device has a request."""
        if self._handshake is not None:
            self._handshake.step()
            if not self._handshake.done:
                return
            self._handshake = None
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
        if self._run < RUN_MAX and self._poll.poll(0):
            self._run += 1
            return
        self._run = 0
        await trio.lowlevel.wait_readable(descriptor)


class _QuickTrio:
    """What pyfuse3 uses of trio."""

    Lock = QuickLock
    open_nursery = staticmethod(trio.open_nursery)
    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, handshake: Handshake | None) -> None:
        self.lowlevel = _QuickLowlevel(handshake)


def install(handshake: Handshake | None = None) -> None:
    """Before `pyfuse3.main`, once per mount. `handshake` has its turn before the first requests."""
    setattr(pyfuse3, "trio", _QuickTrio(handshake))  # noqa: B010  the stubs do not know the name
