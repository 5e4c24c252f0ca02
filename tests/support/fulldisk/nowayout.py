"""Drill 4, no way out: nothing can be freed. The copy fails, all else stands, and one deletion leads back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from repository.units import GIB, MB, MIB
from tests.support.fulldisk.play import Play
from tests.support.fulldisk.user import User, attempt

DISK_IS_FULL: Final = "DISK-IS-FULL.txt"


def play(play: Play) -> None:
    """Snapshots that nobody allowed to be deleted."""
    report = play.report
    held_bytes = play.pick(64 * MIB, 600 * MIB)
    reserve = play.pick(24 * MB, 300 * MB)
    with play.user(play.pick(224 * MIB, 2 * GIB), reserve, "--headspace", "0") as (user, filler):
        held = user.source("held", held_bytes, play.seed + 1, files=8)
        kept = user.source("kept", 4 * MIB, play.seed + 2, files=4)
        large = user.source("large", play.pick(48 * MIB, 400 * MIB), play.seed + 3)
        user.ballast("snapshot", "create", user.repository, held, "--name", "held")
        user.ballast("snapshot", "create", user.repository, kept, "--name", "kept")
        user.mount()
        report.holds("cp of a small directory", (done := user.cp(kept, user.live)).err or "done", done.code == 0)
        os.mkdir(user.live / "empty")
        filler.leave(play.pick(12 * MIB, 60 * MIB))
        acknowledged = _write_until_full(user, large / "000")
        _expect_passthrough(user, acknowledged, large / "000")
        user.same(kept, user.live / "kept")
        user.same(held, user.snapshots / "held" / str(held).lstrip("/"))
        _refuse(user)
        _shrink(user)
        os.rmdir(user.snapshots / "held")
        user.expect_normal()
        report.holds(f"{DISK_IS_FULL} is gone", "", not (user.mountpoint / DISK_IS_FULL).exists())
        again = user.cp(large, user.live / "again")
        report.holds("the copy, once more", again.err or "done", again.code == 0)
        user.same(large, user.live / "again")
        user.umount()
        user.mount()
        user.same(large, user.live / "again")
        user.same(kept, user.live / "renamed")
        user.umount()
        user.check()
        user.expect_calm_log()


def _write_until_full(user: User, source: Path) -> int:
    """Appends to a file until ENOSPC; how many bytes were acknowledged."""
    acknowledged, failed = 0, ""
    file = os.open(user.live / "large", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        with source.open("rb") as data:
            while piece := data.read(128 * 1024):
                try:
                    acknowledged += os.write(file, piece)
                except OSError as error:
                    failed = os.strerror(error.errno or 0)
                    break
        synced = attempt(lambda: os.fsync(file))
    finally:
        closed = attempt(lambda: os.close(file))
    user.report.equals("the write that found no room", failed, "No space left on device")
    user.report.holds("fsync and close of what was acknowledged", f"{synced}, {closed}", synced == closed == "ok")
    return acknowledged


def _expect_passthrough(user: User, acknowledged: int, source: Path) -> None:
    report = user.report
    with source.open("rb") as data:
        wanted = data.read(acknowledged)
    found = (user.live / "large").read_bytes()
    report.holds("acknowledged bytes that read back", f"{len(found):,}", found == wanted, f"all {acknowledged:,}")
    report.equals("mode", user.mode(), "read-only")
    text = (user.mountpoint / DISK_IS_FULL).read_text()
    report.holds(f"{DISK_IS_FULL} names what would help", text.replace("\n", " | "), "held" in text)
    last = user.recoveries()[-1]
    report.holds("last recovery", last.text(), last.outcome == "read-only")


def _refuse(user: User) -> None:
    """What grows gets ENOSPC, and nobody climbs for it again."""
    live, climbs = user.live, len(user.recoveries())
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: _append(live / "kept" / "000"),
        "create": (live / "new").touch,
        "mkdir": lambda: os.mkdir(live / "new"),
        "symlink": lambda: os.symlink("target", live / "new"),
        "setxattr": lambda: os.setxattr(live / "kept", "user.new", bytes(100)),
        "truncate up": lambda: os.truncate(live / "large", 1 << 40),
        "snapshot by mkdir": lambda: os.mkdir(user.snapshots / "new"),
    }
    for name, call in calls.items():
        user.report.equals(name, attempt(call), "ENOSPC")
    user.report.equals("climbs for them", len(user.recoveries()) - climbs, 0)


def _append(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(b"x" * 100_000)


def _shrink(user: User) -> None:
    """What works in passthrough."""
    live, report = user.live, user.report
    report.equals("truncate", attempt(lambda: os.truncate(live / "large", 1_000_000)), "ok")
    report.equals("unlink", attempt(lambda: os.unlink(live / "large")), "ok")
    report.equals("rmdir", attempt(lambda: os.rmdir(live / "empty")), "ok")
    report.equals("rename", attempt(lambda: os.rename(live / "kept", live / "renamed")), "ok")
