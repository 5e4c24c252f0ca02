"""What goes on in the background of a full disk: the look every five seconds, what a climb left to do, collecting what
was deleted, and DISK-IS-FULL.txt.

Loop thread only, but for `_look`, `_finish` and `_render`: these run on threads of their own kind, one at a time, so
that neither reader nor job waits for them, and they alone change the text. Nothing is held across an `await`.
"""

import logging
from collections.abc import Callable
from typing import Final

import trio

from fusefs.workers import Workers
from repository.errors import BallastError, VolumeError
from repository.policy.collect import Safety
from repository.recovery import Mode
from repository.repo import Repository
from repository.units import NS_PER_S

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
"""How long the way back is open at most before it is taken."""
TEXT_STANDS_S: Final = 60.0
"""How old its figures may be, as long as no snapshot changed: counting them reads the catalog."""

FIRST_TEXT: Final = b"""\
The disk is full, and Ballast has nothing left that it may give up by itself.

Nothing is lost. Everything that was stored can be read; removing and renaming works.
Which snapshots would free most is being looked up: read this again in a moment.
"""
"""Until a thread has looked."""
HINT: Final = """
In this mount, deleting one is:

    rmdir "{mountpoint}/snapshots/NAME"
"""


class Monitor:
    """Looks after the room of one writable mount."""

    def __init__(self, repository: Repository, workers: Workers, mountpoint: str) -> None:
        self._repository: Final = repository
        self._recovery: Final = repository.recovery
        self._workers: Final = workers
        self._mountpoint: Final = mountpoint
        self._wanted = trio.Event()
        self._deleted = False
        self._failures: dict[str, str] = {}
        """By what was tried: how it failed the last time."""
        self._text = b""
        self._text_serial = -1
        self._text_s = float("-inf")
        self._token: trio.lowlevel.TrioToken | None = None

    # --- what others tell and ask -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something happened: look now, and finish what a climb left to do."""
        self._wanted.set()

    def deleted(self) -> None:
        """A snapshot was deleted, or a removal in `live` committed: while room is short, collect at once."""
        self._deleted = True
        self._wanted.set()

    def disk_is_full(self) -> bytes | None:
        """What DISK-IS-FULL.txt says; None where there is none, because the disk is not full."""
        return (self._text or FIRST_TEXT) if self._recovery.mode is Mode.READ_ONLY else None

    # --- the task -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until cancelled; what a thread has begun is finished first."""
        self._token = trio.lowlevel.current_trio_token()
        self._recovery.on_change = self._told
        try:
            while True:
                await self._try("look", self._look)
                if self._recovery.unfinished:
                    await self._try("finish", self._finish)
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._wanted.wait()
                self._wanted = trio.Event()
                if self._deleted:
                    self._deleted = False
                    failed = not await self._try("collect", self._recovery.deleted)
                    self._deleted |= failed
        finally:
            self._recovery.on_change = None

    def _told(self, mode: Mode) -> None:
        """A new mode, on whatever thread found it."""
        assert self._token is not None
        self._token.run_sync_soon(self.wake, idempotent=True)

    def _look(self) -> None:
        """On a worker thread."""
        mode = self._recovery.look()
        if self._recovery.take_due_collection() and mode is Mode.NORMAL:
            report = self._repository.gc(safety=Safety.FULL)
            _log.info("space.critical", extra={"freed_bytes": report.freed_bytes})
        if mode is Mode.READ_ONLY:
            self._render()
        else:
            self._text, self._text_serial = b"", -1

    def _finish(self) -> None:
        """On a worker thread."""
        self._recovery.finish()
        self._repository.store.headroom.refill(allocate=True)

    def _render(self) -> None:
        """On a worker thread."""
        serial, now_s = self._repository.catalog.serial, self._repository.clock.now_ns() / NS_PER_S
        if serial == self._text_serial and 0 <= now_s - self._text_s < TEXT_STANDS_S:
            return
        text = self._recovery.refused_text()
        if text is not None:
            self._text = (text + HINT.format(mountpoint=self._mountpoint)).encode(errors="surrogateescape")
            self._text_serial, self._text_s = serial, now_s

    async def _try(self, what: str, work: Callable[[], object]) -> bool:
        """By itself: who would be told of an error? The log, once as long as it stays the same. Whether it worked."""
        try:
            await self._workers.recover(work)
        except BallastError as error:
            ended = isinstance(error, VolumeError) and self._repository.store.failed
            if not ended and self._failures.get(what) != str(error):
                _log.warning("monitor.failed", extra={"what": what, "error": str(error)})
            self._failures[what] = str(error)
            return False
        except Exception:
            _log.exception("monitor.crashed", extra={"what": what})
            return True  # the same would only crash again
        self._failures.pop(what, None)
        return True
