"""Who reads the files: threads, and behind them, where there is more than one batch to read, a crew.

Owner of the order that forking wants: the crew is hired before the first of these threads begins.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

from repository.crew import ASKED_AT_ONCE, Crew, Work, cores, hire

READERS: Final = 2
"""Threads that read files where there is no crew: more only queue for the interpreter; reading itself is done by the
kernel ahead of them."""
WORKERS_MAX: Final = 3
"""Of a crew, which leaves one processor to this process: what is left for it to do takes about as long for a file as
what one worker does, and each takes 35 MB of its own."""

_T = TypeVar("_T")


class Readers:
    """Threads for reading. A context manager: at its end they are waited for, then the crew is sent home."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pool: ThreadPoolExecutor | None = None
        self.crew: Crew | None = None

    def submit(self, read: Callable[[], _T], *, more: bool) -> "Future[_T]":
        """Have `read` called in a thread. `more`, for the first of all: others are likely to follow."""
        if self._pool is None:
            self.crew = hire(min(cores() - 1, WORKERS_MAX), self._work) if more else None
            threads = READERS if self.crew is None else self.crew.workers * ASKED_AT_ONCE
            self._pool = ThreadPoolExecutor(threads, "read")
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
