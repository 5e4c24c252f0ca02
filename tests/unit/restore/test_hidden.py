"""Directories that have a temporary name until their files are there: what it saves, and what is seen meanwhile."""

import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from repository.errors import DamagedError, NoSpaceError
from repository.ids import RecordId
from repository.locate import locate
from repository.repo import Repository
from repository.restore import restore as walking
from repository.restore import sending
from repository.restore.attributes import Attributes
from repository.restore.command import restore
from repository.restore.files import FileWriter
from repository.restore.jobs import Job, Span
from repository.restore.target import TEMPORARY_PREFIX, WhenThere, open_destination
from tests.support.sources import Told, age, describe, store
from tests.unit.restore.test_restore import put_back, still_open

DIRECTORIES = 6
FILES = 30


@pytest.fixture
def tree(repo: Repository, files: Path) -> str:
    """Directories with many files each; how they are named in a snapshot."""
    for number in range(DIRECTORIES):
        (files / f"d{number}" / "below").mkdir(parents=True)
        for name in range(FILES):
            (files / f"d{number}" / f"f{name:02}").write_bytes(b"%d " % number * (100 + name))
        (files / f"d{number}" / "below" / "single").write_bytes(b"alone")
    age(files)
    created, told = store(repo, files)
    assert told.problems == []
    return f"{created.slot.name}:{files}"


def seen(out: Path) -> list[Path]:
    """All files without a temporary name in their paths, relative."""
    found = []
    for directory, below, names in os.walk(out):
        below[:] = [name for name in below if not name.startswith(os.fsdecode(TEMPORARY_PREFIX))]
        found += [Path(directory, name).relative_to(out) for name in names if not name.startswith(".ballast-restore-")]
    return found


def test_four_calls_make_a_file(repo: Repository, tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open, write, set its times, close; all else is done once for a directory."""
    calls: Counter[str] = Counter()
    for name in ("open", "pwrite", "utime", "close", "rename", "fchown", "fchmod", "fstat", "stat", "unlink", "mkdir"):

        def counted(*args: object, name: str = name, real: object = getattr(os, name), **named: object) -> object:
            calls[name] += 1
            assert callable(real)
            return real(*args, **named)

        for module in ("target", "attributes"):
            monkeypatch.setattr(f"repository.restore.{module}.os.{name}", counted)
    put_back(repo, tree, tmp_path / "out")
    monkeypatch.undo()
    directories = 2 * DIRECTORIES + 1
    files = DIRECTORIES * (FILES + 1)
    few = 6 * directories + 10  # directories themselves, and files that are alone in one
    assert calls["pwrite"] == files and calls["utime"] == files + directories
    assert files <= calls["open"] <= files + few and files <= calls["close"] <= files + few
    rest = {name: calls[name] for name in ("rename", "fchown", "fchmod", "fstat", "stat", "unlink", "mkdir")}
    assert all(count <= 2 * directories for count in rest.values()), rest


def test_a_killed_restore_leaves_no_half_file_under_its_name(
    repo: Repository, tree: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed with half of a file's bytes written; with --merge it is then completed."""
    out = tmp_path / "out"
    real, left = os.pwrite, [FILES * 3 // 2]

    def dying(fd: int, data: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] == 0:
            real(fd, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data, offset)

    monkeypatch.setattr("repository.restore.hands.THREADS", 1)
    monkeypatch.setattr(sending, "JOB_FILES", 10)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr("repository.restore.target.os.pwrite", dying)
        try:
            restore(repo, locate(repo, tree), os.fsencode(out), None, notices=Told(), progress=Told())
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it was to be killed"
    whole = seen(out)
    assert whole and all((out / one).read_bytes() == (files / one).read_bytes() for one in whole)
    told = Told()
    restore(repo, locate(repo, tree), os.fsencode(out), WhenThere.KEEP, notices=told, progress=told)
    assert told.problems == []
    assert sorted(seen(out)) == sorted(seen(files))
    assert all((out / one).read_bytes() == (files / one).read_bytes() for one in seen(files))


def test_a_full_destination_leaves_whole_files_under_their_names(
    repo: Repository, tree: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, real = [FILES * 3 // 2], os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            real(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr("repository.restore.target.os.pwrite", full)
    with pytest.raises(NoSpaceError):
        restore(repo, locate(repo, tree), os.fsencode(tmp_path / "out"), None, notices=Told(), progress=Told())
    found = [Path(directory, name) for directory, _, names in os.walk(tmp_path / "out") for name in names]
    assert len(found) == FILES * 3 // 2 == len(seen(tmp_path / "out")), "nothing keeps a temporary name"
    assert all(one.read_bytes() == (files / one.relative_to(tmp_path / "out")).read_bytes() for one in found)
    assert still_open(tmp_path / "out") == []


def test_a_directory_that_does_not_get_its_name_is_told(
    repo: Repository, tree: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else puts another in its place."""
    real = os.rename

    def rename(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if target == b"d3":
            (tmp_path / "out" / "d3" / "others").mkdir(parents=True)
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr("repository.restore.target.os.rename", rename)
    told = Told()
    restore(repo, locate(repo, tree), os.fsencode(tmp_path / "out"), None, notices=told, progress=told)
    ((path, why),) = told.problems
    assert path == b"d3" and why.startswith("it stays under the name '.ballast-restore-")
    left = tmp_path / "out" / why.split("'")[1]
    assert len(list(left.glob("f*"))) == FILES
    assert os.listdir(tmp_path / "out" / "d3") == ["others"]


def test_owner_and_mode_are_exact_whatever_new_files_get(repo: Repository, files: Path, tmp_path: Path) -> None:
    """Two files with each mode: the first tells what the second gets. The destination hands its group on."""
    for number in range(2):
        (files / f"d{number}").mkdir()
        for mode in (0o000, 0o200, 0o444, 0o600, 0o644, 0o666, 0o755, 0o777, 0o1644, 0o2755, 0o4755):
            for name in "ab":
                path = files / f"d{number}" / f"{mode:o}{name}"
                path.write_bytes(b"x")
                if os.geteuid() == 0 and number:
                    os.chown(path, 1234, 5678)
                os.chmod(path, mode)
    age(files)
    created, _ = store(repo, files)
    for name, umask, mode in (("out", 0o077, 0o2755), ("other", 0o000, 0o755)):
        out = tmp_path / name
        out.mkdir()
        if os.geteuid() == 0:
            os.chown(out, -1, 4321)
        out.chmod(mode)
        before = os.umask(umask)
        try:
            put_back(repo, f"{created.slot.name}:{files}", out)
        finally:
            os.umask(before)
        assert describe(out) == describe(files)


def test_a_directory_with_much_in_it_appears_at_once(
    repo: Repository, tree: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a killed restore would leave all of that under a temporary name."""
    monkeypatch.setattr(walking, "HIDDEN_BYTES_MAX", 100)
    made: list[bytes] = []
    real = os.mkdir

    def mkdir(name: bytes, mode: int, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            made.append(name)
        real(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr("repository.restore.target.os.mkdir", mkdir)
    put_back(repo, tree, tmp_path / "out")
    assert sorted(made) == sorted([b"d%d" % number for number in range(DIRECTORIES)] + [b"below"] * DIRECTORIES)
    assert describe(tmp_path / "out") == describe(files)


def readable(content_id: RecordId, first: int, end: int) -> list[bytes]:
    return [b"a", b"b"][first:end]


def unreadable(content_id: RecordId, first: int, end: int) -> list[bytes]:
    raise DamagedError("gone")


@pytest.mark.parametrize(("names", "left"), [(readable, ["a", "other"]), (unreadable, [])])
def test_what_the_dead_left_is_removed_where_it_may_be_half(
    repo: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: Callable[[RecordId, int, int], list[bytes]],
    left: list[str],
) -> None:
    """Only in hidden directories: elsewhere a file with a name of its own is whole, or somebody else's."""
    for name in ("hidden", "plain"):
        (tmp_path / name).mkdir()
        for file in ("a", "b", "other"):
            (tmp_path / name / file).touch()
    record = RecordId(bytes(32))
    opened = [
        open_destination(os.fsencode(tmp_path / name), None, empty=False, attributes=Attributes())
        for name in ("hidden", "plain")
    ]
    opened[0].hidden = True
    monkeypatch.setattr(repo.reader, "file_names", names)
    writer = FileWriter(repo.store, repo.reader, None, WhenThere.KEEP, threading.Event())
    writer.sweep(opened, Job(1, spans=[Span(place, record, record, 1, 2) for place in range(2)]))
    for directory in opened:
        directory.release()
    assert sorted(os.listdir(tmp_path / "hidden")) == left
    assert sorted(os.listdir(tmp_path / "plain")) == ["a", "b", "other"]
