"""Listings of `live` while names come and go."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounting import Mounting

pytestmark = pytest.mark.mount

STEPS = 600
LISTERS = 3
LISTINGS = 150
STAYING = 600
"""Names of 200 bytes: a listing takes several calls of the kernel, and segments of the tree."""
LIST = f"""
import os, sys
for lap in range({LISTINGS}):
    with os.scandir(sys.argv[1]) as entries:
        names = [entry.name for entry in entries]
    if len(names) != len(set(names)):
        sys.exit("a name came twice")
    if sum(name.startswith("stays") for name in names) != {STAYING}:
        sys.exit("a name is missing")
"""


def test_every_change_of_names_shows_at_once(ballast: Mounting) -> None:
    """Steps of all kinds in a few directories, which are listed all the time."""
    ballast.mount()
    random_ = random.Random(7)
    tops = [ballast.live / f"top-{number}" for number in range(3)]
    names: dict[Path, set[str]] = {top: set() for top in tops}
    for top in tops:
        top.mkdir()
    for step in range(STEPS):
        top, other = random_.choice(tops), random_.choice(tops)
        full = sorted(names[top])
        kind = random_.choice(("file", "file", "directory", "link", "symlink", "remove", "remove", "move", "commit"))
        fresh = f"{step:05}-{'n' * random_.choice((0, 150))}"
        if kind == "file":
            (top / fresh).write_text(fresh)
            names[top].add(fresh)
        elif kind == "directory":
            (top / fresh).mkdir()
            names[top].add(fresh)
        elif kind == "symlink":
            (top / fresh).symlink_to("elsewhere")
            names[top].add(fresh)
        elif kind == "commit" and step % 4 == 0:
            (ballast.snapshots / fresh).mkdir()
        elif full and kind == "link":
            source = top / random_.choice(full)
            if source.is_file():
                os.link(source, other / fresh)
                names[other].add(fresh)
        elif full and kind == "remove":
            name = random_.choice(full)
            there = top / name
            if there.is_dir() and not there.is_symlink():
                there.rmdir()
            else:
                there.unlink()
            names[top].discard(name)
        elif full and kind == "move":
            name = random_.choice(full)
            (top / name).rename(other / fresh)
            names[top].discard(name)
            names[other].add(fresh)
        for one in tops:
            listed = os.listdir(one)
            assert len(listed) == len(set(listed))
            assert set(listed) == names[one], f"step {step}: {kind}"
    for one in tops:
        for name in names[one]:
            (one / name).lstat()


def test_whoever_lists_while_names_come_and_go_sees_each_that_stays_once(ballast: Mounting) -> None:
    ballast.mount()
    top = ballast.live / "top"
    top.mkdir()
    for number in range(STAYING):
        (top / f"stays-{number:03}-{'n' * 190}").touch()
    listers = [subprocess.Popen([sys.executable, "-c", LIST, str(top)]) for _ in range(LISTERS)]
    try:
        step = 0
        while any(lister.poll() is None for lister in listers):
            first, last = top / f"a-{step}", top / f"z-{step}"
            first.touch()
            last.touch()
            if step % 40 == 0:
                (ballast.snapshots / f"{step}").mkdir()
            first.unlink()
            last.unlink()
            step += 1
        assert step > LISTINGS // 10, "names changed while they listed"
        assert [lister.wait(60) for lister in listers] == [0] * LISTERS
    finally:
        for lister in listers:
            lister.kill()
            lister.wait()


def test_two_that_stop_half_way_go_on_after_changes_and_commits(ballast: Mounting) -> None:
    ballast.mount()
    top = ballast.live / "top"
    top.mkdir()
    for number in range(STAYING):
        (top / f"{number:03}-{'n' * 200}").touch()
    (ballast.snapshots / "committed").mkdir()
    for number in range(0, STAYING, 2):
        (top / f"{number:03}-{'n' * 200}-new").touch()
    with os.scandir(top) as first:
        begun = [next(first).name for _ in range(100)]
        (ballast.snapshots / "committed again").mkdir()
        with os.scandir(top) as second:
            found = [next(second).name for _ in range(100)]
            assert found == begun
            for gone in found[:50]:
                (top / gone).unlink()
            found += [entry.name for entry in second]
        begun += [entry.name for entry in first]
    staying = set(os.listdir(top))
    assert len(staying) == STAYING * 3 // 2 - 50
    for listed in (begun, found):
        assert len(listed) == len(set(listed))
        assert staying <= set(listed)
