"""S3QL, the other writable mount, where its programs are there. No package of it was to be had: this follows its manual
and was not run yet.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import install
from bench.measure import BenchError, Meter, Usage, allocated_bytes
from bench.peers import Peer, Reading, renew, served

NO_PACKAGE: Final = "not installed: no package of it is to be had"


class S3ql(Peer):
    """A local file system without encryption, written to by `cp -a` and flushed by `s3qlctrl`."""

    name = "s3ql"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        try:
            self._mkfs, self._program, self._end, self._control = (
                install.program(name) for name in ("mkfs.s3ql", "mount.s3ql", "umount.s3ql", "s3qlctrl")
            )
        except BenchError:
            raise BenchError(NO_PACKAGE) from None
        self._store = self.home / "repository"
        self._cache = self.home / "cache"
        self._mountpoint = self.home / "mnt"
        self._mount = ExitStack()
        self._daemons: tuple[int, ...] = ()
        self._ready_s = 0.0

    def setup(self) -> None:
        self._mount.close()
        renew(self.home)
        self._store.mkdir()
        with Meter() as meter:
            meter.run("mkfs", [self._mkfs, "--plain", "--cachedir", self._cache, f"local://{self._store}"])
        self._start()

    def _start(self) -> None:
        self._mount.close()
        place = f"local://{self._store}"
        command: list[str | Path] = [self._program, "--fg", "--cachedir", self._cache, place, self._mountpoint]
        pid, self._ready_s = self._mount.enter_context(served(command, self._mountpoint, [self._end, self._mountpoint]))
        self._daemons = (pid,)

    def store(self, label: str, source: Path) -> Usage | None:
        with Meter(self._daemons) as meter:
            meter.run("cp", ["cp", "-a", source, self._mountpoint / label])
            meter.run("flush", [self._control, "flushcache", self._mountpoint])
        return meter.usage()

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        self._start()
        at = self._mountpoint
        yield Reading(at / "first", at / "large" / large.name, self._daemons, self._ready_s)

    def size_bytes(self) -> int | None:
        return allocated_bytes(self._store)

    def close(self) -> None:
        self._mount.close()
        super().close()
