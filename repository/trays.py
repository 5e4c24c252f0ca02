"""Trays: pieces of memory that a worker of a crew shares with its parent, and leaves its replies in.

So a reply is copied once, and as many wait there as there are trays while the worker goes on: a socket holds less than
one. The parent gives them out by number, from 1 on, and gets them back; 0 is none.
"""

from collections.abc import Sequence
from typing import Final

from repository.format.record import Buffer
from repository.storage.memory import shared_memory

NO_TRAY: Final = 0


class Trays:
    """The trays of one worker, made before it is forked. What was never written takes no memory."""

    def __init__(self, count: int, nbytes: int) -> None:
        self._nbytes: Final = nbytes
        self._views: Final = [shared_memory(nbytes) for _ in range(count)]
        self._free: Final = list(range(1, count + 1))

    def take(self) -> int:
        """In the parent: a tray that nobody uses, or NO_TRAY. One thread at a time."""
        return self._free.pop() if self._free else NO_TRAY

    def give_back(self, tray: int) -> None:
        """In the parent: what lay in it is not needed any more."""
        if tray != NO_TRAY:
            self._free.append(tray)

    def fill(self, tray: int, parts: Sequence[Buffer]) -> int:
        """In the worker: put `parts` in it, one behind the other; returns their length, 0 where they do not fit."""
        length = sum(map(len, parts))
        if tray == NO_TRAY or length > self._nbytes:
            return 0
        view = self._views[tray - 1]
        at = 0
        for part in parts:
            end = at + len(part)
            view[at:end] = part
            at = end
        return length

    def read(self, tray: int, length: int) -> memoryview:
        """In the parent: the bytes in it, which are good until it is given back."""
        return self._views[tray - 1][:length]
