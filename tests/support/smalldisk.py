"""A small disk with a mounted repository on it, other programs that fill it, and collections that wait to be let on.

Ends only what it started, and takes its mounts away whatever a test did.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from repository.units import MIB
from tests.support.mounted import CALM, Mounted, init, open_directory

FILLER: Final = "somebody else's file"
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
            command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)]
        else:
            image = directory / "image"
            with image.open("wb") as file:
                file.truncate(mib * MIB)
            made = ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", str(image)]
            subprocess.run(made, check=True, capture_output=True)
            command = ["mount", "-o", "loop", str(image), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        disk = SmallDisk(path, directory)
        try:
            init(disk.repository, *founding)
            yield disk
        finally:
            disk.mount.clean_up()
            subprocess.run(["umount", str(path)], check=True, capture_output=True)
