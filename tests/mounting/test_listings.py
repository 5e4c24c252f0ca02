"""Listings of snapshots: the kernel keeps them, and what it says of them stays true."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting.test_handshake import reads_of
from tests.support.mounting import Mounting

pytestmark = pytest.mark.mount

DIRECTORIES = 60
FILES = 40
LARGE = 5_000
"""Entries of one directory: many answers, and several segments."""
LISTERS = 6
LIST = """
import os, sys
for lap in range(30):
    for top, directories, files in os.walk(sys.argv[1]):
        expected = int(os.path.basename(top).split("-")[1])
        if len(directories) + len(files) != expected:
            sys.exit("%s: %d" % (top, len(directories) + len(files)))
"""


def stored(ballast: Mounting) -> Path:
    """A tree of small directories, each with the number of its entries in its name; where its snapshot will be."""
    source = ballast.base / f"source-{DIRECTORIES}"
    for directory in range(DIRECTORIES):
        below = source / f"{directory:02}-{FILES}"
        below.mkdir(parents=True)
        for number in range(FILES):
            (below / f"{number:02}").touch()
    ballast.ballast("snapshot", "create", ballast.repository, source, "--name", "one")
    return ballast.snapshots / "one" / source.relative_to("/")


def walked(top: Path) -> list[str]:
    return [str(Path(here, name)) for here, directories, files in os.walk(top) for name in (*directories, *files)]


def requests_of(ballast: Mounting, what: Callable[[], object]) -> int:
    pid = ballast.pid()
    before = reads_of(pid)
    what()
    return reads_of(pid) - before


@pytest.mark.parametrize("mode", [(), ("--read-only",)])
def test_a_directory_that_was_listed_is_opened_and_closed_and_nothing_else(
    ballast: Mounting, mode: tuple[str, ...]
) -> None:
    top = stored(ballast)
    ballast.mount(*mode)
    expected = sorted(walked(top))
    assert len(expected) == DIRECTORIES * (FILES + 1)
    cold = requests_of(ballast, lambda: walked(top))
    found: list[str] = []
    warm = requests_of(ballast, lambda: found.extend(walked(top)))
    assert sorted(found) == expected
    assert warm < 2.5 * (DIRECTORIES + 1), f"{warm} requests; {cold} before"


def test_without_fusermount3_every_listing_is_asked_for(ballast: Mounting) -> None:
    top = stored(ballast)
    ballast.hide_fusermount3()
    ballast.mount()
    expected = sorted(walked(top))
    warm = requests_of(ballast, lambda: walked(top))
    assert warm >= 4 * DIRECTORIES
    assert sorted(walked(top)) == expected


def test_all_names_come_in_order_from_anywhere_and_with_their_attributes(ballast: Mounting) -> None:
    source = ballast.base / "source"
    source.mkdir()
    for number in range(LARGE):
        (source / f"{number:05}").write_bytes(b"x" * (number % 7))
    ballast.ballast("snapshot", "create", ballast.repository, source, "--name", "one")
    ballast.mount()
    top = ballast.snapshots / "one" / source.relative_to("/")
    for _ in range(3):
        with os.scandir(top) as entries:
            found = [(entry.name, entry.stat().st_size) for entry in entries]
        assert found == [(f"{number:05}", number % 7) for number in range(LARGE)]
        with os.scandir(top) as entries:
            begun = [next(entries).name for _ in range(1_000)]
        assert begun == [f"{number:05}" for number in range(1_000)]


def test_many_lists_at_a_time_while_live_changes(ballast: Mounting) -> None:
    top = stored(ballast)
    ballast.mount()
    listers = [subprocess.Popen([sys.executable, "-c", LIST, str(top)]) for _ in range(LISTERS)]
    try:
        for number in range(200):
            (ballast.live / f"{number}").write_text(f"{number}")
            assert len(os.listdir(ballast.live)) == number + 1
        assert [lister.wait(60) for lister in listers] == [0] * LISTERS
    finally:
        for lister in listers:
            lister.kill()
            lister.wait()


def test_a_deleted_snapshot_is_listed_where_it_is_now(ballast: Mounting) -> None:
    top = stored(ballast)
    ballast.mount()
    expected = [one.removeprefix(str(ballast.snapshots)) for one in walked(top)]
    ballast.ballast("snapshot", "delete", ballast.repository, "one")
    with pytest.raises(FileNotFoundError):
        os.listdir(top)
    assert "one" not in os.listdir(ballast.snapshots)
    (deleted,) = ballast.trash.iterdir()
    there = deleted / top.relative_to(ballast.snapshots / "one")
    assert len(walked(there)) == len(expected)
    assert [one.removeprefix(str(deleted)) for one in walked(there)] == [one.removeprefix("/one") for one in expected]


def test_both_ways_tell_the_same_of_everything(ballast: Mounting) -> None:
    source = ballast.base / "source"
    source.mkdir()
    (source / "empty").mkdir()
    (source / "file").write_bytes(b"x" * 70_000)
    os.utime(source / "file", ns=(-(10**9) + 7, -5))
    os.link(source / "file", source / "link")
    (source / "symlink").symlink_to("elsewhere")
    os.mkfifo(source / "fifo", 0o620)
    os.mknod(source / "device", stat.S_IFCHR | 0o600, os.makedev(259, 70_000))
    os.truncate(source / "file", 5 << 32)
    (source / ("n" * 255)).touch(0o4711)
    ballast.ballast("snapshot", "create", ballast.repository, source, "--name", "one")
    top = ballast.snapshots / "one" / source.relative_to("/")

    def told() -> dict[str, os.stat_result]:
        with os.scandir(top) as entries:
            return {entry.name: os.lstat(entry.path) for entry in entries}

    ballast.mount("--read-only")
    first, second = told(), told()
    ballast.umount()
    ballast.hide_fusermount3()
    ballast.mount("--read-only")
    plain = told()
    device = {one.st_dev for one in plain.values()}
    assert len(device) == 1 and set(plain) == set(os.listdir(source))
    for found in (first, second):
        assert {name: one[:2] + one[3:] for name, one in found.items()} == {
            name: one[:2] + one[3:] for name, one in plain.items()
        }
        assert {name: (one.st_mtime_ns, one.st_blocks, one.st_rdev) for name, one in found.items()} == {
            name: (one.st_mtime_ns, one.st_blocks, one.st_rdev) for name, one in plain.items()
        }
