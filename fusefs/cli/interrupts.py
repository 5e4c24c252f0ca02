"""SIGINT and SIGTERM: when they end a command at once, and when only at a safe place.

A command that only reads is ended wherever it is. One that writes a repository (or restores files) notes the signal
and ends where its progress is reported: there no record is half placed and no file half made. A second signal
kills outright, which the repository survives as it survives any crash.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from repository.errors import InterruptedByUserError

ENDING: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signals of this process. Its methods belong to the main thread, except `check`."""

    def __init__(self) -> None:
        self._received = ""
        self._deferring = 0

    def watch(self) -> None:
        """Take the signals over, from now on."""
        self._received = ""
        for number in ENDING:
            signal.signal(number, self._note)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal waits for the next `check`."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1

    def check(self) -> None:
        """A safe place to end. Raises InterruptedByUserError where a signal came."""
        if self._received:
            raise InterruptedByUserError(self._received)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = f"Interrupted ({signal.Signals(number).name})."
        for ending in ENDING:
            signal.signal(ending, signal.SIG_DFL)
        if not self._deferring:
            self.check()


INTERRUPTS: Final = Interrupts()
"""Signals belong to the process, and so does this."""
