"""Drill 1, the story: a disk that two backups don't fit on, told without a mount."""

from pathlib import Path
from typing import Final

from repository.units import GIB, MB, MIB
from tests.support.fulldisk.disks import NOTHING_BYTES
from tests.support.fulldisk.fillers import Filler
from tests.support.fulldisk.play import SEGMENT_MAX_BYTES, Play
from tests.support.fulldisk.user import User

ALLOWANCE_BYTES: Final = 2 * SEGMENT_MAX_BYTES
"""What a failed snapshot may leave behind: the sealed rest of its packs."""


def play(play: Play) -> None:
    """2 GiB of disk, 500 MB of reserve, snapshots of 1 GiB; a tenth of it all in the short version."""
    snapshot_bytes = play.pick(104 * MIB, GIB)
    reserve_bytes = play.pick(50 * MB, 500 * MB)
    report = play.report
    with play.user(play.pick(224 * MIB, 2 * GIB), reserve_bytes) as (user, filler):
        report.at_least("allocated blocks of the reserve", user.reserve_bytes(), reserve_bytes)
        first = user.source("first", snapshot_bytes, play.seed + 1, files=8)
        user.ballast("snapshot", "create", user.repository, first, "--name", "first")
        report.equals("snapshots", user.names(), ["first"])
        second = user.source("second", snapshot_bytes, play.seed + 2, files=8)
        _refused(user, second)
        _fills_the_disk(user, second)
        _gives_back(user, filler, snapshot_bytes)
        user.check()


def _refused(user: User, source: Path) -> None:
    """What can be known beforehand is said beforehand."""
    before = user.disk.available_bytes()
    done = user.ballast("snapshot", "create", user.repository, source, "--name", "second", code=28)
    user.report.holds("the refusal has figures", done.err.strip(), "available" in done.err and "need" in done.err)
    user.report.equals("snapshots", user.names(), ["first"])
    user.report.at_most("taken by the refused snapshot", before - user.disk.available_bytes(), MIB)


def _fills_the_disk(user: User, source: Path) -> None:
    """Begun all the same, it runs until the disk is full."""
    before = user.disk.available_bytes()
    words = ("snapshot", "create", user.repository, source, "--name", "second", "--no-estimate")
    done = user.ballast(*words, code=28)
    user.report.holds("one sentence says why", done.err.strip(), bool(done.err.strip()))
    user.report.equals("snapshots", user.names(), ["first"])
    left = before - user.disk.available_bytes()
    user.report.at_most("not given back by the failed snapshot", left, ALLOWANCE_BYTES)
    user.report.holds("the reserve is whole", user.reserve_whole(), user.reserve_whole())
    user.expect_reserve()
    user.report.equals("mode", user.mode(), "normal")


def _gives_back(user: User, filler: Filler, nbytes: int) -> None:
    """Another program takes the rest, the reserve too; then one snapshot is deleted."""
    report = user.report
    user.ballast("reserve", "release", user.repository)
    filler.fill()
    report.at_most("available", user.disk.available_bytes(), NOTHING_BYTES)
    report.at_most("allocated blocks of the reserve", user.reserve_bytes(), 0)
    before = user.disk.free_bytes()
    user.ballast("snapshot", "delete", user.repository, "first")
    user.ballast("gc", user.repository)
    user.disk.available_bytes()
    back = user.disk.free_bytes() - before + user.reserve_bytes()
    report.at_least("given back, the reserve's part in it", back, nbytes)
    report.holds("the reserve is whole", user.reserve_whole(), user.reserve_whole())
    user.expect_reserve()
    report.equals("mode", user.mode(), "normal")
    report.equals("snapshots", user.names(), [])
