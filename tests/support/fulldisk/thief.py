"""Drill 6, the thief: another program takes every byte that becomes free, while the whole ladder runs."""

import errno
import os
from pathlib import Path

from repository.units import GIB, KIB, MB, MIB
from tests.support.fulldisk.disks import NOTHING_BYTES
from tests.support.fulldisk.fillers import thief
from tests.support.fulldisk.play import Play
from tests.support.fulldisk.user import User


def play(play: Play) -> None:
    """Garbage enough for the copy, and somebody who is quicker."""
    report = play.report
    reserve = play.pick(24 * MB, 300 * MB)
    with play.user(play.pick(256 * MIB, 2 * GIB), reserve, "--headspace", "0") as (user, _):
        old = user.source("old", play.pick(80 * MIB, 700 * MIB), play.seed + 1, files=16)
        held = user.source("held", play.pick(24 * MIB, 300 * MIB), play.seed + 2, files=4)
        large = user.source("large", play.pick(72 * MIB, 600 * MIB), play.seed + 3)
        for source in (old, held):
            user.ballast("snapshot", "create", user.repository, source, "--name", source.name)
        user.ballast("snapshot", "delete", user.repository, "old")
        user.mount()
        with thief(user.disk) as one:
            user.wait_for("the thief has taken everything", lambda: user.disk.available_bytes() <= NOTHING_BYTES)
            acknowledged, ended = _copy(user, large / "000")
            report.holds(
                "a copy under the thief's eyes", f"{acknowledged:,} bytes, then {ended}", ended in ("ok", "ENOSPC")
            )
            _expect_right_state(user, large / "000", acknowledged)
            user.same(held, user.snapshots / "held" / str(held).lstrip("/"))
            os.rmdir(user.snapshots / "held")
            acknowledged, ended = _copy(user, large / "000")
            report.holds("once more", f"{acknowledged:,} bytes, then {ended}", ended in ("ok", "ENOSPC"))
            _expect_right_state(user, large / "000", acknowledged)
            report.holds("the thief is at it still", one.running, one.running)
            (stolen,) = one.stop()
            report.at_least("stolen", stolen, reserve)
        user.expect_normal()
        _expect_right_state(user, large / "000", acknowledged)
        done = user.cp(large, user.live / "again")
        report.holds("the copy, when the thief is gone", done.err or "done", done.code == 0)
        user.same(large, user.live / "again")
        user.umount()
        user.mount()
        user.same(large, user.live / "again")
        user.umount()
        user.check()
        user.expect_calm_log()


def _copy(user: User, source: Path) -> tuple[int, str]:
    """How many bytes were acknowledged, and how it ended."""
    acknowledged = 0
    ended = "ok"
    try:
        file = os.open(user.live / "large", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        return 0, errno.errorcode[error.errno or 0]
    try:
        with source.open("rb") as data:
            while piece := data.read(256 * KIB):
                acknowledged += os.write(file, piece)
    except OSError as error:
        ended = errno.errorcode[error.errno or 0]
    finally:
        os.close(file)
    return acknowledged, ended


def _expect_right_state(user: User, source: Path, acknowledged: int) -> None:
    with source.open("rb") as data:
        wanted = data.read(acknowledged)
    found = (user.live / "large").read_bytes() if acknowledged else b""
    user.report.holds("acknowledged bytes that read back", f"{len(found):,}", found == wanted, f"all {acknowledged:,}")
    mode = user.mode()
    user.report.holds("mode", mode, mode in ("normal", "emergency", "read-only"))
