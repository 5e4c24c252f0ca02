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
    assert (json.loads(out)["safety"], json.loads(out)["emergency"]) == ("none", False)
    code, out, err = ballast("reserve", "release", repo)
    assert (code, out) == (11, "") and "it lends the reserve and gives it back by itself, or unmount it first" in err
    assert ballast("reserve", "status", repo)[0] == 0
    assert ballast("restore", repo, f"back:{files}", mnt / "live" / "restored")[0] == 0
    assert (mnt / "live" / "restored" / "a").read_bytes() == b"one"
    assert ballast("snapshot", "pin", repo, "back")[0] == 0
    code, _, err = ballast("snapshot", "rename", repo, "back", "other")
    assert code == 1 and "pinned" in err and (mnt / "snapshots" / "back").is_dir()
    assert ballast("snapshot", "unpin", repo, "back")[0] == 0
    assert ballast("snapshot", "delete", repo, "second", "--json")[0] == 0
    assert ballast("snapshot", "undelete", repo, "second")[0] == 0
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


@pytest.mark.mount
def test_an_unmount_does_not_wait_for_a_container_that_has_a_copy(mounted: tuple[Path, Path]) -> None:
    """Every mount namespace made while we are mounted holds one, and with it the connection."""
    repo, mnt = mounted
    (mnt / "live" / "mine").write_bytes(b"mine")
    command = ["unshare", "--mount", "--propagation", "private", "--kill-child", "--fork", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
        assert container.stdin is not None and container.stdout is not None
        container.stdin.write(b"ready\n")
        container.stdin.flush()
        assert container.stdout.readline() == b"ready\n", "the namespace is there"
        assert ballast("umount", mnt) == (0, "Safe to remove.\n", "")
        assert container.poll() is None
        assert ballast("check", repo, "--read-data")[0] == 0
        container.stdin.close()
        container.wait(timeout=30)
    code, out, _ = ballast("snapshot", "list", repo, "--json")
    assert code == 0 and len(json.loads(out)) == 2
