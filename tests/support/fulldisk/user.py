"""What a user does in a drill: the commands of Ballast, a mount, files that are copied in and compared.

Everything goes through `ballast` itself, in processes of its own.
"""

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from repository.status import Json
from repository.units import MIB
from tests.support.fulldisk.disks import Disk
from tests.support.fulldisk.figures import Report
from tests.support.fulldisk.stage import Stage
from tests.support.mounted import TROUBLE, is_mounted

BALLAST: Final = str(Path(sys.executable).with_name("ballast"))
COMMAND_S: Final = 900.0
"""Longest that any command may take, far beyond what one takes: a command that hangs ends the drill."""
BACK_S: Final = 90.0
"""Longest wait for the monitor, which looks every 5 s, and for a collection in the background."""
STAT_BLOCK_BYTES: Final = 512
CALM: Final = ("--settle", "1h", "--interval", "1h", "--keep-all")
"""A mount that makes no snapshots by itself but the closing one."""
LOGGED: Final = re.compile(r"^(?P<time>\S+ \S+) [A-Z]+ \S+ (?P<event>\S+)(?P<rest>.*)$")
TRACED: Final = re.compile(r"^(?:\d+ +)?(\w+)\(.*= (-?\d+|\?).*<([\d.]+)>$")
EXPECTED_TROUBLE: Final = (
    "space.",
    "recovery.",
    "reserve.",
    "snapshot.thinned",
    "collect.",
    "pack.not_sealed",
    "index.not_",
)
"""Beginnings of warnings that a mount on a full disk is meant to log. A pack stays open while claims rest on it
and there is no other room for them; an index is a cache, and may be missing."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """A climbed ladder, as `status` tells it."""

    trigger: str
    steps: tuple[str, ...]
    freed_bytes: int
    deleted: tuple[str, ...]
    pause_s: float
    outcome: str

    def text(self) -> str:
        steps = "; ".join(self.steps)
        return f"{self.trigger}: {self.outcome}, freed {self.freed_bytes:,} bytes, pause {self.pause_s:.3f} s: {steps}"


@dataclass(frozen=True, slots=True)
class Copied:
    """A `cp` under strace: its exit code, what it said, and how long its calls that write took."""

    code: int
    err: str
    longest_s: float
    calls: int
    failed_with: str


class User:
    """Somebody with a repository on a disk, and a mountpoint."""

    def __init__(self, stage: Stage, disk: Disk, report: Report) -> None:
        self.stage: Final = stage
        self.disk: Final = disk
        self.report: Final = report
        self.repository: Final = disk.path / "repository"
        self.mountpoint: Final = stage.mounts / f"{disk.path.name}-ballast"
        self.extra: dict[str, str] = {}
        """More environment for what follows."""
        self._logged = 0

    @property
    def live(self) -> Path:
        return self.mountpoint / "live"

    @property
    def snapshots(self) -> Path:
        return self.mountpoint / "snapshots"

    @property
    def trash(self) -> Path:
        return self.mountpoint / "trash"

    def environment(self) -> dict[str, str]:
        own = {
            "HOME": str(self.stage.home),
            "XDG_STATE_HOME": str(self.stage.home / "state"),
            "XDG_RUNTIME_DIR": str(self.stage.runtime),
            "LC_ALL": "C.UTF-8",
        }
        return {**os.environ, **own, **self.extra}

    # --- commands --------------------------------------------------------------------------------------------

    def run(self, *words: str | Path) -> Done:
        """Any program, to its end."""
        begun_s = time.monotonic()
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )
        return Done(tuple(map(str, words)), done.returncode, done.stdout, done.stderr, time.monotonic() - begun_s)

    def ballast(self, *words: str | Path, code: int = 0) -> Done:
        """`ballast`, which has to end with `code`; its words and its answer are printed."""
        done = self.run(BALLAST, *words)
        shown = " ".join(self._short(word) for word in words)
        first = (done.err if done.code else done.out).strip().split("\n")
        said = " | ".join(first[:3]) + (f" ... {len(first)} lines" if len(first) > 3 else "")
        said = said if "--json" not in words else f"{len(done.out)} characters of JSON"
        self.report.holds(
            f"ballast {shown}", f"exit {done.code}, {done.seconds:.1f} s: {said}", done.code == code, f"exit {code}"
        )
        for text in (done.out, done.err):
            if "Traceback" in text:
                self.report.holds("no traceback", text[-3000:], False)
        return done

    def quietly(self, *words: str | Path, code: int = 0) -> Done:
        """The same, printed only where it went wrong."""
        done = self.run(BALLAST, *words)
        if done.code != code or "Traceback" in done.err:
            self.report.holds(f"ballast {' '.join(map(str, words))}", (done.out + done.err)[-3000:], False)
        return done

    def _short(self, word: str | Path) -> str:
        names = {str(self.repository): "REPO", str(self.mountpoint): "MNT"}
        return names.get(str(word), str(word))

    def status(self) -> dict[str, Json]:
        found: Json = json.loads(self.quietly("status", self.repository, "--json").out)
        assert isinstance(found, dict)
        return found

    def mode(self) -> str:
        return str(self.status()["mode"])

    def reserve_bytes(self) -> int:
        """What is really allocated, as the disk says."""
        file = self.repository / "ballast.reserve"
        return file.stat().st_blocks * STAT_BLOCK_BYTES if file.exists() else 0

    def reserve_whole(self) -> bool:
        reserve = self.status()["reserve"]
        assert isinstance(reserve, dict)
        return bool(reserve["whole"])

    def recoveries(self) -> list[Recovery]:
        """Oldest first."""
        found = self.status()["recoveries"]
        assert isinstance(found, list)
        return [_recovery(one) for one in found]

    def listed(self, *options: str) -> list[dict[str, Json]]:
        found: Json = json.loads(self.quietly("snapshot", "list", self.repository, "--json", *options).out)
        assert isinstance(found, list)
        return [one for one in found if isinstance(one, dict)]

    def names(self, *options: str) -> list[str]:
        return [str(one["name"]) for one in self.listed(*options)]

    def check(self) -> None:
        """Every byte of the repository is read and verified."""
        self.ballast("check", self.repository, "--read-data")

    # --- the mount -------------------------------------------------------------------------------------------

    def mount(self, *options: str) -> Done:
        """In the background."""
        return self.ballast("mount", self.repository, self.mountpoint, *(options or CALM))

    def umount(self) -> None:
        self.ballast("umount", self.mountpoint)

    def is_mounted(self) -> bool:
        return is_mounted(self.mountpoint)

    def pid(self) -> int:
        """Of the process that serves the mount."""
        mount = self.status()["mount"]
        assert isinstance(mount, dict)
        pid = mount["pid"]
        assert isinstance(pid, int)
        return pid

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.stage.home / "state").rglob("*.log*")))

    def expect_calm_log(self, *also: str) -> None:
        """No error and no traceback in the mount's log, and no warning but those that a full disk is about."""
        lines = self.log().splitlines()[self._logged :]
        self._logged += len(lines)
        allowed = (*EXPECTED_TROUBLE, *also)
        found = [line for line in lines if (match := TROUBLE.search(line)) and not _allowed(match["event"], allowed)]
        self.report.holds("surprises in the mount's log", found[:3] or 0, not found)

    def wait_for(self, what: str, true: Callable[[], bool], patience_s: float = BACK_S) -> None:
        """A figure of its own: how long it took."""
        begun_s = time.monotonic()
        while not (now := true()) and time.monotonic() - begun_s < patience_s:
            time.sleep(0.2)
        self.report.holds(what, f"after {time.monotonic() - begun_s:.1f} s", now, f"within {patience_s:.0f} s")

    def expect_normal(self) -> None:
        """Mode normal and the reserve whole again, by status and by the disk."""
        self.wait_for("mode normal", lambda: self.mode() == "normal")
        self.wait_for("the reserve is whole", self.reserve_whole)
        self.expect_reserve()

    def expect_reserve(self) -> None:
        reserve = self.status()["reserve"]
        assert isinstance(reserve, dict)
        wanted = reserve["wanted_bytes"]
        assert isinstance(wanted, int)
        self.report.at_least("allocated blocks of the reserve", self.reserve_bytes(), wanted)

    # --- files -----------------------------------------------------------------------------------------------

    def source(self, name: str, nbytes: int, seed: int, files: int = 1) -> Path:
        """A directory of incompressible files that no other seed shares, outside of the disk. No two are of one size:
        an estimate takes those for copies."""
        folder = self.stage.work / name
        folder.mkdir()
        for number in range(files):
            write_random(folder / f"{number:03d}", nbytes // files + number * 1000, seed * 1000 + number)
        return folder

    def cp(self, source: Path, target: Path) -> Copied:
        """`cp`, with its calls timed."""
        trace = self.stage.work / "cp.strace"
        done = self.run(
            *("strace", "-f", "-T", "-e", "trace=write,copy_file_range,close", "-o", trace),
            *("cp", "-r", source, target),
        )
        return _copied(done, trace.read_text(errors="replace"))

    def same(self, source: Path, target: Path) -> None:
        """The same bytes in both, files or directories."""
        done = self.run("diff", "-r", "--no-dereference", source, target)
        self.report.holds(
            f"{target.name} reads back as it was", done.out[:500] + done.err[:500] or "the same", done.code == 0
        )


def _allowed(event: str | None, allowed: Iterable[str]) -> bool:
    return event is not None and event.startswith(tuple(allowed))


def _copied(done: Done, trace: str) -> Copied:
    longest_s, calls, failed = 0.0, 0, ""
    for line in trace.splitlines():
        match = TRACED.match(line)
        if match is None or match[1] == "close":
            continue
        calls += 1
        longest_s = max(longest_s, float(match[3]))
        if match[2] == "-1" and "EXDEV" not in line:
            failed = line.split("= -1 ", 1)[1].split(" ", 1)[0]
    return Copied(done.code, done.err.strip(), longest_s, calls, failed)


def _recovery(document: Json) -> Recovery:
    assert isinstance(document, dict)
    steps, deleted, freed = document["steps"], document["deleted_snapshots"], document["freed_bytes"]
    pause = document["pause_s"]
    return Recovery(
        str(document["trigger"]),
        tuple(map(str, steps)) if isinstance(steps, list) else (),
        freed if isinstance(freed, int) else 0,
        tuple(map(str, deleted)) if isinstance(deleted, list) else (),
        float(pause) if isinstance(pause, int | float) else 0.0,
        str(document["outcome"]),
    )


def random_bytes(seed: int, nbytes: int) -> bytes:
    """The same for the same seed; nothing compresses it."""
    return np.random.Generator(np.random.PCG64(seed)).bytes(nbytes)


def write_random(path: Path, nbytes: int, seed: int) -> None:
    """A file of random bytes, in pieces of a MiB."""
    dice = np.random.Generator(np.random.PCG64(seed))
    with path.open("wb") as file:
        left = nbytes
        while left:
            piece = min(left, MIB)
            file.write(dice.bytes(piece))
            left -= piece


def attempt(call: Callable[[], object]) -> str:
    """ "ok", or the name of the errno that it fails with."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"
