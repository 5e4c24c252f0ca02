"""A lock whose waiters get it in the order in which they came."""

import threading
from collections import deque
from types import TracebackType
from typing import Self


class Turns:
    """First come, first served. Not reentrant: `mine` tells a thread that it has the turn already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self._owner: int | None = None

    def take(self) -> None:
        """Wait for the turn."""
        with self._lock:
            if self._owner is None:
                self._owner = threading.get_ident()
                return
            turn = threading.Event()
            self._queue.append(turn)
        try:
            turn.wait()
        except BaseException:  # a signal's exception: whoever handed over meanwhile must not be left with it
            with self._lock:
                if not turn.is_set():
                    self._queue.remove(turn)
                    raise
            self.end()
            raise
        self._owner = threading.get_ident()

    def try_take(self) -> bool:
        """The turn, if nobody has it."""
        with self._lock:
            if self._owner is not None:
                return False
            self._owner = threading.get_ident()
            return True

    def end(self) -> None:
        """The next one's turn."""
        with self._lock:
            if self._queue:
                self._owner = 0  # handed over: nobody can come between
                self._queue.popleft().set()
            else:
                self._owner = None

    def mine(self) -> bool:
        """Whether this thread has the turn."""
        return self._owner == threading.get_ident()

    def waiting(self) -> int:
        """How many wait."""
        with self._lock:
            return len(self._queue)

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
