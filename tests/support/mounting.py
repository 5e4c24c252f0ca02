"""Mounts made by the command line itself, in processes of their own, and taken away again whatever a test did."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fusefs import control, mountpoints
from fusefs.wire import Json

ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = (sys.executable, "-c", "import sys; from fusefs.cli.main import main; sys.exit(main())")
PATIENCE_S: Final = 20.0
"""How long `until` waits: far more than anything takes here, even beside other tests."""


def until(what: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Waits for `what` to become true; AssertionError if it doesn't."""
    deadline_s = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < deadline_s, "it did not come to that"
        time.sleep(0.02)


class Mounting:
    """A repository, a mountpoint, and the commands on them."""

    def __init__(self, base: Path) -> None:
        self.base: Final = base
        self.repository: Final = base / "repository"
        self.mountpoint: Final = base / "mnt"
        self.environment: Final = {**os.environ, "XDG_STATE_HOME": str(base / "state"), "PYTHONPATH": str(ROOT)}

    @property
    def live(self) -> Path:
        return self.mountpoint / "live"

    @property
    def snapshots(self) -> Path:
        return self.mountpoint / "snapshots"

    @property
    def trash(self) -> Path:
        return self.mountpoint / "trash"

    def ballast(self, *words: str | Path, code: int = 0) -> str:
        """Runs `ballast`; returns what it printed, to stdout and stderr. Asserts its exit code."""
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def init(self) -> None:
        self.ballast("init", self.repository, "--reserve", "0", "--headspace", "0")

    def mount(self, *options: str) -> str:
        """Mounts in the background; returns what it said."""
        return self.ballast("mount", self.repository, self.mountpoint, *options)

    def hide_fusermount3(self) -> None:
        """From now on as on a machine that has none: libfuse mounts by itself, and shakes hands itself."""
        programs = self.base / "bin"
        programs.mkdir()
        for name in ("mount", "umount"):
            where = shutil.which(name)
            assert where is not None
            (programs / name).symlink_to(where)
        self.environment["PATH"] = str(programs)

    def umount(self) -> str:
        return self.ballast("umount", self.mountpoint)

    def device(self) -> tuple[int, int]:
        """The mount's device number."""
        there = mountpoints.mounted_at(str(self.mountpoint))
        assert there is not None
        return there.device

    def status(self) -> dict[str, Json]:
        """What the mount says of itself."""
        mount = control.ask(control.mount_socket(self.device()), "status", {})["mount"]
        assert isinstance(mount, dict)
        return mount

    def pid(self) -> int:
        """The process behind the mount."""
        pid = self.status()["pid"]
        assert isinstance(pid, int)
        return pid

    def is_mounted(self) -> bool:
        return mountpoints.mounted_at(str(self.mountpoint)) is not None

    def log(self) -> str:
        """Everything logged so far by mounts in the background."""
        return "".join(path.read_text() for path in sorted((self.base / "state").rglob("*.log*")))


def gone(pid: int) -> Callable[[], bool]:
    """Whether the process has ended."""
    return lambda: not Path(f"/proc/{pid}").exists()


@contextmanager
def mounting(base: Path) -> Iterator[Mounting]:
    """A Mounting whose mount, if one is left, goes in the end."""
    one = Mounting(base)
    try:
        yield one
    finally:
        while one.is_mounted():
            subprocess.run(["fusermount3", "-u", "-z", str(one.mountpoint)], check=True, timeout=20)
