"""The life of a mount: start, serve, end. What it serves is composed elsewhere (`mount.py`).

Owner of the order of ending, written down in DESIGN.md: stop admitting, drain, commit, unmount, close. Whoever asks
for the end (a signal, `ballast umount`, somebody's `umount`) gets the same one; it begins once and is never cut
short.
"""

import logging
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import pyfuse3
import trio

from fusefs import control, mountpoints, quickloop
from fusefs.answers import Answers
from fusefs.daemon import Report
from fusefs.handshake import Handshake
from fusefs.handshake import possible as handshakes_possible
from fusefs.signals import watch_signals
from fusefs.spaceguard import FUSE_TASKS
from fusefs.wire import Fields, Json
from fusefs.workers import Workers
from repository.errors import BallastError, BusyError, UsageError, VolumeError

_log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 1024
"""Read requests of 1 MiB instead of 128 KiB; larger ones the kernel doesn't send."""
LAST_WORDS_S: Final = 10.0
"""Time for answers to whoever asked for the end, after everything is closed."""

CONNECTION_END_S: Final = 5.0
"""After an unmount the kernel ends the connection at once, unless a container (a mount namespace made meanwhile) has a
copy of the mount: that is not waited for."""

Verb = Callable[[Fields], Awaitable[dict[str, Json]]]
Task = Callable[[], Awaitable[None]]


class Session(Protocol):
    """The writable part of a mount, as far as its end goes."""

    async def stop(self) -> None:
        """Admits nothing more, waits for what is under way, commits. Raises BallastError where that cannot be made
        durable."""
        ...


@dataclass(frozen=True, slots=True)
class Composition:
    """What is served. `tasks` run until cancelled; `hurry` tells long work to come to an end soon; `close` (worker
    thread) lets go of the repository."""

    operations: pyfuse3.Operations
    answers: Answers
    close: Callable[[], None]
    hurry: Callable[[], None] | None = None
    session: Session | None = None
    tasks: Sequence[Task] = ()
    verbs: Mapping[str, Verb] = field(default_factory=dict)
    repository_socket: bool = False
    """Whether changes of the repository go through this mount: it then listens under the repository's name too."""


@dataclass(frozen=True, slots=True)
class MountPlace:
    """Where and how to mount; paths absolute."""

    repository: str
    mountpoint: str
    read_only: bool
    allow_other: bool

    def options(self) -> set[str]:
        """pyfuse3's mount options."""
        options = {"default_permissions", "subtype=ballast", f"fsname={_plain_name(self.repository)}"}
        if self.read_only:
            options.add("ro")
        if self.allow_other:
            options.add("allow_other")
        return options


def _plain_name(repository: str) -> str:
    """The repository's path as `df` shows it; libfuse takes options in ASCII, and a comma would begin the next one."""
    return repository if repository.isascii() and not set(repository) & set(",\\") else "ballast"


Compose = Callable[[trio.Nursery], Awaitable[Composition]]
"""Opens the repository and puts together what is served; tasks that it starts live in the nursery. Raises
BallastError."""


class _Attempt:
    """To unmount, on a thread."""

    def __init__(self) -> None:
        self.over: Final = trio.Event()
        self.failure: BallastError | None = None


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


class Service:
    """One mount, once."""

    def __init__(self, place: MountPlace, workers: Workers) -> None:
        self._place = place
        self._workers = workers
        self._ending = trio.Event()
        self._mounted = False
        self._initialised = False
        """Whether pyfuse3 has a session, which must be closed."""
        self._serving = False
        self._fuse_ended = trio.Event()
        self._tasks_scope = trio.CancelScope()
        self._tasks_ended = trio.Event()
        self._ended = trio.Event()
        self._failure: BallastError | None = None
        self._outer: trio.Nursery | None = None
        """Lives until everything is closed and told."""
        self._server = control.ControlServer(self._carry_out)
        self._verbs: Mapping[str, Verb] = {}

    async def run(self, compose: Compose, report: Report) -> None:
        """Mounts, serves until the end is asked for, and ends. Raises what could not be begun or made durable."""
        parts: Composition | None = None
        async with trio.open_nursery() as outer:
            self._outer = outer
            try:
                async with trio.open_nursery() as inner:
                    try:
                        parts = await compose(inner)
                        await self._serve(outer, parts, report)
                    except BallastError as error:
                        self._failure = error
                    finally:
                        with trio.CancelScope(shield=True):
                            await self._stop(parts)
                        inner.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await self._close(parts)
                outer.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, nursery: trio.Nursery, parts: Composition, report: Report) -> None:
        device = self._mount(parts)
        await self._start(nursery, parts, device)
        report.ready()
        _log.info("mount.ready", extra={"mountpoint": self._place.mountpoint, "read_only": self._place.read_only})
        await self._ending.wait()

    def end(self, reason: str) -> None:
        """Asks for the end; further calls change nothing."""
        if not self._ending.is_set():
            _log.info("mount.ending", extra={"reason": reason})
            self._ending.set()

    def _mount(self, parts: Composition) -> tuple[int, int]:
        """Mounts and returns the mount's device number."""
        options = self._place.options()
        possible = handshakes_possible()
        handshake = Handshake(self._place.mountpoint, options, parts.answers) if possible else None
        self._mounted = handshake is not None
        try:
            quickloop.install(handshake, parts.answers, self._workers.is_idle)
            pyfuse3.init(parts.operations, self._place.mountpoint if handshake is None else handshake.path, options)
        except RuntimeError:
            raise VolumeError(f"The kernel refused to mount on {self._place.mountpoint}.") from None
        self._mounted = self._initialised = True
        mounted = mountpoints.mounted_at(self._place.mountpoint)
        if mounted is None:
            raise VolumeError(f"{self._place.mountpoint} vanished while it was being mounted.")
        return mounted.device

    async def _start(self, nursery: trio.Nursery, parts: Composition, device: tuple[int, int]) -> None:
        self._verbs = parts.verbs
        await nursery.start(watch_signals, self.end)
        directory = control.prepare_runtime_directory()
        _log.debug("control.directory", extra={"path": str(directory)})
        await nursery.start(self._server.serve, control.mount_socket(device))
        if parts.repository_socket:
            await nursery.start(self._server.serve, control.repository_socket(Path(self._place.repository)))
        self._serving = True
        nursery.start_soon(self._serve_fuse)
        nursery.start_soon(self._raise_read_ahead, device)
        nursery.start_soon(self._run_tasks, parts.tasks)

    async def _run_tasks(self, tasks: Sequence[Task]) -> None:
        try:
            with self._tasks_scope:
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(task)
        except Exception:
            _log.exception("mount.task_crashed")
            self._failure = self._failure or BallastError("A part of the mount failed; its log says which.")
            self.end("crash")
        finally:
            self._tasks_ended.set()

    async def _serve_fuse(self) -> None:
        try:
            await pyfuse3.main(max_tasks=FUSE_TASKS)
        except Exception as error:
            _log.exception("mount.fuse_crashed")
            self._failure = self._failure or BallastError(f"The connection to the kernel broke: {error!r}.")
        finally:
            self._fuse_ended.set()
            self.end("unmounted")

    async def _raise_read_ahead(self, device: tuple[int, int]) -> None:
        """After the first request: the kernel sets its own value when it has shaken hands with us.

        Another process makes that request. A thread of ours that waits for our own answer cannot be killed before it
        comes: after `kill -9` it would hold the connection and the repository's lock for ever.
        """
        ask = ("stat", "--file-system", self._place.mountpoint)
        try:
            done = await self._workers.slow(partial(subprocess.run, ask, capture_output=True, check=False))
        except OSError:  # there is no such program: it is a matter of speed only
            return
        if done.returncode:
            return
        raised = mountpoints.raise_read_ahead(device, READ_AHEAD_KIB)
        _log.debug("mount.read_ahead", extra={"raised": raised})

    async def _carry_out(self, verb: str, fields: Fields) -> dict[str, Json]:
        """A request from the control socket."""
        if verb == "shutdown":
            return await self._shutdown_verb(force=fields.get("force") is True)
        handler = self._verbs.get(verb)
        if handler is None:
            raise UsageError(f"This mount does not know how to '{verb}'.")
        return await handler(fields)

    async def _shutdown_verb(self, *, force: bool) -> dict[str, Json]:
        """Unmounts and answers when everything is closed. BusyError while the mount is in use, unless forced."""
        if not force and not self._fuse_ended.is_set():
            await self._taken_away()
        self.end("shutdown")
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return {}

    async def _taken_away(self) -> None:
        """Unmounts; returns as soon as the kernel has ended the connection. Raises BusyError.

        `fusermount3` returns later, seconds later on a loaded machine: between the two the kernel drops the pages and
        inodes that it had cached of the mount. Whoever asked for the end need not wait for that.
        """
        assert self._outer is not None
        attempt = _Attempt()
        self._outer.start_soon(self._attempt_unmount, attempt)
        async with trio.open_nursery() as nursery:
            for event in (attempt.over, self._fuse_ended):
                nursery.start_soon(_cancel_after, event, nursery.cancel_scope)
        if attempt.failure is not None:
            raise attempt.failure

    async def _attempt_unmount(self, attempt: _Attempt) -> None:
        """Never abandoned: this process ends after it."""
        try:
            await self._workers.slow(mountpoints.unmount, self._place.mountpoint)
        except BallastError as error:
            attempt.failure = error
        finally:
            attempt.over.set()

    async def _stop(self, parts: Composition | None) -> None:
        """Admits nothing more, drains, commits, unmounts. Every step is tried, whatever became of the one before."""
        if self._serving:
            await self._unmount_if_idle()
            if parts is not None and parts.hurry is not None:
                parts.hurry()
            self._tasks_scope.cancel()
            await self._tasks_ended.wait()
        if parts is not None and parts.session is not None:
            await self._try("commit", parts.session.stop)
        if self._serving and not self._fuse_ended.is_set():
            pyfuse3.terminate()
            await self._fuse_ended.wait()
        if parts is not None:
            parts.answers.close()
        if self._initialised:
            pyfuse3.close(unmount=True)
        if self._mounted and mountpoints.mounted_at(self._place.mountpoint) is not None:
            await self._try("unmount", self._unmount_lazily)

    async def _close(self, parts: Composition | None) -> None:
        """Lets go of the repository, which nobody reads any more, and tells whoever waits for that."""
        if parts is not None:
            await self._try("close", partial(self._workers.slow, parts.close))
        self._ended.set()
        with trio.move_on_after(LAST_WORDS_S):
            await self._server.wait_idle()
        _log.info("mount.ended", extra={"mountpoint": self._place.mountpoint})

    async def _try(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """One step of the end; the first failure is what the end will be remembered for."""
        try:
            await step()
        except BallastError as error:
            _log.error("mount.end_failed", extra={"step": what, "error": str(error)})
            self._failure = self._failure or error
        except Exception as error:
            _log.exception("mount.end_crashed", extra={"step": what})
            self._failure = self._failure or BallastError(f"Ending the mount failed ({what}): {error!r}.")

    async def _unmount_lazily(self) -> None:
        """After the connection was closed: what is still in use gets ENOTCONN. pyfuse3 knows of no mountpoint then."""
        await self._workers.slow(partial(mountpoints.unmount, self._place.mountpoint, lazy=True))

    async def _unmount_if_idle(self) -> None:
        """Unmounts if nobody uses the mount, while it still answers: the kernel then hands back everything in order."""
        if self._fuse_ended.is_set():
            return
        try:
            await self._workers.slow(mountpoints.unmount, self._place.mountpoint)
        except BusyError:
            _log.info("mount.busy", extra={"users": mountpoints.busy_sentence(self._place.mountpoint)})
        except BallastError as error:
            _log.warning("mount.unmount_failed", extra={"error": str(error)})
        else:
            with trio.move_on_after(CONNECTION_END_S):
                await self._fuse_ended.wait()
