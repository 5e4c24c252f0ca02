"""Ballast as a peer of the others: mounted, and straight in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.measure import BenchError, Meter, Usage, allocated_bytes
from bench.peers import Reading, served

BALLAST: Final = Path(sys.executable).with_name("ballast")
RESERVE: Final = "64M"
SYNC_MARK: Final = ".bench-mark"


def _ballast(*words: str | Path) -> None:
    """Runs a command outside the measuring. Raises BenchError with what it said."""
    result = subprocess.run([str(BALLAST), *map(str, words)], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise BenchError(f"ballast {words[0]} ended with {result.returncode}: {result.stderr.strip()}")


def _new_repository(home: Path) -> Path:
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    repository = home / "repository"
    _ballast("init", repository, "--reserve", RESERVE)
    return repository


def _size_bytes(repository: Path) -> int:
    """Without the reserve, which is the owner's choice and holds nothing."""
    reserve = repository / "ballast.reserve"
    return allocated_bytes(repository) - (reserve.stat().st_blocks * 512 if reserve.exists() else 0)


class BallastMounted:
    """Copied in through the mount, then a snapshot by `mkdir`.

    A store has three parts: `cp`; `durable`, an `fsync` after it (the journal holds a prefix in the order of
    operations, so that what was copied before is durable with it); `commit`, the snapshot.
    """

    name = "ballast-mount"

    def __init__(self, work: Path) -> None:
        self._home = work / "ballast-mount"
        self._mountpoint = self._home / "mnt"
        self._mount = ExitStack()
        self._daemons: tuple[int, ...] = ()
        self._latest = ""

    def setup(self) -> None:
        self._unmount()
        _new_repository(self._home)
        self._start()

    def _start(self) -> None:
        command: list[str | Path] = [BALLAST, "mount", self._home / "repository", self._mountpoint, "--foreground"]
        pid = self._mount.enter_context(served(command, self._mountpoint, [BALLAST, "umount", self._mountpoint]))
        self._daemons = (pid,)

    def _unmount(self) -> None:
        self._mount.close()
        self._daemons = ()

    def store(self, label: str, source: Path) -> Usage:
        with Meter(self._daemons) as meter:
            meter.run("cp", ["cp", "-a", source, self._mountpoint / "live" / label])
            self._make_durable(meter)
            self._commit(meter, label)
        self._latest = label
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        root = self._mountpoint / "live" / self._latest
        with Meter(self._daemons) as meter:
            with meter.part("write"):
                for path in changed:
                    (root / path.relative_to(source)).write_bytes(path.read_bytes())
            self._make_durable(meter)
            self._commit(meter, label)
        return meter.usage()

    def _make_durable(self, meter: Meter) -> None:
        with meter.part("durable"):
            descriptor = os.open(self._mountpoint / "live" / SYNC_MARK, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, b".")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _commit(self, meter: Meter, label: str) -> None:
        with meter.part("commit"):
            (self._mountpoint / "snapshots" / label).mkdir()

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        # A new daemon, as the others have one: nothing is remembered from writing.
        self._unmount()
        self._start()
        snapshots = self._mountpoint / "snapshots"
        yield Reading(snapshots / "first" / "first", snapshots / "large" / "large" / large.name, self._daemons)

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        return None

    def delete(self, label: str) -> Usage | None:
        return None

    def size_bytes(self) -> int:
        return _size_bytes(self._home / "repository")

    def close(self) -> None:
        self._unmount()
        shutil.rmtree(self._home)


class BallastDirect:
    """`ballast snapshot create`, without a mount: what restic and borg do."""

    name = "ballast"

    def __init__(self, work: Path) -> None:
        self._home = work / "ballast-direct"
        self._repository = self._home / "repository"

    def setup(self) -> None:
        _new_repository(self._home)

    def store(self, label: str, source: Path) -> Usage:
        with Meter() as meter:
            meter.run("create", [BALLAST, "snapshot", "create", self._repository, source, "--name", label])
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return self.store(label, source)

    def reading(self, tree: Path, large: Path) -> None:
        return None

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("restore", [BALLAST, "restore", self._repository, f"{label}:{source}", target])
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        with Meter() as meter:
            meter.run("delete", [BALLAST, "snapshot", "delete", self._repository, label])
            meter.run("gc", [BALLAST, "gc", self._repository, "--safety", "none"])
        return meter.usage()

    def size_bytes(self) -> int:
        return _size_bytes(self._repository)

    def close(self) -> None:
        shutil.rmtree(self._home)
