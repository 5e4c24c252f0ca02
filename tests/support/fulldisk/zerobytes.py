"""Drill 5, zero bytes: not a byte, not an inode, no reserve, /tmp and $HOME full too. What frees and reads works."""

import os
import shutil
from pathlib import Path
from typing import Final

from repository.format.pack import PUNCHED_OFFSET, SPARE_MARK
from repository.units import GIB, MB, MIB
from tests.support.fulldisk.disks import NOTHING_BYTES
from tests.support.fulldisk.fillers import Filler
from tests.support.fulldisk.play import Play
from tests.support.fulldisk.stage import full_places
from tests.support.fulldisk.tracing import allocations, names_and_blocks
from tests.support.fulldisk.user import CALM, User, attempt, write_random

FILES_IN_DIRECTORY: Final = 1_000
BY_COMMAND: Final = 3
"""Snapshots deleted by commands without a mount; the others by rmdir."""
UNDELETED: Final = ("day-0010", "day-0011")
"""Deleted while there was room: what is deleted on a full disk is collected at once."""


def play(play: Play) -> None:
    """The same twice: the second time without `index/`."""
    _play(play, without_index=False)
    _play(play, without_index=True)


def _play(play: Play, *, without_index: bool) -> None:
    files, snapshots = play.pick(2_000, 80_000), play.pick(60, 2_000)
    report = play.report
    report.say("without index/" if without_index else "with index/")
    reserve = play.pick(24 * MB, 300 * MB)
    with play.user(play.pick(256 * MIB, 2 * GIB), reserve, "--headspace", "0") as (user, filler):
        sample = _furnish(user, files, snapshots, play.pick(24 * MIB, 200 * MIB), play.seed)
        user.ballast("reserve", "release", user.repository)
        if without_index:
            shutil.rmtree(user.repository / "index")
        filler.fill()
        with full_places(play.stage) as environment:
            user.extra = environment
            _expect_nothing_free(user)
            _undelete(user)
            filler.fill()  # the mount's end gave a little back
            _without_a_mount(user, snapshots)
            _with_a_mount(user, files, snapshots, sample)
            user.extra = {}
        shutil.rmtree(sample)
        _afterwards(user, filler)


def _furnish(user: User, files: int, snapshots: int, nbytes: int, seed: int) -> Path:
    """`live` with many files, and many snapshots; returns a copy of some of them."""
    sample = user.stage.work / "sample"
    sample.mkdir()
    for number in range(20):
        write_random(sample / f"{number:02d}", 50_000, seed * 50 + number)
    user.mount()
    for first in range(0, files, FILES_IN_DIRECTORY):
        folder = user.live / f"many-{first:06d}"
        folder.mkdir()
        for number in range(first, min(files, first + FILES_IN_DIRECTORY)):
            (folder / f"{number:06d}").write_text(f"file {number}\n")
    user.report.say(f"{files:,} files are in live")
    shutil.copytree(sample, user.live / "sample")
    each = nbytes // snapshots
    for number in range(snapshots):
        write_random(user.live / "changing", each, seed * 10_000 + number)
        os.mkdir(user.snapshots / f"day-{number:04d}")
    for name in UNDELETED:
        os.rmdir(user.snapshots / name)
    user.umount()
    user.report.equals("snapshots", len(user.names()), snapshots - len(UNDELETED))
    user.report.equals("in the trash", user.names("--trash"), list(UNDELETED))
    return sample


def _expect_nothing_free(user: User) -> None:
    report = user.report
    report.at_most("available", user.disk.available_bytes(), NOTHING_BYTES)
    inodes = user.disk.free_inodes()
    if inodes is not None:
        report.equals("free inodes", inodes, 0)
    report.at_most("allocated blocks of the reserve", user.reserve_bytes(), 0)
    for variable in ("HOME", "TMPDIR"):
        file = Path(user.environment()[variable]) / "x"
        report.holds(f"a file in ${variable}", said := attempt(file.touch), said == "ENOSPC", "ENOSPC")


def _without_a_mount(user: User, snapshots: int) -> None:
    """Commands alone; what one deletion and one collection allocate is counted."""
    report, repository = user.report, user.repository
    user.ballast("status", repository)
    report.equals("snapshots listed", len(user.names()), snapshots)
    user.ballast("snapshot", "diff", repository, "day-0000", "day-0001")
    before = names_and_blocks(repository)
    free_before, inodes_before = user.disk.free_bytes(), user.disk.free_inodes()
    names = [f"day-{number:04d}" for number in range(BY_COMMAND)]
    refilled: set[str] = set()
    for what, words in (
        ("deletion", ("snapshot", "delete", str(repository), *names)),
        ("collection", ("gc", str(repository), "--safety", "none")),
    ):
        found = allocations(user, words)
        report.equals(f"calls of the {what} that could allocate", found.calls, [])
        refilled |= set(found.refilled)
    after = names_and_blocks(repository)
    reserve = "ballast.reserve"
    grown = {name: (before.get(name), now) for name, now in after.items() if now > before.get(name, -1)}
    for name in (reserve, *refilled, *(one for one in grown if _is_spare(repository / one))):
        grown.pop(name, None)
    report.equals("files that are new or have grown, the reserve and the headroom apart", grown, {})
    report.holds("packs in which the headroom was made whole out of what came free", len(refilled), True)
    gained = user.disk.free_bytes() - free_before + after.get(reserve, 0) - before.get(reserve, 0)
    report.holds("bytes that both gave back, by statvfs", f"{gained:,}", gained >= 0, "none taken")
    inodes_after = user.disk.free_inodes()
    if inodes_before is not None and inodes_after is not None:
        report.holds("inodes that both gave back", inodes_after - inodes_before, inodes_after >= inodes_before)


def _is_spare(path: Path) -> bool:
    """Whether it is a pack of the headroom: without `fallocate` it grows by being written, and no call tells of it."""
    if path.suffix != ".pack":
        return False
    with path.open("rb") as file:
        file.seek(PUNCHED_OFFSET)
        return file.read(1) == bytes([SPARE_MARK])


def _with_a_mount(user: User, files: int, snapshots: int, sample: Path) -> None:
    report = user.report
    user.mount(*CALM)
    report.equals("names in snapshots/", len(os.listdir(user.snapshots)) - 1, snapshots - BY_COMMAND)
    user.same(sample, user.live / "sample")
    user.same(sample, user.snapshots / f"day-{snapshots - 1:04d}" / "sample")
    folders = [folder for folder in user.live.iterdir() if folder.name.startswith("many-")]
    done = user.run("rm", "-rf", *folders)
    report.holds(f"rm -rf of {files:,} files", done.err[:300] or f"{done.seconds:.1f} s", done.code == 0)
    report.equals("names left of them", [path.name for path in user.live.iterdir() if "many" in path.name], [])
    last = f"day-{snapshots - 1:04d}"
    goners = sorted(set(os.listdir(user.snapshots)) - {"latest", last})
    for name in goners:
        os.rmdir(user.snapshots / name)
    report.equals("snapshots deleted by rmdir", len(goners), snapshots - BY_COMMAND - 1)
    user.same(sample, user.snapshots / last / "sample")
    user.ballast("gc", user.repository)
    report.equals("snapshots left", user.names(), [last])
    user.umount()


def _undelete(user: User) -> None:
    """By command, and by mv in a mount."""
    by_command, by_mv = UNDELETED
    user.ballast("snapshot", "undelete", user.repository, by_command)
    user.mount(*CALM)
    os.rename(user.trash / by_mv, user.snapshots / by_mv)
    shown = [name for name in UNDELETED if (user.snapshots / name / "changing").is_file()]
    user.report.equals("undeleted", shown, list(UNDELETED))
    user.umount()
    user.report.equals("in the trash", user.names("--trash"), [])


def _afterwards(user: User, filler: Filler) -> None:
    """Room comes back, and with it the reserve."""
    report = user.report
    filler.remove()
    user.mount()
    user.expect_normal()
    report.equals("a write", attempt(lambda: (user.live / "new").write_bytes(bytes(100_000))), "ok")
    user.umount()
    user.check()
    user.expect_calm_log()
