"""Files into a snapshot and out again."""

import errno
import os
import shutil
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repository.errors import (
    InterruptedByUserError,
    MissingRecordError,
    NameTakenError,
    NoSpaceError,
    NoSuchSnapshotError,
)
from repository.format.record import Record
from repository.locate import Located, locate
from repository.repo import Repository
from repository.restore import files as restore_files
from repository.restore.command import restore
from repository.restore.restore import WhenThere
from repository.restore.rows import Row
from repository.restore.sending import RestoreCounts
from repository.restore.target import TEMPORARY_PREFIX
from repository.units import MIB
from tests.support.repositories import SetClock, make, open_for_writing
from tests.support.sources import Told, age, describe, store

ROOT = os.geteuid() == 0


def put_back(
    repo: Repository, what: str, destination: Path, when_there: WhenThere | None = None
) -> tuple[RestoreCounts, Told]:
    told = Told()
    located = locate(repo, what)
    counts = restore(repo, located, os.fsencode(destination), when_there, notices=told, progress=told)
    found = [name for _, below, names in os.walk(destination) for name in below + names]
    leftovers = [name for name in found if name.startswith(".ballast-restore")]
    assert leftovers == []
    return counts, told


def fill(files: Path) -> None:
    """One of everything."""
    (files / "empty").touch()
    (files / "text").write_bytes(b"hello\n")
    os.chmod(files / "text", 0o640)
    (files / "setuid").write_bytes(b"#!")
    os.chmod(files / "setuid", 0o6755)
    (files / "large").write_bytes(os.urandom(3 * MIB))
    with open(files / "sparse", "wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
        file.truncate(9 * MIB)
    (files / "deep" / "er").mkdir(parents=True)
    (files / "deep" / "er" / "file").write_bytes(b"x")
    os.link(files / "text", files / "deep" / "er" / "linked")
    os.link(files / "large", files / "deep" / "large-too")
    os.chmod(files / "deep" / "er", 0o555)
    os.chmod(files / "deep", 0o1777)
    (files / "dangling").symlink_to("/nowhere/at all")
    with open(os.path.join(os.fsencode(files), b"\xff\n\x01 bytes"), "wb") as odd:
        odd.write(b"odd")
    (files / ("n" * 255)).write_bytes(b"long")
    os.mkfifo(files / "fifo", 0o600)
    os.mknod(files / "socket", stat.S_IFSOCK | 0o700)
    os.setxattr(files / "text", "user.note", b"\x00binary\xff")
    os.setxattr(files / "deep", "user.directory", b"yes")
    if ROOT:
        os.mknod(files / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(files / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 200))
        os.chown(files / "empty", 1234, 5678)
        os.chown(files / "dangling", 1234, 5678, follow_symlinks=False)
        os.setxattr(files / "dangling", "trusted.x", b"1", follow_symlinks=False)
    os.setxattr(files / "empty", "system.posix_acl_access", acl(user=1000))
    os.setxattr(files / "deep", "system.posix_acl_default", acl(user=1000))


def acl(user: int) -> bytes:
    """An access list: rwx for its owner, r for one more user, nothing for others (acl(5), linux/posix_acl_xattr.h)."""
    entries = [(1, 7, -1), (2, 4, user), (4, 5, -1), (16, 5, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_everything_comes_back_exactly(repo: Repository, files: Path, tmp_path: Path) -> None:
    fill(files)
    age(files)
    before = describe(files)
    created, _ = store(repo, files)
    counts, told = put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert told.problems == []
    assert describe(tmp_path / "out") == before
    assert counts.files == created.slot.totals.files
    # The hole is one again.
    assert os.stat(tmp_path / "out" / "sparse").st_blocks * 512 < 2 * MIB
    # And a snapshot of what was restored shares every content record with the first.
    again, _ = store(repo, tmp_path / "out")
    first, second = locate(repo, f"{created.slot.name}:{files}"), locate(repo, f"{again.slot.name}:{tmp_path}/out")
    assert first.inode.directory.content == second.inode.directory.content


def test_the_whole_snapshot_keeps_its_paths(repo: Repository, files: Path, tmp_path: Path) -> None:
    (files / "a").write_bytes(b"x")
    created, _ = store(repo, files)
    put_back(repo, created.slot.name, tmp_path / "out")
    assert (tmp_path / "out" / files.relative_to("/") / "a").read_bytes() == b"x"


def test_a_single_file_goes_into_the_destination(repo: Repository, files: Path, tmp_path: Path) -> None:
    (files / "a").write_bytes(b"x")
    os.link(files / "a", files / "b")
    created, _ = store(repo, files)
    counts, _ = put_back(repo, f"{created.slot.name}:{files}/b", tmp_path / "out" / "new")
    assert (tmp_path / "out" / "new" / "b").read_bytes() == b"x"
    assert counts.files == 1


def test_names_with_colons_and_missing_paths(repo: Repository, files: Path, tmp_path: Path) -> None:
    (files / "a:b").write_bytes(b"x")
    store(repo, files, name="x:y")
    put_back(repo, f"x:y:{files}/a:b", tmp_path / "out")
    assert (tmp_path / "out" / "a:b").exists()
    with pytest.raises(NoSuchSnapshotError, match=r"There is no '.*missing' in the snapshot 'x:y'"):
        locate(repo, f"x:y:{files}/missing/deeper")
    with pytest.raises(NoSuchSnapshotError, match="There is no snapshot 'z'"):
        locate(repo, "z:whatever")


def test_a_destination_that_holds_files_is_refused(repo: Repository, files: Path, tmp_path: Path) -> None:
    (files / "a").write_bytes(b"new")
    created, _ = store(repo, files)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_bytes(b"mine")
    with pytest.raises(NameTakenError, match="holds files already"):
        put_back(repo, f"{created.slot.name}:{files}", out)
    assert os.listdir(out) == ["mine"]


def conflicting(repo: Repository, files: Path, tmp_path: Path) -> tuple[str, Path]:
    """A snapshot, and a destination in which everything is in the way."""
    for name in ("file", "same", "under-directory"):
        (files / name).write_bytes(b"snapshot")
    (files / "directory").mkdir()
    (files / "directory" / "in").write_bytes(b"snapshot")
    (files / "link").symlink_to("snapshot")
    os.link(files / "file", files / "hard")
    age(files)
    created, _ = store(repo, files)
    out = tmp_path / "out"
    (out / "under-directory").mkdir(parents=True)
    (out / "under-directory" / "mine").write_bytes(b"mine")
    (out / "file").write_bytes(b"mine")
    shutil.copy2(files / "same", out / "same")
    (tmp_path / "elsewhere").mkdir()
    (out / "directory").symlink_to(tmp_path / "elsewhere")
    (out / "link").write_bytes(b"mine")
    (out / "hard").write_bytes(b"mine")
    (out / "mine").write_bytes(b"mine")
    return f"{created.slot.name}:{files}", out


def test_merge_keeps_and_reports(repo: Repository, files: Path, tmp_path: Path) -> None:
    what, out = conflicting(repo, files, tmp_path)
    mode = out.stat().st_mode
    counts, told = put_back(repo, what, out, WhenThere.KEEP)
    assert sorted(path for path, _ in told.problems) == [b"directory", b"file", b"hard", b"link", b"under-directory"]
    assert counts.kept == 1, "what has the same size and time was restored before"
    assert (out / "file").read_bytes() == (out / "link").read_bytes() == (out / "mine").read_bytes() == b"mine"
    assert (out / "directory").is_symlink() and os.listdir(tmp_path / "elsewhere") == []
    assert out.stat().st_mode == mode


def test_merge_goes_on_where_a_restore_ended(repo: Repository, files: Path, tmp_path: Path) -> None:
    fill(files)
    age(files)
    created, _ = store(repo, files)
    what, out = f"{created.slot.name}:{files}", tmp_path / "out"
    put_back(repo, what, out)
    (out / "text").unlink()
    shutil.rmtree(out / "deep")
    counts, told = put_back(repo, what, out, WhenThere.KEEP)
    assert told.problems == []
    assert {path: value[:6] for path, value in describe(out).items() if path != b"."} == {
        path: value[:6] for path, value in describe(files).items() if path != b"."
    }
    assert counts.kept > 5


def test_overwrite_replaces_and_follows_no_symlink(repo: Repository, files: Path, tmp_path: Path) -> None:
    what, out = conflicting(repo, files, tmp_path)
    _, told = put_back(repo, what, out, WhenThere.OVERWRITE)
    assert told.problems == [(b"under-directory", "a directory stands where a file belongs")]
    assert (out / "file").read_bytes() == (out / "directory" / "in").read_bytes() == b"snapshot"
    assert os.readlink(out / "link") == "snapshot"
    assert os.path.samefile(out / "file", out / "hard")
    assert os.listdir(tmp_path / "elsewhere") == []
    assert (out / "mine").read_bytes() == (out / "under-directory" / "mine").read_bytes() == b"mine"
    # Once more over itself: hard links over hard links.
    put_back(repo, what, out, WhenThere.OVERWRITE)
    assert os.path.samefile(out / "file", out / "hard")


class _OneChunkGone:
    """A store that cannot read one chunk."""

    def __init__(self, repo: Repository, gone: bytes) -> None:
        self._read_many = repo.store.read_many
        self._gone = gone

    def read_many(self, ids: list[bytes]) -> list[Record]:
        if self._gone in ids:
            raise MissingRecordError("Pack 00000003, offset 4096: the checksum does not hold.")
        return self._read_many(ids)  # type: ignore[arg-type]


def test_a_damaged_chunk_costs_its_files_only(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (files / f"f{number:02}").write_bytes(b"%d" % number)
    os.link(files / "f07", files / "f07-linked")
    created, _ = store(repo, files)
    inode = locate(repo, f"{created.slot.name}:{files}/f07").inode
    assert isinstance(inode.extents, tuple)
    monkeypatch.setattr(repo.store, "read_many", _OneChunkGone(repo, inode.extents[0].chunk).read_many)
    _, told = put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert told.problems == [
        (name, "Pack 00000003, offset 4096: the checksum does not hold.") for name in (b"f07", b"f07-linked")
    ]
    assert len(os.listdir(tmp_path / "out")) == 19


def test_hostile_names_write_nothing_outside(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings are checked when they are decoded; here that is got round, for files and for directories."""
    hostile = {b"%d" % item: name for item, name in enumerate([b"..", b".", b"", b"../evil", b"/evil", b"a\0b", b"ok"])}
    for name in hostile:
        (files / os.fsdecode(name)).write_bytes(b"evil")
        (files / os.fsdecode(b"d" + name)).mkdir()
    created, _ = store(repo, files)
    entries = repo.reader.scan

    def renamed(name: bytes) -> bytes:
        return hostile[name] if name in hostile else hostile[name[1:]] + (b"2" if name == b"d6" else b"")

    monkeypatch.setattr(Row, "name", property(lambda row: renamed(row.content.names[row.position])))
    monkeypatch.setattr(repo.reader, "scan", lambda ref: (one._replace(name=renamed(one.name)) for one in entries(ref)))
    told = Told()
    what = locate(repo, created.slot.name)
    for part in files.parts[1:]:
        found = repo.reader.lookup(what.inode.directory, os.fsencode(part))
        assert found is not None
        what = Located(what.slot, what.path, found, what.links)
    restore(repo, what, os.fsencode(tmp_path / "in" / "out"), None, notices=told, progress=told)
    assert [why for _, why in told.problems] == ["such a name cannot be restored"] * 12
    assert sorted(os.listdir(tmp_path / "in" / "out")) == ["ok", "ok2"]
    assert os.listdir(tmp_path / "in") == ["out"]


def test_a_full_destination_ends_it_and_leaves_no_half_file(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        (files / f"f{number}").write_bytes(b"x" * 100)
    created, _ = store(repo, files)
    left = [3]
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr("repository.restore.target.os.pwrite", full)
    with pytest.raises(NoSpaceError):
        put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert still_open(tmp_path / "out") == []
    names = os.listdir(tmp_path / "out")
    assert len(names) == 3 and not any(os.fsencode(name).startswith(TEMPORARY_PREFIX) for name in names)


@pytest.mark.mount
def test_attributes_that_the_volume_has_no_place_for_are_the_files_problem(
    repo: Repository, xfs: Path, ext4: Path
) -> None:
    """ext4 answers ENOSPC to an attribute longer than its 4 KiB: that is no full disk, and no reason to stop."""
    files = xfs / "files"
    for name in ("file", "directory/in"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(b"x")
    out = ext4 / "out"
    for name in ("file", "directory"):
        os.setxattr(files / name, "user.small", b"here")
        os.setxattr(files / name, "user.large", bytes(60_000))
    created, _ = store(repo, files)
    counts, told = put_back(repo, f"{created.slot.name}:{files}", out)
    with pytest.raises(OSError) as refused:
        os.setxattr(out / "file", "user.probe", bytes(60_000))
    assert refused.value.errno in (errno.ENOSPC, errno.E2BIG)
    lack = "restored without extended attributes that do not fit on this volume: 'user.large'"
    assert sorted(told.problems) == [(b"directory", lack), (b"file", lack)]
    assert (counts.files, counts.directories) == (2, 1)
    for name in ("file", "directory/in"):
        assert (out / name).read_bytes() == b"x"
    for name in ("file", "directory"):
        assert os.getxattr(out / name, "user.small") == b"here"
        assert (out / name).stat().st_mtime_ns == (files / name).stat().st_mtime_ns


def still_open(*roots: Path) -> list[str]:
    """Descriptors of this process that lead below `roots`."""
    opened = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.lexists(link.path)]
    return [path for path in opened if path.startswith(tuple(map(str, roots)))]


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The user interrupts after so many steps."""
    left = [after]

    def advance(self: Told, done_bytes: int, done_files: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedByUserError("Interrupted.")

    monkeypatch.setattr(Told, "advance", advance)


@pytest.mark.parametrize("after", [0, 1, 7, 13])
def test_an_interrupted_restore_leaves_whole_files_and_nothing_open(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    for number in range(12):
        (files / f"d{number}").mkdir()
        for name in ("a", "b", "c"):
            (files / f"d{number}" / name).write_bytes(os.urandom(1000))
    created, _ = store(repo, files)
    interrupt(monkeypatch, after)
    with pytest.raises(InterruptedByUserError):
        put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert still_open(files, tmp_path / "out") == []
    for directory, _, names in os.walk(tmp_path / "out"):
        for name in names:
            assert not name.startswith(".ballast")
            original = files / Path(directory).name / name
            assert Path(directory, name).read_bytes() == original.read_bytes()


@pytest.mark.parametrize("after", [0, 7, 20])
def test_an_interrupted_create_leaves_nothing_open(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("repository.create.builder.BATCH_FILES", 5)
    monkeypatch.setattr("repository.create.builder.TELL_FILES", 1)
    for number in range(12):
        (files / f"d{number}").mkdir()
        for name in ("a", "b", "c"):
            (files / f"d{number}" / name).write_bytes(os.urandom(1000))
    interrupt(monkeypatch, after)
    with pytest.raises(InterruptedByUserError):
        store(repo, files)
    assert still_open(files) == []
    assert repo.listed() == []


def test_descriptors_are_all_closed(repo: Repository, files: Path, tmp_path: Path) -> None:
    for number in range(30):
        (files / f"d{number}" / "e").mkdir(parents=True)
        (files / f"d{number}" / "e" / "f").write_bytes(b"%d" % number)
    created, _ = store(repo, files)
    store(repo, files)
    put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert still_open(files, tmp_path / "out") == []


def test_large_files_are_written_in_windows(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_files, "WINDOW_BYTES", 1 * MIB)
    data = os.urandom(5 * MIB + 77) + bytes(3 * MIB) + b"end"
    (files / "large").write_bytes(data)
    created, _ = store(repo, files)
    put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == data


@pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
def test_without_root_owners_and_devices_are_given_up(repo: Repository, files: Path, tmp_path: Path) -> None:
    (files / "a").write_bytes(b"x")
    os.chown(files / "a", 1234, 1234)
    os.chmod(files / "a", 0o4755)
    os.mknod(files / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    created, _ = store(repo, files)
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 65534, 65534)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o001 == 0:
            os.chmod(directory, directory.stat().st_mode | 0o011)
    what = f"{created.slot.name}:{files}"
    put_back(repo, what, tmp_path / "first")  # the packs are open from here on
    os.seteuid(65534)
    try:
        _, told = put_back(repo, what, out)
    finally:
        os.seteuid(0)
    assert told.problems == [(b"null", "only root may make a device")]
    found = os.stat(out / "a")
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (65534, 0o755)


NAMES = st.sampled_from(["a", "b", "c", "d"])
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "mkdir", "link", "symlink", "rename", "chmod"]), NAMES, NAMES, NAMES),
    max_size=12,
)


def act(base: Path, action: str, where: str, name: str, other: str) -> None:
    """One change, somewhere in two levels of directories; impossible ones do nothing."""
    directory = base / where if (base / where).is_dir() else base
    path = directory / name
    try:
        match action:
            case "write":
                path.write_bytes(os.urandom(1 + ord(name) % 7) * 10)
            case "delete":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            case "mkdir":
                path.mkdir()
            case "link":
                os.link(path, base / other, follow_symlinks=False)
            case "symlink":
                path.symlink_to(other)
            case "rename":
                os.rename(path, base / other)
            case _:
                os.chmod(path, 0o600 + ord(other) % 8)
    except OSError:
        pass


@pytest.mark.slow
@settings(max_examples=25)
@given(rounds=st.lists(ACTIONS, min_size=1, max_size=4))
def test_any_history_of_a_directory_comes_back(
    rounds: list[list[tuple[str, str, str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every snapshot of a changing directory restores to what it was, the incremental ones as the first."""
    base = tmp_path_factory.mktemp("history")
    clock = SetClock()
    make(base / "repo", clock)
    files = base / "files"
    files.mkdir()
    states: list[tuple[str, dict[bytes, tuple[object, ...]]]] = []
    with open_for_writing(base / "repo", clock) as repo:
        for actions in rounds:
            for action in actions:
                act(files, *action)
            created, told = store(repo, files)
            assert told.problems == []
            states.append((created.slot.name, describe(files)))
        for number, (name, state) in enumerate(states):
            put_back(repo, f"{name}:{files}", base / f"out{number}")
            assert describe(base / f"out{number}") == state
        full, _ = store(repo, files, files)
        assert full.changed_files == 0
    shutil.rmtree(base)
