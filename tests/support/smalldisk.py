"""A small disk with a mounted repository on it, other programs that fill it, and collections that wait to be let on.

Ends only what it started, and takes its mounts away whatever a test did.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from repository.units import MIB
from tests.support.mounted import CALM, Mounted, init, open_directory

FILLER: Final = "somebody else's file"
LARGE_MIB: Final = 1024
"""Of the volume around a limited part."""
GATED: Final = """
import os, sys, time
from repository.collect import Collector

gate = sys.argv.pop(1)
collect = Collector.collect

def slowly(self, *args, **kwargs):
    open(gate + ".begun", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return collect(self, *args, **kwargs)

Collector.collect = slowly
from fusefs.cli.main import main
sys.exit(main())
"""
"""A `ballast` whose collections wait until a file exists, and say in another that they have begun."""


class SmallDisk:
    """A mounted disk of a few hundred MiB, with a repository and its mount."""

    def __init__(self, path: Path, directory: Path) -> None:
        self.path = path
        self.directory = directory
        self.repository = path / "repository"
        self.gate = directory / "gate"
        self.mount = Mounted(self.repository, directory / "mnt")

    def serve(self, options: Sequence[str] = CALM, *, gated: bool = False) -> Mounted:
        """Mounts it; with `gated` no collection goes on before `open_gate`."""
        self.mount.options = tuple(options)
        if gated:
            self.mount.program = (sys.executable, "-c", GATED, str(self.gate))
        self.mount.start()
        return self.mount

    def open_gate(self) -> None:
        self.gate.touch()

    def collecting(self) -> bool:
        """Whether a collection waits at the gate, or did."""
        return self.gate.with_name("gate.begun").exists()

    def free_bytes(self) -> int:
        """What an ordinary user may take."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Another program takes everything but so much; byte by byte at the end, where nothing is to be left."""
        with (self.path / FILLER).open("ab") as file:
            size = file.tell()
            more = self.free_bytes() - leave_bytes
            if more > 0:
                subprocess.run(
                    ["fallocate", "-o", str(size), "-l", str(more), file.name], capture_output=True, check=False
                )
        if leave_bytes == 0:
            subprocess.run(
                ["dd", "if=/dev/zero", f"of={self.path / 'crumbs'}", "bs=4k", "oflag=append", "conv=notrunc"],
                capture_output=True,
                check=False,
            )

    def clear(self) -> None:
        """The other program gives it all back."""
        for name in (FILLER, "crumbs"):
            (self.path / name).unlink(missing_ok=True)

    def status(self) -> dict[str, object]:
        """What the mount shows of itself."""
        found: dict[str, object] = json.loads((self.mount.path / ".ballast" / "status.json").read_text())
        return found

    def mode(self) -> str:
        return str(self.status()["mode"])


@contextmanager
def small_disk(kind: str, mib: int, *founding: str) -> Iterator[SmallDisk]:
    """An empty disk (tmpfs or ext4), and a repository made with `founding`."""
    with open_directory() as directory:
        path = directory / "disk"
        path.mkdir()
        if kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
        else:
            _mount_image(directory, mib, ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard"), path)
        with _founded(SmallDisk(path, directory), path, founding) as disk:
            yield disk


@contextmanager
def limited_disk(mib: int, *founding: str) -> Iterator[SmallDisk]:
    """A part of a larger btrfs that may take so much and no more: beyond it there is room, and writing is EDQUOT."""
    with open_directory() as directory:
        volume = directory / "volume"
        volume.mkdir()
        _mount_image(directory, LARGE_MIB, ("mkfs.btrfs", "-q", "-f", "-K"), volume)
        part = volume / "part"
        with _founded(SmallDisk(part, directory), volume, founding, lambda: _limit(volume, part, mib)) as disk:
            yield disk


def _limit(volume: Path, part: Path, mib: int) -> None:
    _run("btrfs", "quota", "enable", volume)
    _run("btrfs", "subvolume", "create", part)
    _run("btrfs", "quota", "rescan", "-w", volume)
    _run("btrfs", "qgroup", "limit", f"{mib}M", part)


def _mount_image(directory: Path, mib: int, made_by: Sequence[str], path: Path) -> None:
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    _run(*made_by, image)
    _run("mount", "-o", "loop", image, path)


@contextmanager
def _founded(
    disk: SmallDisk, mounted_at: Path, founding: Sequence[str], prepare: Callable[[], None] = lambda: None
) -> Iterator[SmallDisk]:
    try:
        prepare()
        init(disk.repository, *founding)
        yield disk
    finally:
        disk.mount.clean_up()
        _run("umount", mounted_at)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
