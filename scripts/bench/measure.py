"""What a step costs: wall time, CPU and peak memory over every process that takes part.

Owner of: a measured number counts the processes that a step starts and the daemons that serve it, and
nothing else.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from bench import memory

STDERR_SHOWN_CHARACTERS: Final = 300
COMMAND_DEADLINE_S: Final = 1200.0
"""After which a command is killed: one that hangs must not take the other figures with it."""
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


class BenchError(Exception):
    """A step could not be measured. The message says which command failed, and how."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of one step.

    `wall_s` is the sum of `parts_s`; `cpu_s` user and system time of all processes; `peak_bytes` the largest
    sum seen of what they take in memory, in which a page that they share counts once. `resident`: not there, where
    only resident sizes were to be had (`memory.Taken`).
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    parts_s: Mapping[str, float]
    resident: bool = False


def _cpu_s(pids: Sequence[int]) -> float:
    """User and system time of daemons, with that of children which they waited for."""
    total_s = 0.0
    for pid in pids:
        for one in memory.tree(pid):
            with suppress(psutil.Error):
                times = psutil.Process(one).cpu_times()
                total_s += times.user + times.system
    return total_s


class Meter:
    """Measures one step: a context manager around its parts.

    `daemons` are process ids that were there before and serve the step (a mount); their memory counts in
    full, of their CPU time only what falls into the step.
    """

    def __init__(self, daemons: Sequence[int] = ()) -> None:
        self._daemons = tuple(daemons)
        self._sampler = memory.Sampler(set(daemons))
        self._parts_s: dict[str, float] = {}
        self._children_cpu_s = 0.0
        self._daemons_cpu_s = 0.0
        self._finished = False

    def __enter__(self) -> Self:
        self._daemons_cpu_s = -_cpu_s(self._daemons)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.stop()
        self._daemons_cpu_s += _cpu_s(self._daemons)
        self._finished = True

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what this process does itself (an fsync, a mkdir) as the part `name`."""
        start_s = time.perf_counter()
        before = os.times()
        try:
            yield
        finally:
            after = os.times()
            self._add(name, time.perf_counter() - start_s)
            self._children_cpu_s += after.user - before.user + after.system - before.system

    def run(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Runs `command` and times it as the part `name`. Raises BenchError if it fails."""
        with tempfile.TemporaryFile() as stderr:
            start_s = time.perf_counter()
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **(env or {})},
                cwd=cwd,
            )
            self._sampler.roots.add(process.pid)
            deadline = threading.Timer(COMMAND_DEADLINE_S, os.kill, [process.pid, signal.SIGKILL])
            deadline.start()
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                deadline.cancel()
            self._add(name, time.perf_counter() - start_s)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._sampler.roots.discard(process.pid)
            self._children_cpu_s += usage.ru_utime + usage.ru_stime
            if process.returncode != 0:
                stderr.seek(0)
                said = stderr.read().decode(errors="replace").strip()[-STDERR_SHOWN_CHARACTERS:]
                raise BenchError(f"{Path(command[0]).name} {command[1]} ended with {process.returncode}: {said}")

    def _add(self, name: str, seconds: float) -> None:
        self._parts_s[name] = self._parts_s.get(name, 0.0) + seconds

    def usage(self) -> Usage:
        """The sum of it all. Only after the `with`."""
        if not self._finished:
            raise BenchError("a meter was read before its step had ended")
        return Usage(
            wall_s=sum(self._parts_s.values()),
            cpu_s=self._children_cpu_s + self._daemons_cpu_s,
            peak_bytes=self._sampler.peak.nbytes,
            parts_s=dict(self._parts_s),
            resident=self._sampler.peak.resident,
        )


def memory_bytes(pids: Sequence[int]) -> int:
    """What `pids` and their children take in memory now, what they share counted once."""
    return memory.taken([one for pid in pids for one in memory.tree(pid)]).nbytes


def disk_read_bytes(pids: Sequence[int]) -> int:
    """What `pids` and their children had to fetch from a disk so far: shows that a cold read was one."""
    total_bytes = 0
    for pid in pids:
        for one in memory.tree(pid):
            with suppress(psutil.Error, OSError):
                total_bytes += psutil.Process(one).io_counters().read_bytes
    return total_bytes


def sync_all() -> None:
    """Writes everything that is not yet on any disk."""
    subprocess.run(["sync"], check=True)


def drop_caches() -> bool:
    """Empties the kernel's page, dentry and inode caches; False where that is not allowed."""
    sync_all()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True


def allocated_bytes(root: Path) -> int:
    """What `root` and everything below occupies, in bytes: st_blocks, hard links once."""
    seen: set[tuple[int, int]] = set()
    total_bytes = 0
    for directory, _, names in os.walk(root):
        for name in (".", *names):
            status = os.lstat(os.path.join(directory, name))
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total_bytes += status.st_blocks * 512
    return total_bytes
