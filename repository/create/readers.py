"""Who reads the files: a crew where there is more than one batch to read; threads where there is none, and large ones.

Owner of the order that forking wants: the crew is hired before the first of these threads begins.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

from repository.crew import Crew, Work, cores, hire
from repository.units import MIB

READERS: Final = 2
"""Threads that read files: more only queue for the interpreter; reading itself is done by the kernel ahead of them."""
WORKERS_MAX: Final = 3
"""Of a crew: what is left for this process to do takes half as long for a file as what one worker does, so more would
wait for it; and each takes 20 MB of its own."""

ASKED_AHEAD: Final = 3
"""Batches that a worker has, one of them at work: how long this process may be at something else without it waiting."""
REPLY_BYTES: Final = 4 * MIB
"""A batch that does not compress; it takes a third as a rule, and what is not used is never touched."""

_T = TypeVar("_T")


def _hire(work: Work) -> Crew | None:
    return hire(min(cores() - 1, WORKERS_MAX), work, trays=ASKED_AHEAD, tray_bytes=REPLY_BYTES)


class Readers:
    """A context manager: at its end the threads are waited for, then the crew is sent home."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pool: ThreadPoolExecutor | None = None
        self._begun = False
        self.crew: Crew | None = None

    @property
    def crew_busy(self) -> bool:
        """Whether there is a crew, and all of it has enough to do."""
        return self.crew is not None and self.crew.least_asked() >= ASKED_AHEAD

    def begin(self, *, more: bool) -> None:
        """There is something to read. `more`, for the first of all: others are likely to follow."""
        if not self._begun:
            self._begun = True
            self.crew = _hire(self._work) if more else None

    def submit(self, read: Callable[[], _T]) -> "Future[_T]":
        """Have `read` called in a thread. Behind the first `begin`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(READERS, "read")
        return self._pool.submit(read)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._pool is not None:
                self._pool.shutdown()
        finally:
            if self.crew is not None:
                self.crew.close()
