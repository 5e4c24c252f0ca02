"""What a peer is, and the two simplest: cp, and tar with zstd. The floors are in `bench.floors`, the other backup
programs in `bench.backups`, Ballast in `bench.ballast`.

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
from typing import ClassVar, Final

from bench.measure import BenchError, Meter, Usage, allocated_bytes

MOUNT_DEADLINE_S: Final = 60.0
END_DEADLINE_S: Final = 120.0
POLL_S: Final = 0.005
SYNC: Final = "sync"
"""The part of a step in which everything is made durable by `sync -f`, for every peer alike."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A peer opened for reading: where the tree and the large file are, which daemons serve them, how long it took."""

    tree: Path
    large: Path
    daemons: tuple[int, ...] = ()
    ready_s: float | None = None


class Peer:
    """One way to keep copies: `setup` makes an empty repository in `home`, everything else is None where a peer has
    nothing to show. Each `store` makes everything durable.
    """

    name: ClassVar[str]

    def __init__(self, work: Path) -> None:
        self.home: Final = work / self.name

    def setup(self) -> None:
        renew(self.home)

    def store(self, label: str, source: Path) -> Usage | None:
        """Keeps the directory `source` under `label`, unique in a round."""
        raise NotImplementedError

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        """Keeps `source` again, of which only `changed` differ; None where the peer has no way to know."""
        return None

    def reading(self, tree: Path, large: Path) -> AbstractContextManager[Reading] | None:
        """Opens what `tree` was stored as "first", `large` as "large", with a new daemon."""
        return None

    def in_place(self, label: str, name: str) -> tuple[Path, tuple[int, ...]] | None:
        """The file `name` of what was kept under `label`, to be written to in place, and the daemons that serve it."""
        return None

    def settle(self, meter: Meter, label: str) -> None:
        """Makes durable what was written in place, and keeps it under `label` where the peer keeps states."""
        meter.run(SYNC, ["sync", "-f", self.home])

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        """Brings what `source` was kept as under `label` into the empty directory `target`, durably."""
        return None

    def delete(self, label: str) -> Usage | None:
        """Gives up `label` and the room that nothing else needs."""
        return None

    def size_bytes(self) -> int | None:
        """What the repository occupies now."""
        return None

    def close(self) -> None:
        """Ends the round; nothing is left."""
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def served(
    command: Sequence[str | Path], mountpoint: Path, end: Sequence[str | Path], env: Mapping[str, str] | None = None
) -> Iterator[tuple[int, float]]:
    """Runs `command`, a mount in the foreground, and unmounts with `end`; its process id, and the seconds until it
    answered.
    """
    mountpoint.mkdir(parents=True, exist_ok=True)
    said = mountpoint.with_name(mountpoint.name + ".log")
    began_s = time.monotonic()
    with said.open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
        )
    try:
        while not mountpoint.is_mount():
            if process.poll() is not None or time.monotonic() > began_s + MOUNT_DEADLINE_S:
                reason = said.read_text(errors="replace").strip()[-300:]
                raise BenchError(f"{Path(command[0]).name} did not mount: {reason}")
            time.sleep(POLL_S)
        yield process.pid, time.monotonic() - began_s
    finally:
        _end(process, mountpoint, end)


def _end(process: subprocess.Popen[bytes], mountpoint: Path, end: Sequence[str | Path]) -> None:
    try:
        if os.path.ismount(mountpoint):
            subprocess.run(
                [str(word) for word in end],
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=END_DEADLINE_S,
            )
        process.wait(END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=False, stderr=subprocess.DEVNULL)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def renew(directory: Path) -> None:
    """An empty `directory`, whatever was there."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def below(mountpoint: Path, source: Path) -> Path:
    """Where a mount shows `source`, which was stored with its absolute path."""
    return mountpoint / source.relative_to("/")


class Cp(Peer):
    """`cp -a`, which shares nothing: the speed of the disk."""

    name = "cp"

    def store(self, label: str, source: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("cp", ["cp", "-a", source, self.home / label])
            meter.run(SYNC, ["sync", "-f", self.home])
        return meter.usage()

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        yield Reading(self.home / "first", self.home / "large" / large.name)

    def in_place(self, label: str, name: str) -> tuple[Path, tuple[int, ...]]:
        return self.home / label / name, ()

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("cp", ["cp", "-a", self.home / label, target])
            meter.run(SYNC, ["sync", "-f", target])
        return meter.usage()

    def delete(self, label: str) -> Usage | None:
        if not (self.home / label).exists():
            return None
        with Meter() as meter:
            meter.run("rm", ["rm", "-rf", self.home / label])
            meter.run(SYNC, ["sync", "-f", self.home])
        return meter.usage()

    def size_bytes(self) -> int | None:
        return allocated_bytes(self.home)


class Tar(Peer):
    """`tar | zstd -1` into one file, which nothing can be changed in: what compression alone costs."""

    name = "tar-zstd"
    _LABELS: Final = ("first", "large", "image")

    def store(self, label: str, source: Path) -> Usage | None:
        if label not in self._LABELS:
            return None
        with Meter() as meter:
            pipe = 'tar -c -C "$1" "$2" | zstd -q -1 -o "$3"'
            meter.run("tar", [*_BASH, pipe, "bench", source.parent, source.name, self._file(label)])
            meter.run(SYNC, ["sync", "-f", self.home])
        return meter.usage()

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        with Meter() as meter:
            meter.run("tar", [*_BASH, 'zstd -qdc "$1" | tar -x -C "$2"', "bench", self._file(label), target])
            meter.run(SYNC, ["sync", "-f", target])
        return meter.usage()

    def _file(self, label: str) -> Path:
        return self.home / f"{label}.tar.zst"

    def size_bytes(self) -> int | None:
        return allocated_bytes(self.home)


_BASH: Final[tuple[str | Path, ...]] = ("bash", "-o", "pipefail", "-c")
