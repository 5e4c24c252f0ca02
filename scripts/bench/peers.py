"""Who is measured: cp, tar with zstd, a file system that does nothing, restic, borg. Ballast is in `bench.ballast`.

Owner of: each peer does the same thing in the way that its manual tells users to, with its defaults.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

    def store(self, label: str, source: Path) -> Usage | None:
        """Keeps the directory `source` under `label`, unique in a round; None where the peer has nothing to show."""
        ...

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        """Keeps `source` again, of which only `changed` differ; None where the peer has no way to know."""
        ...

    def reading(self, tree: Path, large: Path) -> AbstractContextManager[Reading] | None:
        """Opens what `tree` was stored as "first", `large` as "large"; None: another peer reads in the same way."""
        ...

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        """Brings what `source` was kept as under `label` into the empty directory `target`; None: see `reading`."""
        ...

    def delete(self, label: str) -> Usage | None:
        """Gives up `label` and the room that nothing else needs."""
        ...

    def size_bytes(self) -> int:
        """What the repository occupies now."""
        ...

    def close(self) -> None:
        """Ends the round; nothing is left."""
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

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("cp", ["cp", "-a", self._home / label, target])
            meter.run("durable", ["sync", "-f", target])
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        with Meter() as meter:
            meter.run("rm", ["rm", "-rf", self._home / label])
        return meter.usage()

    def size_bytes(self) -> int:
        return allocated_bytes(self._home)

    def close(self) -> None:
        shutil.rmtree(self._home)


class Tar:
    """`tar | zstd -1` into one file, which nothing can be changed in: what compression alone costs."""

    name = "tar-zstd"
    _LABELS: Final = ("first", "large")

    def __init__(self, work: Path) -> None:
        self._home = work / "tar"

    def setup(self) -> None:
        _renew(self._home)

    def store(self, label: str, source: Path) -> Usage | None:
        if label not in self._LABELS:
            return None
        pipe = 'tar -c -C "$1" "$2" | zstd -q -1 -o "$3"'
        with Meter() as meter:
            words: list[str | Path] = [
                "bash",
                "-o",
                "pipefail",
                "-c",
                pipe,
                "bench",
                source.parent,
                source.name,
                self._file(label),
            ]
            meter.run("tar", words)
            meter.run("durable", ["sync", "-f", self._home])
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return None

    def reading(self, tree: Path, large: Path) -> None:
        return None

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("tar", ["bash", "-o", "pipefail", "-c", 'zstd -qdc "$1" | tar -x -C "$2"', "bench",
                              self._file(label), target])  # fmt: skip
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        return None

    def _file(self, label: str) -> Path:
        return self._home / f"{label}.tar.zst"

    def size_bytes(self) -> int:
        return allocated_bytes(self._home)

    def close(self) -> None:
        shutil.rmtree(self._home)


class Null:
    """`cp -a` into a file system that throws everything away (`bench.nullfs`): the floor of what mounting costs."""

    name = "null-mount"
    _LABELS: Final = ("first", "large")

    def __init__(self, work: Path) -> None:
        self._mountpoint = work / "null" / "mnt"
        self._mount = ExitStack()
        self._pid = 0

    def setup(self) -> None:
        self._mount.close()
        _renew(self._mountpoint)
        command: list[str | Path] = [sys.executable, "-m", "bench.nullfs", self._mountpoint]
        self._pid = self._mount.enter_context(
            served(command, self._mountpoint, ["fusermount3", "-u", self._mountpoint])
        )

    def store(self, label: str, source: Path) -> Usage | None:
        if label not in self._LABELS:
            return None
        with Meter((self._pid,)) as meter:
            meter.run("cp", ["cp", "-a", source, self._mountpoint / label])
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return None

    def reading(self, tree: Path, large: Path) -> None:
        return None

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        return None

    def delete(self, label: str) -> Usage | None:
        return None

    def size_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._mount.close()
        shutil.rmtree(self._mountpoint.parent)


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

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("restore", ["restic", "restore", "-q", "latest", "--tag", label, "--target", target], self._env)
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        said = subprocess.run(
            ["restic", "snapshots", "--tag", label, "--json"], check=True, env={**os.environ, **self._env},
            capture_output=True,
        )  # fmt: skip
        snapshots: list[dict[str, str]] = json.loads(said.stdout)
        with Meter() as meter:
            meter.run("forget", ["restic", "forget", "-q", "--prune", snapshots[0]["short_id"]], self._env)
        return meter.usage()

    def size_bytes(self) -> int:
        return allocated_bytes(self._home / "repository")

    def close(self) -> None:
        shutil.rmtree(self._home)


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

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("extract", ["borg", "extract", f"::{label}"], self._env, cwd=target)
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        with Meter() as meter:
            meter.run("delete", ["borg", "delete", f"::{label}"], self._env)
            meter.run("compact", ["borg", "compact"], self._env)
        return meter.usage()

    def size_bytes(self) -> int:
        return allocated_bytes(self._home / "repository")

    def close(self) -> None:
        shutil.rmtree(self._home)
