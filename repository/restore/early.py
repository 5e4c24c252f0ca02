"""Having what was restored written while the restore goes on: else the disk rests until all of it is in memory."""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from repository.errors import BallastError
from repository.restore.attributes import TargetError, failure
from repository.units import KIB, MIB

STEP_BYTES: Final = 64 * MIB
"""Written by files between two calls. Less to restore than this is never waited for."""
FILE_BYTES: Final = 4 * KIB
"""What a file counts for beside its bytes: its inode, its name."""
SLOW_S: Final = 4.0
"""A volume that took longer once is not asked again: it is busy anyway, and the end would have to wait for it."""


class EarlyWriting:
    """A thread that calls `sync` (of the destination's volume) now and then. A context manager, which ends it.

    Asking the kernel for each small file instead costs twice the time of writing it.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._wake = threading.Condition()
        self._pending_bytes = 0
        self._ended = False
        self._thread: threading.Thread | None = None
        self._failure: OSError | None = None

    def wrote(self, nbytes: int, files: int) -> None:
        """So much was written since the last call. Thread safe, never waits for the disk."""
        with self._wake:
            self._pending_bytes += nbytes + files * FILE_BYTES
            if self._pending_bytes < STEP_BYTES or self._ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="early-writing")
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """End it. Raises what the volume said, where it lost something: NoSpaceError, VolumeError."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            with contextlib.suppress(TargetError):  # a volume that has no such call
                raise failure(self._failure)

    def _run(self) -> None:
        while True:
            with self._wake:
                while self._pending_bytes < STEP_BYTES and not self._ended:
                    self._wake.wait()
                if self._ended:
                    return
                self._pending_bytes = 0
            began_s = time.monotonic()
            try:
                self._sync()
            except OSError as error:
                self._failure = error
            if self._failure is not None or time.monotonic() - began_s > SLOW_S:
                with self._wake:
                    self._ended = True
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(BallastError):
                self.close()
