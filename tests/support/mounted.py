"""A repository mounted by a `ballast mount` of its own, as a user would have it, and programs that use it.

Nothing here asks the mount anything from a process that serves it. Ends only what it started.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BALLAST: Final = str(Path(sys.executable).with_name("ballast"))
BUSY: Final = ("--settle", "200ms", "--interval", "0", "--keep-all", "--allow-other")
"""Commits all the time, so that everything is tested across generations too."""
CALM: Final = ("--settle", "1h", "--keep-all", "--allow-other")
"""No snapshot but those that the test makes."""
SMALL: Final = ("--reserve", "0", "--headspace", "0")
READY: Final = "mount.ready"
START_S: Final = 60.0
END_S: Final = 60.0
WATCH_S: Final = 150.0
"""Unless a test has more time."""
"""A daemon that leaves a test hanging this long is killed, so that the hanging system call returns with an error."""
TROUBLE: Final = re.compile(r"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) \S+ (?P<event>\S+)|^Traceback|\w+Warning:")
"""What a daemon logs only when something is wrong."""
_AS_USER: Final = """\
import errno, os, sys
if {uid} is not None:
    os.setgroups([]); os.setgid({gid}); os.setuid({uid})
"""


def ballast(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of Ballast to its end; its exit code is for the caller to look at."""
    return subprocess.run(
        [BALLAST, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=END_S,
        stdin=subprocess.DEVNULL,
    )


def ballast_json(*arguments: str | Path) -> object:
    """What a command of Ballast prints with --json."""
    done = ballast(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: object = json.loads(done.stdout)
    return found


def run(command: Sequence[str | Path], cwd: Path | None = None, timeout_s: float = 120.0) -> str:
    """What a program prints; it must end well and say nothing on stderr is not asked of it."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def python(code: str, *arguments: str | Path, uid: int | None = None, gid: int | None = None) -> str:
    """Runs `code` in a process of its own (as `uid`, with no other groups than `gid`); returns what it prints."""
    program = _AS_USER.format(uid=uid, gid=uid if gid is None else gid) + code
    return run([sys.executable, "-I", "-S", "-c", program, *arguments])


def start_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """The same, not waited for; stdin and stdout are pipes."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-u", "-c", "import os, sys\n" + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def attempt(call: str, *arguments: str | Path, uid: int | None = None, gid: int | None = None) -> str:
    """Evaluates `call` in a process of its own: "ok", or the name of the errno that it fails with."""
    code = f"try:\n    {call}\n    print('ok')\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
    return python(code, *arguments, uid=uid, gid=gid).strip()


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Looks again and again; fails after a time that only a hung mount needs."""
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.02)


def is_mounted(path: Path) -> bool:
    """By the mount table: asks nobody."""
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


class Mounted:
    """A mount with its daemon. Use `mounted()` or the fixtures: they clean up."""

    def __init__(
        self, repository: Path, mountpoint: Path, options: Sequence[str] = (), program: Sequence[str] = (BALLAST,)
    ) -> None:
        """`program` serves the mount, given the words of `ballast mount`."""
        self.program = tuple(program)
        self.repository = repository
        self.path = mountpoint
        self.live = mountpoint / "live"
        self.snapshots = mountpoint / "snapshots"
        self.trash = mountpoint / "trash"
        self.options = tuple(options)
        self.log = mountpoint.with_name(mountpoint.name + ".log")
        self.said = mountpoint.with_name(mountpoint.name + ".out")
        self.watch_s = WATCH_S
        self._looked_at = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Mounts; returns when it serves."""
        begun = self._log_bytes()
        with self.log.open("ab") as log, self.said.open("ab") as said:
            self._process = subprocess.Popen(
                [*self.program, "mount", str(self.repository), str(self.path), "--foreground", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: READY in self._log_from(begun) or self.ended(), "the mount to be ready", START_S)
        assert not self.ended(), f"the mount ended at once:\n{self._log_from(begun)}"

    def ended(self) -> bool:
        """Whether the daemon is gone."""
        return self._process is None or self._process.poll() is not None

    def wait(self) -> int:
        """The daemon's exit code, once it ended."""
        assert self._process is not None
        return self._process.wait(END_S)

    def umount(self) -> None:
        """As a user ends it."""
        done = ballast("umount", self.path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "Safe to remove.\n"
        assert self.wait() == 0

    def remount(self) -> None:
        """A clean end and a new beginning."""
        self.umount()
        self.start()

    def kill(self) -> None:
        """The daemon gets no word in; the mountpoint is free afterwards."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._clear()

    def terminate(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def commit(self, name: str) -> Path:
        """`live` as it is now, as a named snapshot: where it is."""
        snapshot = self.snapshots / name
        snapshot.mkdir()
        return snapshot

    def settle(self) -> None:
        """Waits until what was changed is in an implicit snapshot; for mounts that make them quickly."""
        before = self.names()
        (self.live / "settled").write_text(" ".join(before))
        wait_until(lambda: self.names() != before, "an implicit snapshot")

    def names(self) -> list[str]:
        """The snapshots that are shown, without `latest`."""
        return sorted(set(os.listdir(self.snapshots)) - {"latest"})

    def trouble(self) -> list[str]:
        """Warnings and errors that the daemon logged since this was last asked, each as `event: line`."""
        text = self._log_from(self._looked_at)
        self._looked_at = self._log_bytes()
        found: list[str] = []
        for line in text.splitlines():
            match = TROUBLE.search(line)
            if match is not None:
                found.append(f"{match['event'] or 'traceback'}: {line}")
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Kills the daemon if it takes too long: a hanging mount becomes a failing test."""
        timer = threading.Timer(self.watch_s, self._kill_hanging)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _kill_hanging(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with self.log.open("a") as log:
                log.write("- - ERROR tests watchdog.killed after too long\n")
            self._process.kill()

    def clean_up(self) -> None:
        """Whatever happened: no daemon, no mount."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._clear()

    def _clear(self) -> None:
        while is_mounted(self.path):
            subprocess.run(["umount", "-l", str(self.path)], check=True, capture_output=True)

    def _log_bytes(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _log_from(self, start: int) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")


def init(repository: Path, *options: str) -> None:
    """A new repository."""
    done = ballast("init", repository, *options)
    assert done.returncode == 0, done.stderr


@contextmanager
def mounted(directory: Path, options: Sequence[str] = CALM, founding: Sequence[str] = SMALL) -> Iterator[Mounted]:
    """A fresh repository in `directory` (made with the options `founding`), mounted; no mount is left afterwards."""
    repository = directory / "repository"
    init(repository, *founding)
    mount = Mounted(repository, directory / "mnt", options)
    try:
        mount.start()
        yield mount
    finally:
        mount.clean_up()


@contextmanager
def open_directory() -> Iterator[Path]:
    """A new directory that every user may enter (pytest's own are private); removed with what is in it."""
    directory = Path("/tmp") / f"ballast-{os.getpid()}-{time.monotonic_ns():x}"
    directory.mkdir()
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        assert not any(is_mounted(one) for one in directory.iterdir()), "never remove through a mount"
        shutil.rmtree(directory)
