"""A crew: forked processes that answer requests. For work whose many short calls would fight for one interpreter.

Owner of these rules: nobody is forked while another thread runs; a worker holds no descriptor but its end of a socket
(so neither the lock nor a file of the repository); it ends when the other end is closed, whoever dies; and signals that
end a command are for the parent alone. What it had in memory at the fork, a worker may read. What it does is the
caller's.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, NoReturn, Self, TypeVar

from repository.format.record import Buffer
from repository.trays import NO_TRAY, Trays

ASKED_AT_ONCE: Final = 2
"""Requests that a worker should have: one is at work, the next is there when it is done."""
DESCRIPTORS_MAX: Final = 250
"""Of one request; the kernel takes 253."""
PATIENCE_S: Final = 5.0
"""How long a worker may take to end before it is killed. It ends after its request, so within a fraction of that."""
CORES_MIN: Final = 2
SOCKET_BYTES: Final = 1 << 20
"""Wanted of the kernel for what is on its way; it gives what it may (400 KiB as a rule)."""

_FRAME: Final = struct.Struct("<III")
"""In front of a request or reply: its length in bytes, how many descriptors come with it, and the tray for the reply or
that it lies in (counted from 1; 0: none, it follows)."""
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_T = TypeVar("_T")
Work = Callable[[memoryview, Sequence[int]], Sequence[Buffer]]
"""`work(request, descriptors)`: the parts of the reply. Runs in a worker, which ends where this raises."""


class WorkerLostError(Exception):
    """A worker died, or said something that is no reply. What it was asked has to be done otherwise."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _threads() -> int:
    return threading.active_count()


def hire(wanted: int, work: Work, *, trays: int = 0, tray_bytes: int = 0) -> "Crew | None":
    """Fork `wanted` workers. None where that makes no sense, or is not safe: one processor, or other threads.

    Each has so many `trays` for replies of up to `tray_bytes`; all others go through its socket. Whoever has waited for
    a reply gives its tray back (`Asked.release`).
    """
    if wanted < 1 or cores() < CORES_MIN or _threads() > 1:
        return None
    workers: list[_Worker] = []
    for _ in range(wanted):
        try:
            workers.append(_fork(work, Trays(trays, tray_bytes)))
        except OSError:  # no memory, or too many processes: fewer will do
            break
    return Crew(workers) if workers else None


class Crew:
    """Workers, each with a few requests under way. Thread safe. A context manager, which closes it."""

    def __init__(self, workers: "list[_Worker]") -> None:
        self._workers = workers
        self._lock = threading.Lock()

    @property
    def workers(self) -> int:
        """How many there were in the beginning."""
        return len(self._workers)

    def pids(self) -> list[int]:
        """The processes, in the order of forking."""
        return [worker.pid for worker in self._workers]

    def ask(self, request: Sequence[Buffer], descriptors: Sequence[int] = ()) -> memoryview:
        """Have one worker answer; returns when it has. `descriptors` are lent to it as copies of its own.

        Meant to be called by ASKED_AT_ONCE threads for each worker, of a crew without trays. Raises WorkerLostError:
        nothing was answered.
        """
        return self.begin(request, descriptors).wait()

    def begin(self, request: Sequence[Buffer], descriptors: Sequence[int] = ()) -> "Asked":
        """As `ask`, for one thread that has several answers under way: it waits for them later, in the order in which
        it asked. What is under way for a worker has to fit into the socket (SOCKET_BYTES). Raises WorkerLostError."""
        with self._lock:
            living = [worker for worker in self._workers if not worker.lost]
            if not living:
                raise WorkerLostError("there is no worker left")
            worker = min(living, key=_asked)
            worker.asked += 1
            tray = worker.trays.take()
        return Asked(worker, tray, worker.begin(request, descriptors, tray), lambda: self._answered(worker))

    def least_asked(self) -> int:
        """Requests under way for the worker that has the fewest; 0 where none is left, which `begin` tells."""
        with self._lock:
            return min([worker.asked for worker in self._workers if not worker.lost], default=0)

    def _answered(self, worker: "_Worker") -> None:
        with self._lock:
            worker.asked -= 1

    def close(self) -> None:
        """Have all workers end, and wait for that. May be called twice; nobody may be asking."""
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.bury()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Asked:
    """A request under way."""

    __slots__ = ("_done", "_tray", "_wait", "_worker")

    def __init__(self, worker: "_Worker", tray: int, wait: Callable[[], memoryview], done: Callable[[], None]) -> None:
        self._worker = worker
        self._tray = tray
        self._wait = wait
        self._done = done

    def ready(self) -> bool:
        """Whether `wait` need not wait for work to be done. For one who waits in the order of asking."""
        return self._worker.has_word()

    def wait(self) -> memoryview:
        """The answer, when it has come. To be called once. Raises WorkerLostError."""
        try:
            return self._wait()
        finally:
            self._done()

    def release(self) -> None:
        """The answer is not needed any more: another one may take its place in memory."""
        self._worker.trays.give_back(self._tray)
        self._tray = NO_TRAY


class _Worker:
    """The parent's end of one worker. Replies come in the order of the requests."""

    def __init__(self, pid: int, channel: socket.socket, trays: Trays) -> None:
        self.pid = pid
        self.trays = trays
        self.lost = False
        self.asked = 0
        """Requests under way. Belongs to the crew."""
        self._channel = channel
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._sending = threading.Lock()
        self._last = threading.Event()
        self._last.set()
        self._gone = False

    def begin(self, request: Sequence[Buffer], descriptors: Sequence[int], tray: int) -> Callable[[], memoryview]:
        """Send. What is returned waits for those who asked before, and receives; it raises WorkerLostError."""
        mine = threading.Event()
        with self._sending:
            before, self._last = self._last, mine
            sent = self._try(lambda: _send(self._channel, request, descriptors, tray))
        return lambda: self._receive(before, mine, sent=sent is not None)

    def _receive(self, before: threading.Event, mine: threading.Event, *, sent: bool) -> memoryview:
        reply = None
        try:
            before.wait()
            if sent:
                reply = self._try(lambda: _reply(self._channel, self.trays))
        finally:
            if reply is None:
                self.lost = True
            mine.set()
        if reply is None:
            raise WorkerLostError("a worker died")
        return reply

    def has_word(self) -> bool:
        """Whether there is something to receive, or nothing will come any more."""
        return self.lost or bool(self._poll.poll(0))

    def _try(self, call: Callable[[], _T]) -> _T | None:
        if self.lost:
            return None
        try:
            return call()
        except (OSError, EOFError):
            return None

    def dismiss(self) -> None:
        """Tell it to end."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def bury(self) -> None:
        """Wait until it has ended."""
        if self._gone:
            return
        self._gone = True
        try:
            self._channel.settimeout(PATIENCE_S)
            while self._channel.recv(1 << 16):
                pass
        except OSError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _asked(worker: _Worker) -> int:
    return worker.asked


# --- both ends -----------------------------------------------------------------------------------------------------


def _send(channel: socket.socket, parts: Sequence[Buffer], descriptors: Sequence[int] = (), tray: int = NO_TRAY) -> int:
    """Send a frame; returns how many bytes are in it. Raises OSError."""
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    head = _FRAME.pack(len(body), len(descriptors), tray)
    if descriptors:
        socket.send_fds(channel, [head], list(descriptors))
    else:
        channel.sendall(head)
    channel.sendall(body)
    return len(body)


def _request(channel: socket.socket) -> tuple[memoryview, list[int], int]:
    """The next request, the descriptors that came with it, and the tray. Raises OSError, EOFError."""
    head, descriptors, _, _ = socket.recv_fds(channel, _FRAME.size, DESCRIPTORS_MAX)
    if len(head) < _FRAME.size:
        head += bytes(_fill(channel, _FRAME.size - len(head)))
    length, count, tray = _FRAME.unpack(head)
    if count != len(descriptors):
        raise EOFError
    return _fill(channel, length), descriptors, tray


def _answer(channel: socket.socket, parts: Sequence[Buffer], trays: Trays, tray: int) -> None:
    """Leave a reply in its tray, or send it. Raises OSError."""
    length = trays.fill(tray, parts)
    if length:
        channel.sendall(_FRAME.pack(length, 0, tray))
    else:
        _send(channel, parts)


def _reply(channel: socket.socket, trays: Trays) -> memoryview:
    """The next reply. Raises OSError, EOFError."""
    length, _, tray = _FRAME.unpack(_fill(channel, _FRAME.size))
    return trays.read(tray, length) if tray != NO_TRAY else _fill(channel, length)


def _fill(channel: socket.socket, length: int) -> memoryview:
    view = memoryview(bytearray(length))
    at = 0
    while at < length:
        # One call for all of it: each lets go of the interpreter, and waits for it afterwards.
        count = channel.recv_into(view[at:], 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError
        at += count
    return view


# --- the worker ----------------------------------------------------------------------------------------------------


def _fork(work: Work, trays: Trays) -> _Worker:
    """One more worker. Raises OSError."""
    ours, theirs = socket.socketpair()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until the worker has said what it does with them
    try:
        with warnings.catch_warnings():
            # From 3.12 on also for threads of libraries, which know how to be forked; Python's were looked for.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _live(theirs, work, trays)
    except OSError:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(pid, ours, trays)


def _live(channel: socket.socket, work: Work, trays: Trays) -> NoReturn:
    """The worker's life. It never comes back into the parent's code."""
    code = 1
    try:
        _settle(channel)
        while True:
            try:
                request, descriptors, tray = _request(channel)
            except (EOFError, OSError):
                code = 0
                break
            try:
                reply = work(request, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            _answer(channel, reply, trays, tray)
            del reply  # or its bytes would be in memory beside those of the next
    finally:
        os._exit(code)


def _settle(channel: socket.socket) -> None:
    """Let go of what is the parent's."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    mine = channel.fileno()
    os.closerange(3, mine)
    os.closerange(mine + 1, os.sysconf("SC_OPEN_MAX"))
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    gc.freeze()
