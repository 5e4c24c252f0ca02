"""Who is measured: cp, restic and borg. Ballast itself is in `bench.ballast`.

Owner of: each peer does the same thing in the way that its manual tells users to, with its defaults.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.measure import BenchError, Meter, Usage, allocated_bytes

MOUNT_DEADLINE_S: Final = 60.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Reading:
    """A peer opened for reading: where the tree and the large file are, and which daemons serve them."""

    tree: Path
    large: Path
    daemons: tuple[int, ...] = ()


class Peer(Protocol):
    """One way to keep copies. `setup` makes an empty repository; each `store` makes everything durable."""

    @property
    def name(self) -> str: ...

    def setup(self) -> None: ...

    def store(self, label: str, source: Path) -> Usage:
        """Keeps the directory `source` under `label`, unique in a round."""
        ...

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        """Keeps `source` again, of which only `changed` differ; None where the peer has no way to know."""
        ...

    def reading(self, tree: Path, large: Path) -> AbstractContextManager[Reading] | None:
        """Opens what `tree` was stored as "first", `large` as "large"; None: another peer reads in the same way."""
        ...

    def close(self) -> int:
        """Ends the round; bytes that the repository occupies."""
        ...


@contextmanager
def served(
    command: Sequence[str | Path], mountpoint: Path, end: Sequence[str | Path], env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Runs `command`, a mount in the foreground, and unmounts with `end`; its process id."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **(env or {})}
    with mountpoint.with_name(mountpoint.name + ".log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        deadline_s = time.monotonic() + MOUNT_DEADLINE_S
        while not mountpoint.is_mount():
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = mountpoint.with_name(mountpoint.name + ".log").read_text(errors="replace")[-1000:]
                raise BenchError(f"{Path(command[0]).name} did not mount: {said}")
            time.sleep(POLL_S)
        yield process.pid
    finally:
        _end(process, mountpoint, end)


def _end(process: subprocess.Popen[bytes], mountpoint: Path, end: Sequence[str | Path]) -> None:
    if mountpoint.is_mount():
        subprocess.run([str(word) for word in end], check=False, stdout=subprocess.DEVNULL)
    try:
        process.wait(MOUNT_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=False)
        try:
            process.wait(POLL_S * 100)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _renew(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _below(mountpoint: Path, source: Path) -> Path:
    """Where a mount shows `source`, which was stored with its absolute path."""
    return mountpoint / source.relative_to("/")


def _quietly(command: Sequence[str | Path], env: Mapping[str, str]) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **env}, stdout=subprocess.DEVNULL)


class Cp:
    """`cp -a`, which shares nothing: the speed of the disk."""

    name = "cp"

    def __init__(self, work: Path) -> None:
        self._home = work / "cp"

    def setup(self) -> None:
        _renew(self._home)

    def store(self, label: str, source: Path) -> Usage:
        with Meter() as meter:
            meter.run("cp", ["cp", "-a", source, self._home / label])
            meter.run("durable", ["sync", "-f", self._home])
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return None

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        yield Reading(self._home / "first", self._home / "large" / large.name)

    def close(self) -> int:
        size_bytes = allocated_bytes(self._home)
        shutil.rmtree(self._home)
        return size_bytes


class Restic:
    """restic with its defaults (encrypted: it has no way without; zstd)."""

    name = "restic"

    def __init__(self, work: Path) -> None:
        self._home = work / "restic"
        self._env: Final = {
            "RESTIC_REPOSITORY": str(self._home / "repository"),
            "RESTIC_CACHE_DIR": str(self._home / "cache"),
            "RESTIC_PASSWORD": "bench",
        }

    def setup(self) -> None:
        _renew(self._home)
        _quietly(["restic", "init"], self._env)

    def store(self, label: str, source: Path) -> Usage:
        with Meter() as meter:
            meter.run("backup", ["restic", "backup", "-q", "--host", "bench", "--tag", label, source], self._env)
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return self.store(label, source)

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        mountpoint = self._home / "mnt"
        with served(["restic", "mount", mountpoint], mountpoint, ["fusermount3", "-u", mountpoint], self._env) as pid:
            tags = mountpoint / "tags"
            yield Reading(_below(tags / "first" / "latest", tree), _below(tags / "large" / "latest", large), (pid,))

    def close(self) -> int:
        size_bytes = allocated_bytes(self._home / "repository")
        shutil.rmtree(self._home)
        return size_bytes


class Borg:
    """borg 1 without encryption, its compression (lz4) as installed."""

    name = "borg"

    def __init__(self, work: Path) -> None:
        self._home = work / "borg"
        self._env: Final = {
            "BORG_REPO": str(self._home / "repository"),
            "BORG_BASE_DIR": str(self._home / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def setup(self) -> None:
        _renew(self._home)
        _quietly(["borg", "init", "--encryption", "none"], self._env)

    def store(self, label: str, source: Path) -> Usage:
        with Meter() as meter:
            meter.run("create", ["borg", "create", f"::{label}", source], self._env)
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return self.store(label, source)

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        mountpoint = self._home / "mnt"
        command = ["borg", "mount", "--foreground", "::", str(mountpoint)]
        with served(command, mountpoint, ["borg", "umount", mountpoint], self._env) as pid:
            yield Reading(_below(mountpoint / "first", tree), _below(mountpoint / "large", large), (pid,))

    def close(self) -> int:
        size_bytes = allocated_bytes(self._home / "repository")
        shutil.rmtree(self._home)
        return size_bytes
