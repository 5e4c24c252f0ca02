"""Ballast as a peer of the others: mounted, and straight in. Through its command alone."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.measure import BenchError, Meter, Usage, allocated_bytes
from bench.peers import SYNC, Peer, Reading, renew, served

BALLAST: Final = Path(sys.executable).with_name("ballast")
RESERVE: Final = "64M"
SYNC_MARK: Final = ".bench-mark"


def ballast(*words: str | Path) -> str:
    """Runs a command outside the measuring; its standard output. Raises BenchError with what it said."""
    result = subprocess.run([str(BALLAST), *map(str, words)], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise BenchError(f"ballast {words[0]} ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def new_repository(home: Path) -> Path:
    """An empty repository in an empty `home`."""
    renew(home)
    repository = home / "repository"
    ballast("init", repository, "--reserve", RESERVE)
    return repository


class Mount:
    """A repository that is mounted and unmounted, each time with a new daemon."""

    def __init__(self, repository: Path, mountpoint: Path) -> None:
        self.repository = repository
        self.at = mountpoint
        self.daemons: tuple[int, ...] = ()
        self.ready_s = 0.0
        self._stack = ExitStack()

    def start(self) -> None:
        """Mounts, after unmounting."""
        self.stop()
        command: list[str | Path] = [BALLAST, "mount", self.repository, self.at, "--foreground"]
        pid, self.ready_s = self._stack.enter_context(served(command, self.at, [BALLAST, "umount", self.at]))
        self.daemons = (pid,)

    def stop(self) -> None:
        """Unmounts, if mounted."""
        self.daemons = ()
        self._stack.close()

    @property
    def live(self) -> Path:
        return self.at / "live"

    @property
    def snapshots(self) -> Path:
        return self.at / "snapshots"


class BallastMounted(Peer):
    """Copied in through the mount, then a snapshot by `mkdir`.

    A store has three parts: `cp`; `durable`, an `fsync` after it (the journal holds a prefix in the order of
    operations, so that what was copied before is durable with it); `commit`, the snapshot.
    """

    name = "ballast-mount"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._mount = Mount(self.home / "repository", self.home / "mnt")
        self._latest = ""

    def setup(self) -> None:
        self._mount.stop()
        new_repository(self.home)
        self._mount.start()

    def store(self, label: str, source: Path) -> Usage | None:
        with Meter(self._mount.daemons) as meter:
            meter.run("cp", ["cp", "-a", source, self._mount.live / label])
            self.settle(meter, label)
        self._latest = label
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        root = self._mount.live / self._latest
        with Meter(self._mount.daemons) as meter:
            with meter.part("write"):
                for path in changed:
                    (root / path.relative_to(source)).write_bytes(path.read_bytes())
            self.settle(meter, label)
        return meter.usage()

    def settle(self, meter: Meter, label: str) -> None:
        with meter.part("durable"):
            descriptor = os.open(self._mount.live / SYNC_MARK, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, b".")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.commit(meter, label)

    def commit(self, meter: Meter, label: str) -> None:
        """A snapshot on request, which is durable when `mkdir` returns."""
        with meter.part("commit"):
            (self._mount.snapshots / label).mkdir()

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        self._mount.start()
        snapshots = self._mount.snapshots
        first, large_at = snapshots / "first" / "first", snapshots / "large" / "large" / large.name
        yield Reading(first, large_at, self._mount.daemons, self._mount.ready_s)

    def in_place(self, label: str, name: str) -> tuple[Path, tuple[int, ...]]:
        return self._mount.live / label / name, self._mount.daemons

    def delete(self, label: str) -> Usage | None:
        """By `rmdir` and a collection that the mount carries out; only what no other snapshot holds comes back."""
        if not (self._mount.snapshots / label).exists():
            return None
        with Meter(self._mount.daemons) as meter:
            with meter.part("rmdir"):
                (self._mount.snapshots / label).rmdir()
            meter.run("gc", [BALLAST, "gc", self._mount.repository, "--safety", "none"])
        return meter.usage()

    def size_bytes(self) -> int | None:
        # Unmounted: while it is mounted, an open segment is allocated ahead of what is in it.
        self._mount.stop()
        size = _size_bytes(self._mount.repository)
        self._mount.start()
        return size

    def close(self) -> None:
        self._mount.stop()
        super().close()


class BallastDirect(Peer):
    """`ballast snapshot create`, without a mount: what restic and borg do."""

    name = "ballast"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._repository = self.home / "repository"

    def setup(self) -> None:
        new_repository(self.home)

    def store(self, label: str, source: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("create", [BALLAST, "snapshot", "create", self._repository, source, "--name", label])
            meter.run(SYNC, ["sync", "-f", self.home])
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return self.store(label, source)

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("restore", [BALLAST, "restore", self._repository, f"{label}:{source}", target])
            meter.run(SYNC, ["sync", "-f", target])
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        with Meter() as meter:
            meter.run("delete", [BALLAST, "snapshot", "delete", self._repository, label])
            meter.run("gc", [BALLAST, "gc", self._repository, "--safety", "none"])
            meter.run(SYNC, ["sync", "-f", self.home])
        return meter.usage()

    def size_bytes(self) -> int | None:
        return _size_bytes(self._repository)


def _size_bytes(repository: Path) -> int:
    """Without the reserve, which is the owner's choice and holds nothing."""
    reserve = repository / "ballast.reserve"
    return allocated_bytes(repository) - (reserve.stat().st_blocks * 512 if reserve.exists() else 0)
