"""What process trees take in memory: the sum of proportional set sizes (PSS), in which a shared page counts once.

Owner of: looking at it costs at most a small share of one processor, and leaves the highest sum behind.
"""

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psutil

SAMPLE_INTERVAL_S: Final = 0.04
"""Between two looks at resident sizes, of which one costs some 20 µs a process."""
REST: Final = 25
"""A sum of PSS walks all page tables (20 µs a MiB): it is followed by a rest of so many times what it took."""
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Taken:
    """Memory of some processes. `resident`: of one at least only the resident size was to be had, in which pages that
    it shares with others count in full."""

    nbytes: int
    resident: bool


def tree(pid: int) -> list[int]:
    """`pid` and its descendants; none where it has ended."""
    found = [pid]
    for one in found:  # grows meanwhile
        found += _children(one)
    return found if os.path.exists(f"/proc/{pid}") else []


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    children: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
        except OSError:
            if os.path.exists(f"/proc/{pid}/task/{thread}"):  # a kernel without this file: ask for all processes
                with suppress(psutil.Error):
                    return [child.pid for child in psutil.Process(pid).children()]
    return children


def resident_bytes(pids: Iterable[int]) -> int:
    """The sum of resident sizes: never less than what they take together."""
    total_bytes = 0
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
            total_bytes += int(file.read().split()[1]) * PAGE_BYTES
    return total_bytes


def taken(pids: Iterable[int]) -> Taken:
    """What these processes take together. One that has ended takes nothing."""
    total_bytes = 0
    resident = False
    for pid in pids:
        nbytes = _proportional_bytes(pid)
        if nbytes is None:
            nbytes = resident_bytes([pid])
            resident = resident or nbytes > 0
        total_bytes += nbytes
    return Taken(total_bytes, resident)


def _proportional_bytes(pid: int) -> int | None:
    """PSS of one process; None where it cannot be read: it has ended, is another user's, or the kernel is old."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * KIB
    except OSError:
        pass
    return None


@dataclass(slots=True)
class Sampler:
    """Looks at process trees from a thread. PSS is read only where the sum of resident sizes says that it may be a new
    peak, which is never missed for that; one that lasts shorter than the rest between two readings may be."""

    roots: set[int]
    peak: Taken = Taken(0, resident=False)
    cpu_s: float = 0.0
    """What looking took, once it is stopped."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _due_s: float = 0.0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="bench-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        self.look()
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            self.look()
        self.cpu_s = time.thread_time()

    def look(self) -> None:
        """Look now."""
        began_s = time.monotonic()
        if began_s < self._due_s:
            return
        pids = [pid for root in tuple(self.roots) for pid in tree(root)]
        if resident_bytes(pids) > self.peak.nbytes:
            found = taken(pids)
            if found.nbytes > self.peak.nbytes:
                self.peak = found
            self._due_s = time.monotonic() + REST * (time.monotonic() - began_s)
