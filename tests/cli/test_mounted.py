"""Commands beside a mount: reading goes on, changes go through it, what it cannot do is said."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def ballast(*words: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "fusefs.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A repository with the snapshot `first`, and where it is mounted."""
    repo, mnt = tmp_path / "repo", tmp_path / "mnt"
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"one")
    assert ballast("init", repo, "--reserve", "1M", "--headspace", "0")[0] == 0
    assert ballast("snapshot", "create", repo, tmp_path / "files", "--name", "first")[0] == 0
    code, _, err = ballast("mount", repo, mnt)
    assert code == 0, err
    yield repo, mnt
    subprocess.run(["fusermount3", "-u", "-z", str(mnt)], capture_output=True, check=False)


@pytest.mark.mount
def test_commands_beside_a_mount(mounted: tuple[Path, Path], tmp_path: Path) -> None:
    repo, mnt = mounted
    files = tmp_path / "files"
    (mnt / "live" / "mine").write_bytes(b"mine")
    (mnt / "snapshots" / "second").mkdir()
    code, out, _ = ballast("snapshot", "list", repo, "--json")
    assert code == 0 and [one["name"] for one in json.loads(out)] == ["first", "second"]
    assert ballast("snapshot", "diff", repo, f"first:{files}", "second")[:2] == (0, "D a\nA mine\n")
    assert ballast("restore", repo, "second", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "mine").read_bytes() == b"mine"

    code, _, err = ballast("snapshot", "create", repo, files)
    assert code == 11 and f"{mnt}/live" in err and len(err.splitlines()) == 1
    assert ballast("snapshot", "pin", repo, "first")[0] == 0
    code, _, err = ballast("snapshot", "delete", repo, "first")
    assert code == 1 and "pinned" in err
    assert ballast("snapshot", "unpin", repo, "first")[0] == 0
    assert ballast("snapshot", "rename", repo, "first", "oldest")[0] == 0
    assert (mnt / "snapshots" / "oldest").is_dir()
    assert ballast("snapshot", "delete", repo, "oldest")[0] == 0
    assert (mnt / "trash" / "oldest").is_dir()
    assert ballast("snapshot", "undelete", repo, "oldest", "--name", "back")[0] == 0
    assert (mnt / "snapshots" / "back" / files.relative_to("/") / "a").read_bytes() == b"one"
    code, out, _ = ballast("gc", repo, "--safety", "none", "--json")
    assert code == 0 and json.loads(out)["dry_run"] is False
    code, out, _ = ballast("status", repo, "--json")
    assert code == 0 and json.loads(out)["mount"]["mountpoint"] == str(mnt)
    assert ballast("check", repo)[0] == 0

    # Another repository leaves the mount out.
    assert ballast("init", tmp_path / "other", "--reserve", "0")[0] == 0
    code, out, err = ballast("snapshot", "create", tmp_path / "other", tmp_path, "--exclude", "repo/")
    assert code == 0 and f"'{mnt}' is a Ballast mount and is left out." in err

    assert ballast("umount", mnt) == (0, "Safe to remove.\n", "")
    assert ballast("check", repo, "--read-data")[0] == 0
    code, out, _ = ballast("snapshot", "list", repo, "--json")
    assert {"second", "back"} <= {one["name"] for one in json.loads(out)}
