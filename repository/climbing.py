"""What a thread does that finds no room to allocate: climb the ladder, draw on the headroom, or give up.

The record store asks `Climber` wherever an allocation is refused, under no lock of its own.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from repository.errors import NoSpaceError


class _Stance(threading.local):
    """How one thread stands to a full disk."""

    grounded = 0
    """Depth of `without_climbing`."""
    closing = 0
    """Depth of `closing`."""


class Climber:
    """Knows the hook that makes room, and which threads may call it. Thread safe."""

    def __init__(self) -> None:
        self.hook: Callable[[NoSpaceError], None] | None = None
        """Returns when the allocation may be tried again; raises NoSpaceError to give up."""
        self._stance: Final = _Stance()

    @contextmanager
    def without_climbing(self) -> Iterator[None]:
        """This thread makes room itself: what it cannot allocate meanwhile is refused at once."""
        self._stance.grounded += 1
        try:
            yield
        finally:
            self._stance.grounded -= 1

    @contextmanager
    def closing(self, *, climb: bool) -> Iterator[None]:
        """This thread stores what was acknowledged: what has no other room comes out of the headroom, and only with
        `climb` is room made for it first."""
        self._stance.closing += 1
        self._stance.grounded += not climb
        try:
            yield
        finally:
            self._stance.closing -= 1
            self._stance.grounded -= not climb

    @property
    def may_draw(self) -> bool:
        """Whether this thread may draw on the headroom."""
        return self._stance.closing > 0

    def climb(self, error: NoSpaceError) -> None:
        """Return when what met `error` may be tried again. Raises NoSpaceError where there is no way."""
        if self.hook is None or self._stance.grounded:
            raise error
        self.hook(error)
