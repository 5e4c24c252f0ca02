"""Programs that ask much of a file system: SQLite, git, rsync, tar, editors, and those that lock."""

import os
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from repository.units import MIB
from tests.support.mounted import Mounted, python, run, start_python

pytestmark = pytest.mark.mount

LOCAL_GIT = ("git", "-c", "user.name=Anna", "-c", "user.email=anna@example.org", "-c", "init.defaultBranch=main")


def git(cwd: Path, *arguments: str | Path) -> str:
    """Runs git without the configuration of whoever runs the tests."""
    return run(["env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", *LOCAL_GIT, *arguments], cwd)


def test_cp_writes_a_large_file_a_mebibyte_at_a_time(place: Path, tmp_path: Path) -> None:
    """Each write is a request, for which `cp` and the mount wake each other."""
    data = random.Random(3).randbytes(16 * MIB)
    (tmp_path / "large").write_bytes(data)
    before = _writes_of_children()
    run(["cp", tmp_path / "large", place / "copy"])
    assert 16 <= _writes_of_children() - before <= 16 + 8
    assert (place / "copy").read_bytes() == data


def _writes_of_children() -> int:
    """Calls of `write` by this process and by those it has waited for."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["syscw"])


def test_sqlite_in_wal_mode_with_a_reader_and_a_writer(place: Path) -> None:
    path = place / "database"
    code = """
import sqlite3
base = sqlite3.connect(sys.argv[1], timeout=30)
last = -1
while last < 299:
    count, found, total = base.execute("select count(*), coalesce(max(n), -1), coalesce(sum(n), 0) from t").fetchone()
    assert found >= last and count == found + 1 and total == found * (found + 1) // 2, (found, last, count, total)
    last = found
print("consistent")
"""
    base = sqlite3.connect(path)
    assert base.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    base.execute("pragma synchronous=full")
    base.execute("create table t (n integer primary key, text text)")
    reader = start_python(code, path)
    for number in range(300):
        with base:
            base.execute("insert into t values (?, ?)", (number, "x" * (number * 17 % 3000)))
        if number % 100 == 50:
            base.execute("pragma wal_checkpoint(truncate)")
    assert reader.communicate(timeout=60)[0] == "consistent\n"
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()
    assert run(["sqlite3", path, "select count(*), sum(n) from t; pragma integrity_check;"]) == "300|44850\nok\n"


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist"])
def test_sqlite_with_a_rollback_journal(place: Path, mode: str) -> None:
    base = sqlite3.connect(place / "database")
    base.execute(f"pragma journal_mode={mode}")
    base.execute("create table t (n integer)")
    for number in range(30):
        with base:
            base.executemany("insert into t values (?)", [(number,)] * 50)
    with base:
        base.execute("delete from t where n % 2")
    base.execute("vacuum")
    assert base.execute("select count(*) from t").fetchone() == (750,)
    base.close()
    assert run(["sqlite3", place / "database", "pragma integrity_check;"]) == "ok\n"


def test_git_commits_clones_repacks_and_finds_no_fault(place: Path) -> None:
    dice = random.Random(7)
    work = place / "work"
    work.mkdir()
    git(work, "init", "-q")
    for round_ in range(4):
        for number in range(25):
            file = work / f"dir{number % 5}" / f"file{number}"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(str(dice.randrange(100 + round_)) for _ in range(200)))
        git(work, "add", "-A")
        git(work, "commit", "-q", "-m", f"round {round_}")
    git(work, "checkout", "-q", "-b", "side", "HEAD~2")
    git(work, "checkout", "-q", "main")
    assert git(work, "status", "--porcelain") == ""
    git(work, "gc", "-q", "--prune=now")
    git(work, "fsck", "--full", "--strict")
    git(place, "clone", "-q", "--no-local", work, place / "clone")
    git(place / "clone", "fsck", "--full")
    assert git(place / "clone", "log", "--format=%s").split("\n")[:2] == ["round 3", "round 2"]
    assert run(["diff", "-r", "--exclude=.git", work, place / "clone"]) == ""
    git(place, "clone", "-q", work, place / "linked")
    assert any(path.stat().st_nlink > 1 for path in (place / "linked" / ".git" / "objects").rglob("*.pack"))
    git(place / "linked", "fsck")


def make_tree(root: Path) -> None:
    """A bit of everything that a backup program has to keep."""
    dice = random.Random(8)
    (root / "dir" / "empty").mkdir(parents=True)
    (root / "big").write_bytes(dice.randbytes(700_000))
    with (root / "sparse").open("wb") as file:
        file.truncate(30_000_000)
        file.seek(10_000_000)
        file.write(b"island")
    os.link(root / "big", root / "dir" / "hard link")
    (root / "soft link").symlink_to("dir/hard link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    for number in range(40):
        path = root / "dir" / f"file {number} \N{LATIN SMALL LETTER U WITH DIAERESIS}"
        path.write_text("text\n" * number)
        path.chmod(0o600 + number % 64)
        os.chown(path, 1000 + number, 2000 + number)
        os.utime(path, ns=(number * 10**15 + 1, number * 10**15 + 123_456_789))
        os.setxattr(path, "user.number", str(number).encode())
    run(["setfacl", "-m", "u:1234:rwx,g:4321:r", root / "dir" / "file 1 \N{LATIN SMALL LETTER U WITH DIAERESIS}"])
    run(["setfacl", "-m", "d:u:1234:rwx", root / "dir"])
    (root / "program").write_bytes(b"\x7fELF")
    (root / "program").chmod(0o4755)


def rsync(source: Path, target: Path, *options: str) -> str:
    """What rsync changed, as it itemises it."""
    return run(
        ["rsync", "-aHAX", "--numeric-ids", "--delete", "--itemize-changes", *options, f"{source}/", f"{target}/"]
    )


def test_rsync_in_again_and_out(mount: Mounted, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_tree(tmp_path / "source")
    rsync(tmp_path / "source", mount.live / "copy")
    assert rsync(tmp_path / "source", mount.live / "copy", "--checksum") == "", "nothing is left to do"
    snapshot = mount.commit("one")
    (tmp_path / "source" / "big").write_bytes(b"smaller")
    shutil.rmtree(tmp_path / "source" / "dir" / "empty")
    os.rename(tmp_path / "source" / "program", tmp_path / "source" / "dir" / "program")
    rsync(tmp_path / "source", mount.live / "copy", "--inplace")
    assert rsync(tmp_path / "source", mount.live / "copy", "--checksum") == ""
    mount.remount()
    assert rsync(tmp_path / "source", mount.live / "copy", "--checksum") == ""
    (tmp_path / "out").mkdir()
    rsync(snapshot / "copy", tmp_path / "out", "--sparse")
    assert rsync(snapshot / "copy", tmp_path / "out", "--checksum") == ""
    assert (tmp_path / "out" / "big").stat().st_nlink == 2
    assert (tmp_path / "out" / "sparse").stat().st_blocks < 1000


def test_tar_unpacks_sparse_files_acls_and_all(place: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_tree(tmp_path / "source")
    everything = ("--acls", "--xattrs", "--xattrs-include=*", "--numeric-owner")
    archive = tmp_path / "archive.tar"
    run(["tar", *everything, "--sparse", "--format=posix", "-cf", archive, "."], tmp_path / "source")
    run(["tar", *everything, "-xpf", archive], place)
    assert rsync(tmp_path / "source", place, "--checksum", "--dry-run") == ""
    assert (place / "sparse").stat().st_blocks * 512 < 2_000_000
    run(["tar", *everything, "--compare", "-f", archive], place)


def test_cp_and_mv_across_the_border(place: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_tree(tmp_path / "source")
    run(["cp", "-a", tmp_path / "source", place / "copy"])
    assert rsync(tmp_path / "source", place / "copy", "--checksum", "--dry-run") == ""
    run(["cp", "-a", place / "copy", place / "again"])
    run(["mv", place / "again", tmp_path / "back"])
    assert rsync(tmp_path / "source", tmp_path / "back", "--checksum", "--dry-run") == ""
    run(["mv", place / "copy", place / "renamed"])
    run(["rm", "-rf", place / "renamed"])
    assert os.listdir(place) == []


def test_an_editor_saves(place: Path) -> None:
    path = place / "letter"
    path.write_text("first")
    path.chmod(0o640)
    for number in range(30):
        temporary = place / f".letter.{number}.tmp"
        with temporary.open("x") as file:
            file.write(f"version {number}")
            file.flush()
            os.fsync(file.fileno())
        shutil.copystat(path, temporary)
        os.rename(temporary, path)
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
        assert path.read_text() == f"version {number}"
    assert os.listdir(place) == ["letter"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_editor_that_keeps_a_backup_by_a_hard_link(place: Path) -> None:
    path = place / "letter"
    path.write_text("first")
    for number in range(10):
        (place / "letter~").unlink(missing_ok=True)
        os.link(path, place / "letter~")
        (place / "new").write_text(f"version {number}")
        os.replace(place / "new", path)
        assert (place / "letter~").read_text() == (f"version {number - 1}" if number else "first")
        assert (place / "letter~").stat().st_nlink == 1


def test_programs_run_from_live_and_from_a_snapshot(mount: Mounted) -> None:
    shutil.copy("/bin/echo", mount.live / "program")
    (mount.live / "script").write_text("#!/bin/sh\n./program said $1\n")
    (mount.live / "script").chmod(0o755)
    assert run(["./script", "live"], mount.live) == "said live\n"
    snapshot = mount.commit("kept")
    (mount.live / "script").chmod(0o644)
    assert run(["./script", "snapshot"], snapshot) == "said snapshot\n"
    with pytest.raises(PermissionError):
        run(["./script", "live"], mount.live)


LOCKS = {
    "flock": "import fcntl; fcntl.flock(file, fcntl.LOCK_EX | {more})",
    "fcntl": "import fcntl; fcntl.lockf(file, fcntl.LOCK_EX | {more}, 10, 5)",
}


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
def test_locks_between_processes(place: Path, kind: str) -> None:
    path = place / "lock"
    path.touch()
    opened = "file = open(sys.argv[1], 'r+')\n"
    holder = start_python(opened + LOCKS[kind].format(more="0") + "\nprint('held'); sys.stdin.read()", path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    attempt = (
        opened
        + "try:\n    "
        + LOCKS[kind].format(more="fcntl.LOCK_NB")
        + "\n    print('got it')\nexcept BlockingIOError:\n    print('taken')\n"
    )
    assert python(attempt, path) == "taken\n"
    waiter = start_python(opened + LOCKS[kind].format(more="0") + "\nprint('mine')", path)
    holder.communicate("")
    assert waiter.communicate(timeout=30)[0] == "mine\n"
    assert python(attempt, path) == "got it\n"


def test_counting_under_a_lock_loses_nothing(place: Path) -> None:
    (place / "counter").write_text("0")
    code = """
import fcntl
for _ in range(60):
    with open(sys.argv[1], "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
        file.flush()
"""
    for counter in [start_python(code, place / "counter") for _ in range(3)]:
        counter.communicate()
        assert counter.returncode == 0
    assert (place / "counter").read_text() == "180"
