"""The one place where this program starts threads for its own work.

A hop to a thread and back costs about 56 µs, as much as hashing 256 KiB, so callers batch. A worker takes values and
returns values: it never touches what the loop thread owns. Once begun, a call is never abandoned; cancellation waits
for it.
"""

import sys
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

READ_THREADS: Final = 4
"""Readers mostly decompress without the GIL or wait for the disk; more than a few only add memory."""
WRITE_THREADS: Final = 2
"""Chunking, hashing and compressing keep two cores busy; two threads measured as fast as worker processes."""
SLOW_THREADS: Final = 4
"""Commits, collections, status and control requests: few, long, and never behind the reads."""
ALLOCATE_THREADS: Final = 1
"""Segments are allocated one after the other anyway; and a job must not wait behind one, nor the other way round."""
RECOVER_THREADS: Final = 3
"""A climb, the monitor's look, what is left of a climb or a deletion: each at most once. They queue among themselves,
but must not keep jobs, commits or readers waiting."""
SWITCH_S: Final = 0.0005
"""After so long a worker lets the loop thread have the interpreter, which asks for it after each of its system calls:
with the usual 5 ms, requests during a commit of 25,000 inodes took ten times as long."""


class Workers:
    """Threads for each kind of work, so that none waits behind another."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._read = trio.CapacityLimiter(READ_THREADS)
        self._write = trio.CapacityLimiter(WRITE_THREADS)
        self._slow = trio.CapacityLimiter(SLOW_THREADS)
        self._allocate = trio.CapacityLimiter(ALLOCATE_THREADS)
        self._recover = trio.CapacityLimiter(RECOVER_THREADS)
        self._notify = trio.CapacityLimiter(1)
        self._awaited = 0
        self._telling = 0

    async def read(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        """`function(*args)` on a reader thread."""
        return await self._run(self._read, function, *args)

    async def write(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        """`function(*args)` on a writer thread."""
        return await self._run(self._write, function, *args)

    async def slow(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        """`function(*args)` on a thread for long work."""
        return await self._run(self._slow, function, *args)

    async def allocate(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        """`function(*args)`, which may allocate a segment."""
        return await self._run(self._allocate, function, *args)

    async def recover(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        """`function(*args)`, which frees room or looks how much there is."""
        return await self._run(self._recover, function, *args)

    async def notify(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        """`function(*args)`, which tells the kernel something and may block until a request of its own is answered.
        The one exception: abandoned on cancellation, as there is nothing in it to lose and the answer may never
        come."""
        self._telling += 1
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=self._notify, abandon_on_cancel=True)
        finally:
            self._telling -= 1

    def is_telling(self) -> bool:
        """Whether somebody may be telling the kernel something, on another thread."""
        return bool(self._telling)

    def is_idle(self) -> bool:
        """Whether nobody waits for one of them; who waits for the kernel (`notify`) does not count."""
        return not self._awaited

    async def _run(self, limiter: trio.CapacityLimiter, function: Callable[[*Ts], R], *args: *Ts) -> R:
        self._awaited += 1
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=limiter)
        finally:
            self._awaited -= 1
