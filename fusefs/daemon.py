"""Going into the background once there is something to come back to.

The foreground process stays until the background one says *ready* or *failed* through a pipe, prints what it is told,
and exits with the code that it is given. Forks happen before any thread, any trio and any open repository.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol

from fusefs.wire import Fields, decode_line, encode_line, error_fields, error_from
from repository.errors import BallastError, InterruptedByUserError

_log = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 65_536
"""One message on the pipe: a sentence; bounded against a confused writer."""


class Report(Protocol):
    """How a service tells its starter how it goes."""

    def say(self, text: str) -> None:
        """A line for the user."""
        ...

    def ready(self) -> None:
        """It serves now."""
        ...


class ForegroundReport:
    """With --foreground: lines go to stdout, readiness to systemd where that asks for it (NOTIFY_SOCKET)."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def ready(self) -> None:
        notify_systemd("READY=1")


class PipeReport:
    """From the background: both go through the pipe; after `ready` nobody listens any more."""

    def __init__(self, pipe: int) -> None:
        self._pipe: int | None = pipe
        self._send({"pid": os.getpid()})

    def say(self, text: str) -> None:
        self._send({"say": text})

    def ready(self) -> None:
        self._send({"ready": True})
        self.close()

    def failed(self, error: BallastError) -> None:
        """It will never serve, because of `error`."""
        self._send(error_fields(error))
        self.close()

    def close(self) -> None:
        """Ends the conversation; idempotent."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _send(self, fields: Fields) -> None:
        if self._pipe is None:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, encode_line(fields))


def run_in_background(service: Callable[[Report], None]) -> None:
    """Runs `service` in a detached process; returns when that is ready. Raises the error that it failed with."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _detach()
        _serve_and_exit(service, PipeReport(writing))
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        _relay(pipe)


def _detach() -> None:
    """A session of its own, no terminal ever, no directory held, standard streams to nowhere."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _serve_and_exit(service: Callable[[Report], None], report: PipeReport) -> None:
    """Never returns: nothing of the parent's stack may run twice."""
    code = 1
    try:
        service(report)
        code = 0
    except BallastError as error:
        _log.error("mount.failed", extra={"error": str(error)})
        report.failed(error)
        code = error.exit_code
    except BaseException as error:
        _log.exception("mount.crashed")
        report.failed(BallastError(f"The mount ended by an internal error: {error!r}."))
    finally:
        logging.shutdown()
        os._exit(code)


def _relay(pipe: BinaryIO) -> None:
    """Prints what the background process says until it is ready. Raises what it failed with."""
    pid = 0
    try:
        while line := pipe.readline(LINE_BYTES_MAX):
            fields = decode_line(line)
            match fields:
                case {"pid": int(number)}:
                    pid = number
                case {"say": str(text)}:
                    print(text, flush=True)
                case {"ready": True}:
                    return
                case _:
                    raise error_from(fields)
    except KeyboardInterrupt:
        if pid:
            os.kill(pid, signal.SIGTERM)
        raise InterruptedByUserError("interrupted before the mount was ready") from None
    raise BallastError("The mount ended before it was ready, without a word; its log may say why.")


def notify_systemd(state: str) -> None:
    """Tells a service manager that started us with a notification socket; nothing otherwise."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            _log.warning("systemd.unreachable", extra={"error": str(error)})
