"""System calls that are counted, recorded or broken on purpose, for tests of storage."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from repository.format.record import Buffer
from repository.storage.calls import Calls


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that changed something, in order; `mark` operations are put in by tests."""

    name: str
    path: str
    offset: int = 0
    length: int = 0
    content: bytes = b""
    target: str = ""
    mtime_ns: int = 0
    """The file's, after a change of its content."""


class RecordingCalls(Calls):
    """Does everything for real and writes down what changed the volume. Not for several threads."""

    def __init__(self) -> None:
        self.log: list[Operation] = []
        self.counts: Counter[str] = Counter()
        self._paths: dict[int, str] = {}

    def mark(self, text: str) -> None:
        """Note that the program got here."""
        self.log.append(Operation("mark", text))

    def _note(self, name: str, path: str) -> None:
        self.counts[name] += 1
        self.log.append(Operation(name, path))

    def _note_change(self, name: str, fd: int, offset: int, length: int, content: bytes = b"") -> None:
        self.counts[name] += 1
        mtime_ns = os.fstat(fd).st_mtime_ns
        self.log.append(Operation(name, self._paths[fd], offset, length, content, mtime_ns=mtime_ns))

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self.counts["open"] += 1
        if flags & os.O_CREAT:
            self.log.append(Operation("create", path, mtime_ns=os.fstat(fd).st_mtime_ns))
        self._paths[fd] = path
        return fd

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self.counts["pread"] += 1
        return super().pread(fd, length, offset)

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        written = super().pwrite(fd, buffer, offset)
        self._note_change("pwrite", fd, offset, written, bytes(buffer)[:written])
        return written

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        written = super().pwritev(fd, buffers, offset)
        self._note_change("pwritev", fd, offset, written, b"".join(buffers)[:written])
        return written

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        super().fallocate(fd, offset, length)
        self._note_change("fallocate", fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        super().punch(fd, offset, length)
        self._note_change("punch", fd, offset, length)

    def ftruncate(self, fd: int, length: int) -> None:
        super().ftruncate(fd, length)
        self._note_change("ftruncate", fd, 0, length)

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self._note("fdatasync", self._paths[fd])

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self._note("fsync", self._paths[fd])

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._note("unlink", path)

    def replace(self, source: str, target: str) -> None:
        super().replace(source, target)
        self.counts["replace"] += 1
        self.log.append(Operation("replace", source, target=target))

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        super().mkdir(path, mode)
        self._note("mkdir", path)


@dataclass(slots=True)
class Fault:
    """The `nth` call (from 1) of `name` on a path that contains `path` fails with `errno`, and so do the next
    `times - 1`; a `pwritev` with `short` writes that many bytes instead. `fired` counts."""

    name: str
    errno: int = 0
    nth: int = 1
    times: int = 1
    path: str = ""
    short: int | None = None
    seen: int = 0
    fired: int = 0


@dataclass(slots=True)
class FaultyCalls(Calls):
    """Breaks planned calls. `check` fails a test whose faults never happened."""

    faults: list[Fault] = field(default_factory=list)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    """What to run just before each call of a name, e.g. to let another thread get ahead."""
    _paths: dict[int, str] = field(default_factory=dict)

    def check(self) -> None:
        idle = [fault for fault in self.faults if not fault.fired]
        assert not idle, f"planned faults that never fired: {idle}"

    def _meet(self, name: str, path: str) -> Fault | None:
        hook = self.before.get(name)
        if hook is not None:
            hook()
        for fault in self.faults:
            if fault.name == name and fault.path in path:
                fault.seen += 1
                if fault.nth <= fault.seen < fault.nth + fault.times:
                    fault.fired += 1
                    if fault.short is None:
                        raise OSError(fault.errno, os.strerror(fault.errno))
                    return fault
        return None

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._meet("create" if flags & os.O_CREAT else "open", path)
        fd = Calls.open(self, path, flags, mode)
        self._paths[fd] = path
        return fd

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        fault = self._meet("pread", self._paths[fd])
        return Calls.pread(self, fd, length if fault is None else fault.short or 0, offset)

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        fault = self._meet("pwrite", self._paths[fd])
        return Calls.pwrite(self, fd, buffer if fault is None else buffer[: fault.short], offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        fault = self._meet("pwritev", self._paths[fd])
        if fault is not None:
            return Calls.pwrite(self, fd, b"".join(buffers)[: fault.short], offset)
        return Calls.pwritev(self, fd, buffers, offset)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._meet("fallocate", self._paths[fd])
        Calls.fallocate(self, fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._meet("punch", self._paths[fd])
        Calls.punch(self, fd, offset, length)

    def ftruncate(self, fd: int, length: int) -> None:
        self._meet("ftruncate", self._paths[fd])
        Calls.ftruncate(self, fd, length)

    def fdatasync(self, fd: int) -> None:
        self._meet("fdatasync", self._paths[fd])
        Calls.fdatasync(self, fd)

    def fsync(self, fd: int) -> None:
        self._meet("fsync", self._paths[fd])
        Calls.fsync(self, fd)

    def unlink(self, path: str) -> None:
        self._meet("unlink", path)
        Calls.unlink(self, path)

    def replace(self, source: str, target: str) -> None:
        self._meet("replace", source)
        Calls.replace(self, source, target)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._meet("mkdir", path)
        Calls.mkdir(self, path, mode)


class SmallVolumeCalls(Calls):
    """A volume whose files may have `room_bytes` allocated in all: fallocate beyond it is ENOSPC. Truncating and
    unlinking give back. Writes are not counted: this program writes into allocated room only."""

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        self._allocated: dict[str, int] = {}
        self._paths: dict[int, str] = {}

    def used_bytes(self) -> int:
        return sum(self._allocated.values())

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        path = self._paths[fd]
        more = offset + length - self._allocated.get(path, 0)
        if self.used_bytes() + more > self.room_bytes:
            raise OSError(28, os.strerror(28))
        super().fallocate(fd, offset, length)
        self._allocated[path] = offset + length

    def ftruncate(self, fd: int, length: int) -> None:
        super().ftruncate(fd, length)
        path = self._paths[fd]
        self._allocated[path] = min(self._allocated.get(path, 0), length)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._allocated.pop(path, None)
