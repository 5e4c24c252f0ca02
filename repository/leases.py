"""Leases: record numbers in use by somebody before any root names them.

Every result of a look-up or put is a root of collection until what refers to it is journaled or published;
whoever holds such results holds them in a lease.
"""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from pyroaring import BitMap64

from repository.ids import RecordNumber


class Lease:
    """A set of numbers that must not be collected; close it when a durable root names them, or nobody will.

    Thread safe. A context manager.
    """

    def __init__(self, on_close: Callable[["Lease"], None]) -> None:
        self.numbers = BitMap64()
        """Record numbers held. Change it only through `add` and `update`."""
        self._lock = threading.Lock()
        self._on_close = on_close

    def add(self, number: RecordNumber) -> None:
        """Hold `number` too."""
        with self._lock:
            self.numbers.add(number)

    def update(self, numbers: Iterable[RecordNumber]) -> None:
        """Hold all of `numbers` too."""
        with self._lock:
            self.numbers.update(numbers)

    def snapshot(self) -> BitMap64:
        """A copy of the numbers held now."""
        with self._lock:
            return self.numbers.copy()

    def close(self) -> None:
        """Let go of everything. May be called twice."""
        self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LeaseTable:
    """The open leases of one store. Thread safe; its lock is never held over a system call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Lease] = {}

    def open(self) -> Lease:
        lease = Lease(self._forget)
        with self._lock:
            self._open[id(lease)] = lease
        return lease

    def union(self) -> BitMap64:
        """All numbers under open leases."""
        with self._lock:
            leases = list(self._open.values())
        held = BitMap64()
        for lease in leases:
            held |= lease.snapshot()
        return held

    def _forget(self, lease: Lease) -> None:
        with self._lock:
            self._open.pop(id(lease), None)
