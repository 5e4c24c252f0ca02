"""The quota's account: what the repository takes, kept by addition, because measuring it is one `stat` a pack.

The account errs towards too much: what is granted counts although it may not be taken, and sealing gives back without
a word. So before it refuses it is measured, and now and then anyway.
"""

import threading
from collections.abc import Callable
from typing import Final

MEASURED_EVERY_GRANTS: Final = 64
"""Grants (segments) after which the account is measured again: caches and the catalog grow without asking."""


class QuotaAccount:
    """Bytes taken of a quota. `measure` looks at every file. Thread safe."""

    def __init__(self, quota_bytes: int, measure: Callable[[], int]) -> None:
        self._quota_bytes = quota_bytes
        self._measure = measure
        self._lock = threading.Lock()
        self._used_bytes: int | None = None
        self._grants = 0

    def left_bytes(self) -> int:
        """What may still be taken, by the account."""
        with self._lock:
            return self._left()

    def grant(self, nbytes: int) -> bool:
        """Count `nbytes` that are about to be taken; False where they are too many, after measuring."""
        with self._lock:
            self._grants += 1
            if self._grants >= MEASURED_EVERY_GRANTS or self._left() < nbytes:
                self._used_bytes = None
            if self._left() < nbytes:
                return False
            self._used_bytes = (self._used_bytes or 0) + nbytes
            return True

    def moved(self, nbytes: int) -> None:
        """So much more (or less) is taken than before."""
        with self._lock:
            if self._used_bytes is not None:
                self._used_bytes = max(0, self._used_bytes + nbytes)

    def forget(self) -> None:
        """Measure before the next answer."""
        with self._lock:
            self._used_bytes = None

    def _left(self) -> int:
        if self._used_bytes is None:
            self._used_bytes = self._measure()
            self._grants = 0
        return max(0, self._quota_bytes - self._used_bytes)
