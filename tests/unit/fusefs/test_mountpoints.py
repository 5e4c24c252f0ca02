"""The mount table, preconditions of mounting, and who keeps something busy: all of it without a mount."""

import os
import subprocess
from pathlib import Path

import pytest

from fusefs import mountpoints
from fusefs.mountpoints import Mounted, mounted_at, mounts
from repository.errors import UsageError

TABLE = b"""\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:39 / /mnt/with\\040blank\\011tab\\134 rw,nosuid master:3 - fuse.ballast /repo\\040sitory rw,user_id=0
41 22 0:40 / /mnt/\xff rw - tmpfs tmpfs rw
garbage
42 22 0:41 / /mnt/twice rw - tmpfs first rw
43 42 0:42 / /mnt/twice rw - fuse.ballast second rw
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    return path


def test_the_table_is_read_with_its_escapes(table: Path) -> None:
    found = mounts(table)
    assert found[1] == Mounted((0, 39), "/mnt/with blank\ttab\\", "fuse.ballast", "/repo sitory")
    assert os.fsencode(found[2].path) == b"/mnt/\xff"
    assert len(found) == 5


def test_of_two_at_one_place_the_upper_counts(table: Path) -> None:
    there = mounted_at("/mnt/twice", table)
    assert there is not None and there.source == "second"
    assert mounted_at("/mnt/none", table) is None


def test_this_machines_own_table_reads() -> None:
    assert mounted_at("/") is not None


def test_prepare_makes_what_is_missing(tmp_path: Path) -> None:
    assert mountpoints.prepare(str(tmp_path / "a" / "b"), str(tmp_path / "repository")) == []
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("mountpoint", "repository", "what"),
    [
        ("full", "repository", "is not empty"),
        ("full/file", "repository", "is not a directory"),
        ("repository", "repository", "inside the repository"),
        ("repository/packs/00", "repository", "inside the repository"),
        (".", "repository", "would hide"),
    ],
)
def test_prepare_refuses(tmp_path: Path, mountpoint: str, repository: str, what: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "repository").mkdir()
    with pytest.raises(UsageError, match=what):
        mountpoints.prepare(os.path.normpath(tmp_path / mountpoint), str(tmp_path / repository))
    assert not (tmp_path / "repository" / "packs").exists()


def test_a_neighbour_with_a_longer_name_is_not_inside(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    assert mountpoints.prepare(str(tmp_path / "repo-mnt"), str(tmp_path / "repo")) == []


def test_symlinks_on_the_way_to_a_mountpoint_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoints.resolved_mountpoint(tmp_path / "link") == str(tmp_path / "real")
    assert mountpoints.resolved_mountpoint(tmp_path / "link" / "new") == str(tmp_path / "real" / "new")


def test_users_are_found_by_directory_open_file_and_mapping(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "inside" / "file").write_text("x")
    with (
        subprocess.Popen(["sleep", "60"], cwd=tmp_path / "inside") as by_directory,
        (tmp_path / "inside" / "file").open() as file,
        subprocess.Popen(["sleep", "60"], stdin=file) as by_file,
        subprocess.Popen(["sleep", "60"], cwd=tmp_path / "beside") as by_nothing,
    ):
        try:
            found = {user.pid: user for user in mountpoints.users(str(tmp_path / "inside"))}
            assert found[by_directory.pid].what == str(tmp_path / "inside")
            assert found[by_file.pid].what == str(tmp_path / "inside" / "file")
            assert by_nothing.pid not in found
            sentence = mountpoints.busy_sentence(str(tmp_path / "inside"))
            assert f"sleep (pid {by_file.pid}: " in sentence
        finally:
            for process in (by_directory, by_file, by_nothing):
                process.kill()


def test_allow_other_is_looked_up(tmp_path: Path) -> None:
    configuration = tmp_path / "fuse.conf"
    assert not mountpoints._others_allowed(configuration)
    configuration.write_text("# user_allow_other\nmount_max = 1000\n")
    assert not mountpoints._others_allowed(configuration)
    configuration.write_text("  user_allow_other \n")
    assert mountpoints._others_allowed(configuration)
