"""Drill 3, thinning: nothing is garbage, and the mount may give up old snapshots."""

from typing import Final

from repository.status import Json
from repository.units import GIB, MB, MIB
from tests.support.fulldisk.play import Play, margin_bytes
from tests.support.fulldisk.user import CALM, User, write_random

SNAPSHOTS: Final = 40
SNAPSHOTS_SHORT: Final = 20
"""Each is a process of its own, which takes longest."""
SOURCES: Final = ("anna", "berta", "clara")
NAMED: Final = {4: "before-upgrade", 11: "tax-2025"}
"""Which of them get names."""
PINNED: Final = 9
SEGMENTS: Final = 4
"""Open packs of several streams hold a segment each that no snapshot needs."""


def play(play: Play) -> None:
    """Forty snapshots of three sources, each with something that no other one has."""
    report = play.report
    count = play.pick(SNAPSHOTS_SHORT, SNAPSHOTS)
    each = play.pick(6 * MIB, 20 * MIB)
    reserve = play.pick(16 * MB, 150 * MB)
    with play.user(play.pick(320 * MIB, 2 * GIB), reserve, "--headspace", "0") as (user, filler):
        for number in range(count):
            _snapshot(user, number, each, play.seed)
        user.quietly("snapshot", "pin", user.repository, _of(user.listed(), PINNED))
        before = user.listed()
        report.equals("snapshots", len(before), count)
        protected = _protected(before)
        user.mount(*CALM, "--auto-delete")
        filler.leave(play.pick(16 * MIB, 100 * MIB))
        large = user.source("large", play.pick(36 * MIB, 300 * MIB), play.seed + 9)
        done = user.cp(large, user.live)
        report.holds("cp", f"exit {done.code} {done.err}", done.code == 0)
        report.holds(
            "longest write of cp", f"{done.longest_s:.3f} s", done.longest_s < 30, "below the deadline of 30 s"
        )
        user.expect_normal()
        _expect_thinned(user, before, protected, each)
        user.same(large, user.live / "large")
        user.umount()
        user.check()
        user.expect_calm_log()


def _snapshot(user: User, number: int, nbytes: int, seed: int) -> None:
    folder = user.stage.work / SOURCES[number % len(SOURCES)]
    folder.mkdir(exist_ok=True)
    (folder / "about").write_text(f"version {number}\n")
    write_random(folder / "data", nbytes, seed * 100 + number)
    named = ("--name", NAMED[number]) if number in NAMED else ()
    user.quietly("snapshot", "create", user.repository, folder, *named)


def _of(listed: list[dict[str, Json]], number: int) -> str:
    return str(sorted(listed, key=lambda one: str(one["time"]))[number]["id"])


def _protected(listed: list[dict[str, Json]]) -> dict[str, str]:
    """What may never go: id and why."""
    newest: dict[str, dict[str, Json]] = {}
    for one in sorted(listed, key=lambda one: str(one["time"])):
        newest[str(one["source"])] = one
    assert len(newest) == len(SOURCES), newest.keys()
    found = {str(one["id"]): f"newest of {source.rpartition('/')[2]}" for source, one in newest.items()}
    for one in listed:
        if one["kind"] == "named" or one["pinned"]:
            found[str(one["id"])] = "pinned" if one["pinned"] else f"named {one['name']}"
    return found


def _expect_thinned(user: User, before: list[dict[str, Json]], protected: dict[str, str], each: int) -> None:
    report = user.report
    left = {str(one["id"]) for one in user.listed()}
    gone = [str(one["name"]) for one in before if str(one["id"]) not in left]
    for wanted, why in protected.items():
        report.holds(why, "there" if wanted in left else "missing", wanted in left)
    recoveries = user.recoveries()
    for one in recoveries:
        report.holds("recovery", one.text(), one.outcome == "recovered")
    told = [name for one in recoveries for name in one.deleted]
    report.holds("snapshots given up", len(gone), len(gone) > 0)
    report.holds("those that the recoveries tell of", len(told), len(told) == len(gone))
    # What is available now, the reserve being whole, is more than what was wanted by less than one snapshot.
    segments = SEGMENTS * _segment_bytes(user)
    bound = margin_bytes(user.disk) + each + segments
    report.at_most("available beyond the copy", user.disk.available_bytes(), bound)


def _segment_bytes(user: User) -> int:
    return max(MIB, user.disk.capacity_bytes() // 512)
