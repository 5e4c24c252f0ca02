"""Makes pyfuse3 ask the device before it waits: a request then costs about 12 µs of overhead instead of 21.

pyfuse3 looks trio up under its own global name `trio`, which it replaces itself for asyncio. `install` puts a namespace
there that differs in three things: a lock that nobody holds is taken without a checkpoint, a device that is readable
already is not waited for, and one that will be in a moment is asked again until it is. Every RUN_MAX requests other
tasks get their turn. Who takes the lock is about to read a request: an answer that was held back (`answers.py`) leaves
before.
"""

import select
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final

import pyfuse3
import trio

from fusefs.answers import Answers
from fusefs.handshake import Handshake

RUN_MAX: Final = 16
"""Requests served without a checkpoint: with 20 to 100 µs each, and SPIN_S before it, others wait at most some 3 ms."""

SPIN_S: Final = 0.0001
"""How long the device is asked again and again: about what going to sleep and being woken costs the two sides. A
program that reads one file after the other mostly has its next request there by then."""
LUCK_MAX: Final = 16
LUCK_LOST: Final = 4
PROBE_EVERY: Final = 16
"""Asking again has to pay: each time that it was in vain takes LUCK_LOST of what was gained, one each time that it was
not. Without luck it is tried once in so many waits, so a program that takes its time costs some 6 µs a request."""


class QuickLock:
    """A lock for one event loop whose use costs a few attribute look-ups unless somebody holds it.

    Who waits longest is woken when a task that let it go makes way for others, and not before: a task that answers
    without waiting has the lock again by then, so they do not take turns over every single request.
    """

    def __init__(self, answers: Answers | None = None) -> None:
        self._deliver: Callable[[], None] = answers.deliver if answers is not None else _nothing
        self._held = False
        self._woken = False
        """Somebody was woken for the lock and had no turn yet."""
        self._waiting = trio.lowlevel.ParkingLot()
        self._watch: _Watch | None = None

    async def __aenter__(self) -> None:
        self._deliver()
        if self._watch is None:
            self._watch = _Watch(self)
            trio.lowlevel.add_instrument(self._watch)
        while self._held:
            await self._waiting.park()
            self._woken = False
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False

    def wake(self) -> None:
        """Between two tasks: wakes who waits longest, if the lock is free. What a task answered last leaves, though it
        takes the lock no more."""
        self._deliver()
        if not self._held and not self._woken and self._waiting:
            self._woken = True
            self._waiting.unpark()


def _nothing() -> None:
    pass


class _Watch(trio.abc.Instrument):
    """Has trio tell a lock that a task made way for others."""

    def __init__(self, lock: QuickLock) -> None:
        self._wake = lock.wake

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._wake()


class Patience:
    """Whether to ask the device again before going to sleep, learnt from how that went lately."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._luck = 0
        self._waits = 0

    def spin(self, ready: Callable[[], bool]) -> bool:
        """True as soon as `ready` is; False where it did not become so in time, or is not worth asking."""
        if not self._luck:
            self._waits += 1
            if self._waits % PROBE_EVERY:
                return False
        end = self._clock() + SPIN_S
        while self._clock() < end:
            if ready():
                self._luck = min(self._luck + 1, LUCK_MAX)
                return True
        self._luck = max(self._luck - LUCK_LOST, 0)
        return False


class _QuickLowlevel:
    """What pyfuse3 uses of trio.lowlevel."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self, handshake: Handshake | None, is_idle: Callable[[], bool]) -> None:
        """`is_idle`: no worker will bring something to this loop in a moment."""
        self._handshake = handshake
        self._is_idle = is_idle
        self._patience = Patience()
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
        if self._run >= RUN_MAX:
            self._run = 0
            await trio.lowlevel.checkpoint()
        if self._ready() or (self._nobody_waits() and self._patience.spin(self._ready)):
            self._run += 1
            return
        self._run = 0
        await trio.lowlevel.wait_readable(descriptor)

    def _ready(self) -> bool:
        return bool(self._poll and self._poll.poll(0))

    def _nobody_waits(self) -> bool:
        """Whether this task is the only one with anything to do, now and in a moment."""
        return self._is_idle() and not trio.lowlevel.current_statistics().tasks_runnable


class _QuickTrio:
    """What pyfuse3 uses of trio."""

    open_nursery = staticmethod(trio.open_nursery)
    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, handshake: Handshake | None, answers: Answers, is_idle: Callable[[], bool]) -> None:
        self.Lock = partial(QuickLock, answers)
        self.lowlevel = _QuickLowlevel(handshake, is_idle)


def install(handshake: Handshake | None, answers: Answers, is_idle: Callable[[], bool]) -> None:
    """Before `pyfuse3.main`, once per mount. `handshake` has its turn before the first requests."""
    setattr(pyfuse3, "trio", _QuickTrio(handshake, answers, is_idle))  # noqa: B010  the stubs do not know the name
