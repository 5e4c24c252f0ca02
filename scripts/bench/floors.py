"""The floors, than which no mount is quicker: a pyfuse3 one that does nothing, and libfuse's passthrough in C."""

import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import install
from bench.measure import Meter, Usage
from bench.peers import SYNC, Peer, Reading, renew, served

DESCRIPTORS_WANTED: Final = 1 << 20
"""passthrough_ll keeps one open for each inode that the kernel knows. Fewer where the limit cannot be raised so far."""


class Null(Peer):
    """`cp -a` into a file system that throws everything away (`bench.nullfs`): nothing is made durable."""

    name = "null-mount"
    _LABELS: Final = ("first", "large")

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._mountpoint = self.home / "mnt"
        self._mount = ExitStack()

    def setup(self) -> None:
        self._mount.close()
        renew(self.home)

    def store(self, label: str, source: Path) -> Usage | None:
        if label not in self._LABELS:
            return None
        command: list[str | Path] = [sys.executable, "-m", "bench.nullfs", self._mountpoint]
        with (
            served(command, self._mountpoint, ["fusermount3", "-u", self._mountpoint]) as (pid, _),
            Meter((pid,)) as meter,
        ):
            meter.run("cp", ["cp", "-a", source, self._mountpoint / label])
            meter.run(SYNC, ["true"])
        return meter.usage()

    def close(self) -> None:
        self._mount.close()
        super().close()


class Passthrough(Peer):
    """libfuse's passthrough_ll over a directory of the same disk, with its cache and timeouts at their defaults."""

    name = "c-passthrough"
    _LABELS: Final = ("first", "large", "image")

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._program = install.passthrough()
        self._mountpoint = self.home / "mnt"
        self._below = self.home / "below"
        self._mount = ExitStack()
        self._daemons: tuple[int, ...] = ()
        self._ready_s = 0.0

    def setup(self) -> None:
        self._mount.close()
        renew(self.home)
        self._below.mkdir()
        self._start()

    def _start(self) -> None:
        self._mount.close()
        options = f"source={self._below},xattr"
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = DESCRIPTORS_WANTED if most == resource.RLIM_INFINITY else min(most, DESCRIPTORS_WANTED)
        limit = f"--nofile={wanted}:{wanted}"
        command: list[str | Path] = ["prlimit", limit, self._program, "-f", "-o", options, self._mountpoint]
        end = ["fusermount3", "-u", str(self._mountpoint)]
        pid, self._ready_s = self._mount.enter_context(served(command, self._mountpoint, end))
        self._daemons = (pid,)

    def store(self, label: str, source: Path) -> Usage | None:
        if label not in self._LABELS:
            return None
        with Meter(self._daemons) as meter:
            meter.run("cp", ["cp", "-a", source, self._mountpoint / label])
            meter.run(SYNC, ["sync", "-f", self._below])
        return meter.usage()

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        self._start()
        at = self._mountpoint
        yield Reading(at / "first", at / "large" / large.name, self._daemons, self._ready_s)

    def in_place(self, label: str, name: str) -> tuple[Path, tuple[int, ...]]:
        return self._mountpoint / label / name, self._daemons

    def settle(self, meter: Meter, label: str) -> None:
        meter.run(SYNC, ["sync", "-f", self._below])

    def close(self) -> None:
        self._mount.close()
        super().close()
