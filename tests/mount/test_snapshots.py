"""Snapshots as directories: made, shown, renamed, deleted, taken back by mkdir, mv and rmdir; and what is refused."""

import json
import os
import re
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from repository.format.catalog import SnapshotKind
from repository.repo import Repository
from tests.mount.conftest import NewMount
from tests.support.mounted import Mounted, attempt, ballast, ballast_json, run, wait_until

pytestmark = pytest.mark.mount

BY_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d+)?")
QUICK = ("--settle", "300ms", "--interval", "0")


def rows(mount: Mounted) -> list[dict[str, object]]:
    """What `ballast snapshot list` says."""
    found = ballast_json("snapshot", "list", mount.repository)
    assert isinstance(found, list)
    return found


def kinds(repository: Path) -> list[SnapshotKind]:
    """Of all snapshots, shown or not."""
    with closing(Repository.open(repository, writable=False)) as opened:
        return [slot.kind for slot in opened.catalog.slots()]


def test_the_root_of_a_mount(mount: Mounted) -> None:
    assert sorted(os.listdir(mount.path)) == [".ballast", "README.txt", "live", "snapshots", "trash"]
    text = (mount.path / "README.txt").read_text()
    assert (mount.path / "README.txt").stat().st_size == len(text.encode())
    for needed in ("live", "snapshots", "umount", str(mount.repository)):
        assert needed in text
    shown = json.loads((mount.path / ".ballast" / "status.json").read_text())
    asked = ballast_json("status", mount.repository)
    assert isinstance(asked, dict)
    assert set(shown) == set(asked)
    assert shown["mount"]["pid"] == asked["mount"]["pid"] == mount.pid
    assert shown["mode"] == "normal" and shown["snapshots"] == 0
    mount.commit("first")
    assert json.loads((mount.path / ".ballast" / "status.json").read_text())["snapshots"] == 1


def test_what_settles_becomes_a_snapshot_and_what_stays_does_not(new_mount: NewMount) -> None:
    mount = new_mount(*QUICK)
    assert os.listdir(mount.snapshots) == []
    (mount.live / "file").write_text("one")
    wait_until(lambda: len(mount.names()) == 1, "the first snapshot")
    [first] = mount.names()
    assert BY_TIME.fullmatch(first)
    assert (mount.snapshots / first / "file").read_text() == "one"
    assert os.readlink(mount.snapshots / "latest") == first
    time.sleep(1.5)
    assert mount.names() == [first], "no change, no snapshot"
    (mount.live / "file").write_text("two")
    wait_until(lambda: len(mount.names()) == 2, "the second snapshot")
    second = mount.names()[-1]
    assert os.readlink(mount.snapshots / "latest") == second
    assert (mount.snapshots / "latest" / "file").read_text() == "two"
    assert (mount.snapshots / first / "file").read_text() == "one"
    assert [row["kind"] for row in rows(mount)] == ["implicit", "implicit"]


def test_steady_writing_puts_the_snapshot_off(new_mount: NewMount) -> None:
    mount = new_mount("--settle", "1s", "--interval", "0", "--max-age", "1h")
    end_s = time.monotonic() + 3
    while time.monotonic() < end_s:
        (mount.live / "file").write_text(str(end_s))
        time.sleep(0.05)
        assert mount.names() == []
    wait_until(lambda: len(mount.names()) == 1, "a snapshot once it is quiet")


def test_a_provisional_snapshot_is_not_shown(new_mount: NewMount) -> None:
    mount = new_mount("--settle", "30s", "--max-age", "500ms")
    (mount.live / "file").write_text("x")
    wait_until(lambda: kinds(mount.repository) == [SnapshotKind.PROVISIONAL], "a provisional snapshot")
    (mount.live / "file").write_text("y")
    time.sleep(1.5)
    assert kinds(mount.repository) == [SnapshotKind.PROVISIONAL], "replaced, not added to"
    assert os.listdir(mount.snapshots) == []
    mount.umount()
    assert kinds(mount.repository) == [SnapshotKind.IMPLICIT], "the one made at the end replaces it"


def test_umount_makes_a_snapshot_of_what_changed(mount: Mounted) -> None:
    (mount.live / "file").write_text("kept")
    mount.remount()
    [name] = mount.names()
    assert (mount.snapshots / name / "file").read_text() == "kept"
    mount.remount()
    assert mount.names() == [name], "nothing changed, so there is no other"


def test_a_mount_that_changes_nothing_leaves_nothing(mount: Mounted) -> None:
    mount.remount()
    assert mount.names() == [], "an empty `live` that nobody wrote to is no snapshot"
    (mount.live / "file").write_text("one")
    mount.remount()
    [made] = mount.names()
    packs, segments = _files(mount.repository / "packs"), _files(mount.repository / "index")
    for _ in range(2):
        assert (mount.live / "file").read_text() == "one"
        mount.remount()
        assert mount.names() == [made]
    # What every mount keeps ready for writing, and takes away or fills anew, is not counted: only how many there are.
    assert len(_files(mount.repository / "packs")) == len(packs)
    assert _files(mount.repository / "index") == segments


def _files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


def test_mkdir_names_the_state_of_live(mount: Mounted) -> None:
    (mount.live / "file").write_text("before")
    before = mount.commit("before-upgrade")
    (mount.live / "file").write_text("after")
    after = mount.commit("nach dem Öffnen")
    unchanged = mount.commit("the same again")
    assert [(one / "file").read_text() for one in (before, after, unchanged)] == ["before", "after", "after"]
    assert sorted(os.listdir(mount.snapshots)) == ["before-upgrade", "latest", "nach dem Öffnen", "the same again"]
    assert {row["name"]: row["kind"] for row in rows(mount)} == {
        "before-upgrade": "named",
        "nach dem Öffnen": "named",
        "the same again": "named",
    }
    with pytest.raises(FileExistsError):
        before.mkdir()
    with pytest.raises(FileExistsError):
        (mount.snapshots / "latest").mkdir()
    with pytest.raises(OSError):
        os.mkdir(os.fsencode(mount.snapshots) + b"/\xff\xfe")
    assert os.readlink(mount.snapshots / "latest") == "the same again"


def test_mv_and_rmdir_rename_delete_and_take_back(mount: Mounted) -> None:
    (mount.live / "file").write_text("one")
    mount.commit("one")
    (mount.live / "file").write_text("two")
    mount.commit("two")
    run(["mv", mount.snapshots / "one", mount.snapshots / "first"])
    assert mount.names() == ["first", "two"]
    run(["mv", mount.snapshots / "first", mount.trash])
    assert mount.names() == ["two"] and os.listdir(mount.trash) == ["first"]
    assert (mount.trash / "first" / "file").read_text() == "one", "the trash can be browsed"
    run(["rmdir", mount.snapshots / "two"])
    assert mount.names() == [] and sorted(os.listdir(mount.trash)) == ["first", "two"]
    assert not (mount.snapshots / "latest").is_symlink()
    run(["mv", mount.trash / "first", mount.snapshots / "again"])
    assert (mount.snapshots / "again" / "file").read_text() == "one"
    mount.remount()
    assert mount.names() == ["again"] and os.listdir(mount.trash) == ["two"]
    run(["mv", mount.trash / "two", mount.snapshots])
    assert (mount.snapshots / "two" / "file").read_text() == "two"


def test_a_listing_of_snapshots_that_is_rewound_shows_what_came_meanwhile(mount: Mounted) -> None:
    mount.commit("one")
    handle = os.open(mount.snapshots, os.O_RDONLY)
    try:
        assert sorted(os.listdir(handle)) == ["latest", "one"]
        mount.commit("two")
        (mount.snapshots / "one").rmdir()
        assert sorted(os.listdir(handle)) == ["latest", "two"]
    finally:
        os.close(handle)


def test_names_that_meet_in_the_trash(mount: Mounted) -> None:
    for text in ("one", "two"):
        (mount.live / "file").write_text(text)
        mount.commit("name")
        (mount.snapshots / "name").rmdir()
    assert sorted(os.listdir(mount.trash)) == ["name", "name-2"]
    assert {(mount.trash / name / "file").read_text() for name in os.listdir(mount.trash)} == {"one", "two"}
    mount.commit("name")
    with pytest.raises(OSError):
        os.rename(mount.trash / "name", mount.snapshots / "name")
    os.rename(mount.trash / "name-2", mount.snapshots / "other")
    assert mount.names() == ["name", "other"]


def test_a_pinned_snapshot_stays_where_it_is(mount: Mounted) -> None:
    (mount.live / "file").write_text("x")
    mount.commit("kept")
    assert ballast("snapshot", "pin", mount.repository, "kept").returncode == 0
    for call in (
        "os.rmdir(sys.argv[1] + '/snapshots/kept')",
        "os.rename(sys.argv[1] + '/snapshots/kept', sys.argv[1] + '/trash/kept')",
        "os.rename(sys.argv[1] + '/snapshots/kept', sys.argv[1] + '/snapshots/other')",
    ):
        assert attempt(call, mount.path) == "EBUSY", call
    assert mount.names() == ["kept"] and os.listdir(mount.trash) == []
    assert ballast("snapshot", "unpin", mount.repository, "kept").returncode == 0
    (mount.snapshots / "kept").rmdir()


def test_everything_else_outside_live_is_read_only(mount: Mounted) -> None:
    (mount.live / "dir").mkdir()
    (mount.live / "dir" / "file").write_text("x")
    os.symlink("file", mount.live / "dir" / "link")
    mount.commit("kept")
    mount.commit("gone").rmdir()
    for call in (
        "open(sys.argv[1] + '/snapshots/kept/dir/file', 'w')",
        "open(sys.argv[1] + '/snapshots/kept/dir/file', 'a')",
        "open(sys.argv[1] + '/snapshots/kept/dir/new', 'w')",
        "open(sys.argv[1] + '/snapshots/new', 'w')",
        "open(sys.argv[1] + '/trash/new', 'w')",
        "open(sys.argv[1] + '/README.txt', 'a')",
        "open(sys.argv[1] + '/.ballast/status.json', 'w')",
        "open(sys.argv[1] + '/new', 'w')",
        "os.mkdir(sys.argv[1] + '/new')",
        "os.mkdir(sys.argv[1] + '/trash/new')",
        "os.mkdir(sys.argv[1] + '/snapshots/kept/new')",
        "os.rmdir(sys.argv[1] + '/snapshots')",
        "os.rmdir(sys.argv[1] + '/live')",
        "os.rmdir(sys.argv[1] + '/trash/gone')",
        "os.unlink(sys.argv[1] + '/snapshots/latest')",
        "os.unlink(sys.argv[1] + '/snapshots/kept/dir/file')",
        "os.unlink(sys.argv[1] + '/README.txt')",
        "os.rename(sys.argv[1] + '/snapshots/kept/dir/file', sys.argv[1] + '/snapshots/kept/other')",
        "os.rename(sys.argv[1] + '/live', sys.argv[1] + '/dead')",
        "os.rename(sys.argv[1] + '/snapshots/latest', sys.argv[1] + '/snapshots/newest')",
        "os.rename(sys.argv[1] + '/snapshots/kept', sys.argv[1] + '/kept')",
        "os.chmod(sys.argv[1] + '/snapshots/kept/dir/file', 0o777)",
        "os.chmod(sys.argv[1] + '/snapshots/kept', 0o777)",
        "os.chmod(sys.argv[1] + '/snapshots', 0o777)",
        "os.chown(sys.argv[1] + '/snapshots/kept/dir/file', 1, 1)",
        "os.utime(sys.argv[1] + '/snapshots/kept/dir/file', (1, 1))",
        "os.truncate(sys.argv[1] + '/snapshots/kept/dir/file', 0)",
        "os.setxattr(sys.argv[1] + '/snapshots/kept/dir/file', 'user.x', b'y')",
        "os.removexattr(sys.argv[1] + '/snapshots/kept/dir/file', 'user.x')",
        "os.symlink('x', sys.argv[1] + '/snapshots/x')",
        "os.link(sys.argv[1] + '/snapshots/kept/dir/file', sys.argv[1] + '/snapshots/kept/dir/new')",
    ):
        assert attempt(call, mount.path) == "EROFS", call
    for call in (
        "os.rename(sys.argv[1] + '/snapshots/kept/dir/file', sys.argv[1] + '/live/file')",
        "os.rename(sys.argv[1] + '/live/dir', sys.argv[1] + '/snapshots/dir')",
        "os.link(sys.argv[1] + '/snapshots/kept/dir/file', sys.argv[1] + '/live/link')",
        "os.rename(sys.argv[1] + '/snapshots/kept', sys.argv[1] + '/live/kept')",
    ):
        assert attempt(call, mount.path) == "EXDEV", call
    assert (mount.snapshots / "kept" / "dir" / "file").read_text() == "x"


def test_rm_rf_does_no_harm(mount: Mounted) -> None:
    (mount.live / "dir").mkdir()
    (mount.live / "dir" / "file").write_text("precious")
    mount.commit("one")
    mount.commit("two")
    before = run(["find", mount.snapshots, "-printf", "%P %i %s\\n"])
    command = f"rm -rf {mount.snapshots}/* {mount.trash} {mount.path}/README.txt {mount.path}/.ballast"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert run(["find", mount.snapshots, "-printf", "%P %i %s\\n"]) == before
    assert os.listdir(mount.trash) == []
    assert (mount.snapshots / "one" / "dir" / "file").read_text() == "precious"


def test_a_deleted_snapshot_stays_readable_for_who_has_it_open(mount: Mounted) -> None:
    (mount.live / "file").write_bytes(os.urandom(3_000_000))
    expected = (mount.live / "file").read_bytes()
    mount.commit("going")
    (mount.live / "file").write_text("small")
    mount.commit("staying")
    with (mount.snapshots / "going" / "file").open("rb") as file:
        head = file.read(1000)
        (mount.snapshots / "going").rmdir()
        assert ballast("gc", mount.repository).returncode == 0
        assert head + file.read() == expected
    assert os.listdir(mount.trash) == ["going"]


def test_the_trash_is_emptied_on_request_only(mount: Mounted) -> None:
    (mount.live / "file").write_bytes(os.urandom(3_000_000))
    mount.commit("one").rmdir()
    assert ballast("gc", mount.repository).returncode == 0
    assert os.listdir(mount.trash) == ["one"], "it can be taken back for a day"
    (mount.live / "file").write_bytes(b"")
    assert ballast("gc", mount.repository, "--safety", "none").returncode == 0
    assert os.listdir(mount.trash) == []
    assert (mount.live / "file").read_bytes() == b""
    mount.umount()
    done = ballast("check", "--read-data", mount.repository)
    assert done.returncode == 0, done.stdout


def test_snapshots_of_other_sources_are_shown_beside(mount: Mounted, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    mount.commit("of-live")
    done = ballast("snapshot", "create", mount.repository, tmp_path / "home", "--name", "straight-in")
    if done.returncode == 11:
        mount.umount()
        done = ballast("snapshot", "create", mount.repository, tmp_path / "home", "--name", "straight-in")
        mount.start()
    assert done.returncode == 0, done.stderr
    stored = mount.snapshots / "straight-in" / (tmp_path / "home" / "letter").relative_to("/")
    assert stored.read_text() == "dear"
    assert os.readlink(mount.snapshots / "latest") == "of-live"
