"""Drill 2, the transparent write: a program that copies onto a full disk sees a pause, and nothing else."""

from typing import Final

from repository.units import GIB, MB, MIB
from tests.support.fulldisk.fillers import Filler
from tests.support.fulldisk.play import Play
from tests.support.fulldisk.user import Recovery, User

LARGE_DISK_BYTES: Final = 2 * 1000 * 1000 * MB
LARGE_LEFT_BYTES: Final = 3 * 1000 * MB


def play(play: Play) -> None:
    """A disk with a deleted snapshot in the trash."""
    garbage, left, file = (play.pick(short * MIB, full * MIB) for short, full in ((112, 1024), (24, 200), (80, 700)))
    reserve = play.pick(24 * MB, 300 * MB)
    with play.user(play.pick(256 * MIB, 2 * GIB), reserve, "--headspace", "0") as (user, filler):
        _play(play, user, filler, garbage, left, file)


def play_large(play: Play) -> None:
    """A sparse image of 2 TB of which 3 GB are left, where 5 % would be 100 GB."""
    with play.user(LARGE_DISK_BYTES, 500 * MB) as (user, filler):
        _play(play, user, filler, 2 * GIB, LARGE_LEFT_BYTES, 4 * GIB)


def _play(play: Play, user: User, filler: Filler, garbage_bytes: int, left_bytes: int, file_bytes: int) -> None:
    report = play.report
    old = user.source("old", garbage_bytes, play.seed + 1, files=16)
    kept = user.source("kept", 4 * MIB, play.seed + 2, files=4)
    user.ballast("snapshot", "create", user.repository, old, "--name", "old")
    user.ballast("snapshot", "create", user.repository, kept, "--name", "kept")
    user.ballast("snapshot", "delete", user.repository, "old")
    user.mount()
    filler.leave(left_bytes)
    available = user.disk.available_bytes()
    new = user.source("new", file_bytes, play.seed + 3)
    report.holds("the file is larger than what is left", f"{file_bytes:,} > {available:,}", file_bytes > available)
    done = user.cp(new, user.live)
    report.holds("cp", f"exit {done.code} {done.err}", done.code == 0)
    user.expect_normal()
    recoveries = user.recoveries()
    _expect_recovered(user, recoveries)
    report.holds(
        "longest write of cp",
        f"{done.longest_s:.3f} s of {done.calls} calls; recovery says {max(one.pause_s for one in recoveries):.3f} s",
        done.longest_s < 30,
        "below the deadline of 30 s",
    )
    for one in recoveries:
        report.say(f"how a pause of {one.pause_s:.3f} s went by: {'; '.join(one.steps)}")
    user.same(new, user.live / "new")
    report.equals("the trash", user.names("--trash"), [])
    user.same(kept, user.snapshots / "kept" / str(kept).lstrip("/"))
    user.umount()
    user.mount()
    user.same(new, user.live / "new")
    user.umount()
    user.check()
    user.expect_calm_log()


def _expect_recovered(user: User, recoveries: list[Recovery]) -> None:
    report = user.report
    report.holds("recoveries", len(recoveries), len(recoveries) >= 1)
    for one in recoveries:
        report.holds("recovery", one.text(), one.outcome == "recovered")
        report.equals("snapshots given up for it", list(one.deleted), [])
    report.holds(
        "the first released, collected and tried again",
        ", ".join(recoveries[0].steps),
        any("collect" in step for step in recoveries[0].steps),
    )
