"""The socket through which other commands change a repository while it is mounted.

A Unix socket in the runtime directory, mode 0600; both ends look at the other's uid (SO_PEERCRED). One request, one
answer, each a line of JSON: `{"verb": ..., ...}` and `{"ok": true, ...}` or `{"ok": false, "error": ..., "message":
...}`. The socket's name is the device and inode of the repository's `lock` file: the same through every path and bind
mount, and never that of a copy.
"""

import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import trio

from fusefs.wire import Fields, Json, decode_line, encode_line, error_fields, error_from
from repository.errors import BallastError, UsageError, VolumeError

_log = logging.getLogger(__name__)

REQUEST_BYTES_MAX: Final = 65_536
"""A verb, a name or two, some options."""
REPLY_BYTES_MAX: Final = 16 * 1024 * 1024
"""A status document, the list of what a collection freed."""
CONNECTIONS_MAX: Final = 16
"""Commands at the same time; the next waits in the kernel's queue."""
REQUEST_TIMEOUT_S: Final = 10.0
"""From connecting to the end of the request's line: a silent client gives its place back."""
REPLY_TIMEOUT_S: Final = 10.0
"""For an answer to be taken: a client that doesn't read gives its place back, too."""
_PEER: Final = struct.Struct("3i")

Handler = Callable[[str, Fields], Awaitable[dict[str, Json]]]
"""Carries out a verb; raises BallastError."""


class NotMountedError(BallastError):
    """No mount of ours serves this repository (or this mountpoint)."""


def runtime_directory() -> Path:
    """Where this user's sockets live: $XDG_RUNTIME_DIR/ballast, /run/ballast for root, else a private one in /tmp."""
    uid = os.geteuid()
    configured = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == 0:
        return Path("/run/ballast")
    if os.path.isabs(configured):
        return Path(configured) / "ballast"
    usual = Path(f"/run/user/{uid}")
    return usual / "ballast" if usual.is_dir() else Path(f"/tmp/ballast-{uid}")


def prepare_runtime_directory() -> Path:
    """The runtime directory, made if need be. Raises VolumeError if it belongs to somebody else."""
    directory = runtime_directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        sentence = f"The runtime directory {directory} cannot be made: {error.strerror}."
        raise VolumeError(sentence, error.errno or 0) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise VolumeError(f"{directory} is not a private directory of yours; remove it or set XDG_RUNTIME_DIR.")
    return directory


def repository_socket(repository: Path) -> Path:
    """The socket of the mount that writes `repository`. Raises NotMountedError where there is no such repository."""
    try:
        found = os.stat(repository / "lock")
    except OSError:
        raise NotMountedError(f"{repository} is not mounted.") from None
    return runtime_directory() / f"repository-{found.st_dev:x}-{found.st_ino:x}.socket"


def mount_socket(device: tuple[int, int]) -> Path:
    """The socket of the mount whose device number is (major, minor), writable or not."""
    return runtime_directory() / f"mount-{device[0]}-{device[1]}.socket"


def request(
    repository: str | os.PathLike[str], verb: str, fields: Fields | None = None, *, timeout_s: float | None = None
) -> dict[str, Json]:
    """Asks the mount of `repository` to carry out `verb`. Raises NotMountedError where none serves it, and what the
    verb raises."""
    return ask(repository_socket(Path(repository)), verb, fields or {}, timeout_s=timeout_s)


def ask(path: Path, verb: str, fields: Fields, *, timeout_s: float | None = None) -> dict[str, Json]:
    """The answer of the mount behind the socket `path`.

    Waits for as long as the work takes; with `timeout_s` BallastError is raised when nothing came for so long.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except PermissionError:
            raise NotMountedError("The repository is mounted by another user; ask that user, or root.") from None
        except OSError:
            raise NotMountedError("The repository is not mounted.") from None
        if _peer_uid(connection) not in (os.geteuid(), 0):
            raise NotMountedError(f"Somebody else listens on {path}; remove it.")
        try:
            connection.sendall(encode_line({**fields, "verb": verb}))
            with connection.makefile("rb") as answer:
                line = answer.readline(REPLY_BYTES_MAX)
        except TimeoutError:
            raise BallastError(f"The mount did not answer within {timeout_s} s.") from None
        except OSError as error:
            raise BallastError(f"The mount broke off the request: {error.strerror}.") from None
    if not line.endswith(b"\n"):
        raise BallastError("The mount ended before it answered; its log may say why.")
    reply = decode_line(line)
    if reply.pop("ok", False) is not True:
        raise error_from(reply)
    return reply


def _peer_uid(connection: socket.socket | trio.socket.SocketType) -> int:
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


class ControlServer:
    """Listens for requests until its nursery is cancelled."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._places = trio.CapacityLimiter(CONNECTIONS_MAX)
        self._conversations = 0
        self._idle = trio.lowlevel.ParkingLot()

    async def serve(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accepts connections on `path`, which belongs to this process alone: whoever calls holds the repository's
        lock or made the mount. Removes the socket in the end."""
        with _listening(path) as listening:
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    await self._places.acquire_on_behalf_of(token := object())
                    connection, _ = await listening.accept()
                    nursery.start_soon(self._converse, connection, token)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._conversations > 0

    async def wait_idle(self) -> None:
        """Returns when nobody waits for an answer."""
        while self.busy:
            await self._idle.park()

    async def _converse(self, connection: trio.socket.SocketType, token: object) -> None:
        """One request and its answer. Nothing that a client does may end the mount."""
        self._conversations += 1
        try:
            with connection:
                stream = trio.SocketStream(connection)
                reply = await self._answer(stream, connection)
                with trio.fail_after(REPLY_TIMEOUT_S):
                    await stream.send_all(encode_line(reply))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError) as error:
            _log.info("control.broken", extra={"error": str(error)})
        except Exception:
            _log.exception("control.crashed")
        finally:
            self._places.release_on_behalf_of(token)
            self._conversations -= 1
            if not self._conversations:
                self._idle.unpark_all()

    async def _answer(self, stream: trio.SocketStream, connection: trio.socket.SocketType) -> dict[str, Json]:
        if _peer_uid(connection) not in (os.geteuid(), 0):
            return {"ok": False, **error_fields(UsageError("This mount belongs to another user."))}
        with trio.fail_after(REQUEST_TIMEOUT_S):
            line = await _read_line(stream)
        try:
            fields = decode_line(line)
            verb = str(fields.pop("verb", ""))
        except ValueError:
            return {"ok": False, **error_fields(UsageError("That is not a request."))}
        try:
            return {"ok": True, **await self._handler(verb, fields)}
        except BallastError as error:
            return {"ok": False, **error_fields(error)}
        except Exception as error:
            _log.exception("control.failed", extra={"verb": verb})
            return {"ok": False, **error_fields(BallastError(f"The mount failed to carry out '{verb}': {error!r}."))}


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[trio.socket.SocketType]:
    """A listening socket at `path`, in place of what a dead process left there."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as bound:
        bound.bind(str(path))
        path.chmod(0o600)
        bound.listen(CONNECTIONS_MAX)
        mine = path.stat().st_ino
        with trio.socket.from_stdlib_socket(bound) as listening:
            try:
                yield listening
            finally:
                with contextlib.suppress(OSError):
                    if path.stat().st_ino == mine:
                        path.unlink()


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if len(line) > REQUEST_BYTES_MAX:
            raise OSError("request too long")
        more = await stream.receive_some(4096)
        if not more:
            raise OSError("request cut short")
        line += more
    return line
