"""What a mount shows beside `live`: snapshots read back exactly, cannot be changed, and are deleted by mv and rmdir."""

import errno
import json
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusefs import control
from repository.errors import DamagedError
from repository.format.inode import ExtentsRef
from repository.format.pack import pack_path
from repository.ids import pack_of
from repository.repo import Repository
from tests.support.mounting import Mounting, until

pytestmark = pytest.mark.mount

MIB = 1 << 20


def picture(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that stat, readlink, listxattr and read tell of a tree, by path; inode numbers as groups of names."""
    found: dict[bytes, tuple[object, ...]] = {}
    base = os.fsencode(top)
    for directory, folders, files in os.walk(base):
        for name in [b".", *folders, *files]:
            path = os.path.join(directory, name)
            seen = os.lstat(path)
            if name == b"." and directory != base:
                continue
            relative = os.path.relpath(path, base)
            kind = stat.S_IFMT(seen.st_mode)
            content: bytes = b""
            if kind == stat.S_IFREG:
                content = Path(os.fsdecode(path)).read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            size = 0 if kind == stat.S_IFDIR else seen.st_size
            links = 1 if kind == stat.S_IFDIR else seen.st_nlink
            listed = os.listxattr(path, follow_symlinks=False)
            xattrs = {one: os.getxattr(path, one, follow_symlinks=False) for one in listed}
            times = (seen.st_mtime_ns, seen.st_ctime_ns)
            owner = (seen.st_uid, seen.st_gid)
            found[relative] = (seen.st_mode, owner, size, links, seen.st_rdev, times, content, xattrs)
    return found


def fill(top: Path) -> None:
    """A tree with one of everything."""
    (top / "directory" / "deep" / "deeper").mkdir(parents=True)
    (top / "empty directory").mkdir(mode=0o700)
    (top / "empty").touch()
    (top / "small").write_text("small\n")
    (top / "directory" / "large").write_bytes(random.Random(1).randbytes(5 * MIB + 12345))
    with (top / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(20 * MIB)
        sparse.write(b"end")
    (top / "directory" / "link").symlink_to("../small")
    os.link(top / "small", top / "directory" / "deep" / "hard")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "device", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    os.setxattr(top / "small", "user.note", b"\0\xff" * 50)
    os.setxattr(top / "directory", "user.large", bytes(5000))
    Path(os.fsdecode(os.fsencode(top) + b"/" + bytes([0xFF, 0x0A, 0x20, 0x5C]))).write_text("odd name")
    (top / ("n" * 255)).write_text("long name")
    for number in range(1500):
        (top / "directory" / "deep" / f"file {number:04d}").write_text(str(number))
    os.chmod(top / "directory" / "deep" / "file 0007", 0o4755)
    os.chown(top / "directory" / "deep" / "file 0008", 12345, 54321)
    os.utime(top / "directory" / "deep" / "file 0009", ns=(-1, 1_234_567_890_123_456_789))


def test_a_snapshot_reads_back_exactly_and_in_a_read_only_mount_too(mounted: Mounting) -> None:
    fill(mounted.live)
    (mounted.snapshots / "full").mkdir()
    before = picture(mounted.live)
    assert picture(mounted.snapshots / "full") == before
    mounted.umount()
    mounted.mount("--read-only")
    assert sorted(os.listdir(mounted.mountpoint)) == [".ballast", "README.txt", "snapshots", "trash"]
    assert picture(mounted.snapshots / "full") == before
    assert "read-only" in (mounted.mountpoint / "README.txt").read_text()


def test_an_unchanged_file_has_one_number_in_every_snapshot_and_no_other_file_has_it(mounted: Mounting) -> None:
    for name in ("same", "changed", "chmodded"):
        (mounted.live / name).write_text("one")
    os.link(mounted.live / "same", mounted.live / "same too")
    (mounted.snapshots / "a").mkdir()
    (mounted.live / "changed").write_text("two")
    (mounted.live / "chmodded").chmod(0o600)
    (mounted.live / "new").write_text("one")
    (mounted.snapshots / "b").mkdir()

    def number(path: str) -> int:
        return (mounted.mountpoint / path).stat().st_ino

    assert number("snapshots/a/same") == number("snapshots/b/same") == number("snapshots/b/same too")
    assert number("snapshots/a/changed") != number("snapshots/b/changed")
    assert number("snapshots/a/chmodded") != number("snapshots/b/chmodded")
    assert number("snapshots/a") != number("snapshots/b")
    everything = [
        (directory.stat().st_ino if name == "." else (directory / name).stat().st_ino, name)
        for directory in (mounted.live, mounted.snapshots / "a", mounted.snapshots / "b")
        for name in (".", "same", "changed", "chmodded")
    ]
    assert len({one for one, _ in everything}) == len(everything) - 1


def test_nothing_in_a_snapshot_can_be_changed(mounted: Mounting) -> None:
    (mounted.live / "directory").mkdir()
    (mounted.live / "directory" / "file").write_text("kept")
    (mounted.snapshots / "one").mkdir()
    directory = mounted.snapshots / "one" / "directory"
    file = directory / "file"
    refused: list[Callable[[], object]] = [
        lambda: file.write_text("x"),
        file.unlink,
        lambda: file.chmod(0o777),
        lambda: os.utime(file),
        lambda: os.setxattr(file, "user.x", b"x"),
        lambda: os.truncate(file, 0),
        lambda: os.link(file, directory / "other"),
        lambda: os.rename(file, directory / "other"),
        lambda: os.rename(directory, mounted.snapshots / "directory"),
        directory.rmdir,
        (directory / "new").touch,
        (directory / "new").mkdir,
        (mounted.snapshots / "file").touch,
        (mounted.mountpoint / "README.txt").unlink,
        (mounted.trash / "new").mkdir,
        lambda: os.symlink("x", mounted.snapshots / "link"),
        (mounted.snapshots / "latest").unlink,
    ]
    for change in refused:
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno in (errno.EROFS, errno.EPERM, errno.EACCES), caught.value
    removed = subprocess.run(["rm", "-r", str(mounted.snapshots / "one")], check=False, capture_output=True, text=True)
    assert removed.returncode == 1 and "Read-only file system" in removed.stderr
    assert file.read_text() == "kept"


def test_snapshots_are_made_renamed_deleted_and_undeleted_by_directory_operations(mounted: Mounting) -> None:
    (mounted.live / "file").write_text("one")
    (mounted.snapshots / "one").mkdir()
    (mounted.live / "file").write_text("two")
    with pytest.raises(FileExistsError):
        (mounted.snapshots / "one").mkdir()
    with pytest.raises(FileExistsError):
        (mounted.snapshots / "latest").mkdir()
    (mounted.snapshots / "one").rename(mounted.snapshots / "eins")
    assert (mounted.snapshots / "eins" / "file").read_text() == "one"
    subprocess.run(["mv", str(mounted.snapshots / "eins"), str(mounted.trash)], check=True)
    assert not (mounted.snapshots / "eins").exists()
    assert (mounted.trash / "eins" / "file").read_text() == "one"
    subprocess.run(["mv", str(mounted.trash / "eins"), str(mounted.snapshots / "uno")], check=True)
    assert (mounted.snapshots / "uno" / "file").read_text() == "one"
    (mounted.snapshots / "uno").rmdir()
    assert os.listdir(mounted.trash) == ["uno"]
    with pytest.raises(FileNotFoundError):
        (mounted.snapshots / "uno").rmdir()


def test_a_pinned_snapshot_is_busy(mounted: Mounting) -> None:
    (mounted.snapshots / "kept").mkdir()
    mounted.ballast("snapshot", "pin", mounted.repository, "kept")
    for change in (
        (mounted.snapshots / "kept").rmdir,
        lambda: (mounted.snapshots / "kept").rename(mounted.trash / "kept"),
        lambda: (mounted.snapshots / "kept").rename(mounted.snapshots / "other"),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EBUSY
    assert (mounted.snapshots / "kept").is_dir()


def test_two_deleted_under_one_name_are_told_apart(mounted: Mounting) -> None:
    for content in ("first", "second"):
        (mounted.live / "file").write_text(content)
        (mounted.snapshots / "name").mkdir()
        (mounted.snapshots / "name").rmdir()
    assert {name: (mounted.trash / name / "file").read_text() for name in os.listdir(mounted.trash)} == {
        "name": "first",
        "name-2": "second",
    }


def test_latest_is_the_last_of_live(mounted: Mounting) -> None:
    assert not (mounted.snapshots / "latest").is_symlink()
    (mounted.live / "file").write_text("one")
    until((mounted.snapshots / "latest").is_symlink)
    first = os.readlink(mounted.snapshots / "latest")
    assert (mounted.snapshots / "latest" / "file").read_text() == "one"
    (mounted.live / "file").write_text("two")
    until(lambda: os.readlink(mounted.snapshots / "latest") != first)
    assert (mounted.snapshots / "latest" / "file").read_text() == "two"
    assert (mounted.snapshots / first / "file").read_text() == "one"


def test_a_read_only_mount_beside_a_writer_sees_what_is_new(mounted: Mounting) -> None:
    reader = Mounting(mounted.base)
    object.__setattr__(reader, "mountpoint", mounted.base / "reader")
    try:
        (mounted.live / "file").write_text("one")
        (mounted.snapshots / "one").mkdir()
        reader.mount("--read-only")
        assert (reader.snapshots / "one" / "file").read_text() == "one"
        (mounted.live / "file").write_text("two")
        (mounted.live / "large").write_bytes(random.Random(2).randbytes(3 * MIB))
        (mounted.snapshots / "two").mkdir()
        until((reader.snapshots / "two").is_dir)
        assert picture(reader.snapshots / "two") == picture(mounted.snapshots / "two")
        (mounted.snapshots / "one").rmdir()
        until(lambda: not (reader.snapshots / "one").exists())
        reader.umount()
    finally:
        if reader.is_mounted():
            subprocess.run(["fusermount3", "-uz", str(reader.mountpoint)], check=True)


def test_status_json_is_the_document_of_status(mounted: Mounting) -> None:
    document = json.loads((mounted.mountpoint / ".ballast" / "status.json").read_text())
    assert document.keys() == json.loads(mounted.ballast("status", mounted.repository, "--json")).keys()
    assert document["mount"] == {"pid": mounted.pid(), "mountpoint": str(mounted.mountpoint)}
    copied = mounted.base / "status.json"
    subprocess.run(["cp", str(mounted.mountpoint / ".ballast" / "status.json"), str(copied)], check=True)
    assert json.loads(copied.read_text())["mount"] == document["mount"]


def test_the_mount_tells_how_it_is_made(mounted: Mounting) -> None:
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(mounted.mountpoint) in line)
    source, _, kind, options, *_ = line.split()
    assert (source, kind) == (str(mounted.repository), "fuse.ballast")
    assert "default_permissions" in options and "allow_other" not in options
    major, minor = mounted.device()
    path = Path(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb")
    until(lambda: path.read_text().strip() == "1024")
    room = os.statvfs(mounted.mountpoint)
    assert room.f_namemax == 255 and 0 < room.f_bavail <= room.f_blocks


def chunk_places(mounted: Mounting, snapshot: str, name: bytes) -> list[tuple[str, int, int, int]]:
    """(pack, offset, stored length, offset in the file) of each chunk of a file in a snapshot's root."""
    with Repository.open(mounted.repository, writable=False) as repository:
        root = repository.root(repository.find(snapshot))
        inode = repository.reader.lookup(root.directory, name)
        assert inode is not None and not isinstance(inode.extents, ExtentsRef)
        places = repository.store.locate([extent.chunk for extent in inode.extents])
        return [
            (pack_path(pack_of(place.number)), place.offset, place.stored_length, extent.offset)
            for extent, place in zip(inode.extents, places, strict=True)
            if place is not None
        ]


def test_a_bad_chunk_is_eio_for_its_range_and_everything_else_reads_on(quiet: Mounting) -> None:
    quiet.mount()
    content = random.Random(3).randbytes(4 * MIB)
    (quiet.live / "file").write_bytes(content)
    (quiet.snapshots / "one").mkdir()
    quiet.umount()
    places = chunk_places(quiet, "one", b"file")
    pack, offset, length, bad_start = places[len(places) // 2]
    bad_end = places[len(places) // 2 + 1][3]
    with (quiet.repository / pack).open("r+b") as file:
        file.seek(offset + length - 100)
        file.write(bytes(50))
    quiet.mount("--read-only")
    page = 4096
    with (quiet.snapshots / "one" / "file").open("rb", buffering=0) as file:
        good = bad = 0
        for start in range(0, len(content), page):
            touched = start < bad_end and start + page > bad_start
            if touched:
                with pytest.raises(OSError) as caught:
                    os.pread(file.fileno(), page, start)
                assert caught.value.errno == errno.EIO
                bad += 1
            else:
                assert os.pread(file.fileno(), page, start) == content[start : start + page]
                good += 1
        assert bad >= (bad_end - bad_start) // page and good > 0
    assert (quiet.snapshots / "one").is_dir(), "the mount stays up"


@pytest.mark.logs("record.damaged")
def test_a_damaged_snapshot_is_listed_and_harms_no_other(quiet: Mounting) -> None:
    quiet.mount()
    for name in ("good", "bad"):
        (quiet.live / "file").write_text(name)
        (quiet.snapshots / name).mkdir()
    quiet.umount()
    with Repository.open(quiet.repository, writable=False) as repository:
        place = repository.store.locate([repository.find("bad").manifest])[0]
        assert place is not None
    with (quiet.repository / pack_path(pack_of(place.number))).open("r+b") as file:
        file.seek(place.offset + place.stored_length - 20)
        file.write(bytes(16))
    with Repository.open(quiet.repository, writable=False) as repository, pytest.raises(DamagedError):
        repository.manifest(repository.find("bad"))
    quiet.mount("--read-only")
    assert {"good", "bad"} <= set(os.listdir(quiet.snapshots))
    subprocess.run(["ls", "-l", str(quiet.snapshots)], check=False, capture_output=True)
    assert (quiet.snapshots / "good" / "file").read_text() == "good"
    with pytest.raises(OSError) as caught:
        (quiet.snapshots / "bad" / "file").read_text()
    assert caught.value.errno == errno.EIO


def test_what_is_open_in_a_deleted_snapshot_stays_readable(mounted: Mounting) -> None:
    content = random.Random(4).randbytes(2 * MIB)
    (mounted.live / "file").write_bytes(content)
    (mounted.snapshots / "one").mkdir()
    (mounted.live / "file").unlink()
    with (mounted.snapshots / "one" / "file").open("rb", buffering=0) as file:
        assert file.read(10) == content[:10]
        (mounted.snapshots / "one").rmdir()
        mounted.ballast("gc", mounted.repository)
        assert (mounted.trash / "one" / "file").exists(), "in the trash for a day"
        assert file.read() == content[10:]


@pytest.mark.parametrize("kept", [False, True])
def test_what_a_collection_without_safety_took_is_stale_unless_another_snapshot_has_it(
    quiet: Mounting, kept: bool
) -> None:
    quiet.mount("--settle", "1h")
    content = random.Random(5).randbytes(2 * MIB)
    (quiet.live / "file").write_bytes(content)
    (quiet.snapshots / "one").mkdir()
    if kept:
        (quiet.snapshots / "two").mkdir()
    (quiet.live / "file").unlink()
    control.request(quiet.repository, "commit", {"name": None})
    with (quiet.snapshots / "one" / "file").open("rb", buffering=0) as file:
        (quiet.snapshots / "one").rmdir()
        quiet.ballast("gc", quiet.repository, "--safety", "none")
        assert os.listdir(quiet.trash) == []
        if kept:
            assert file.read() == content
            assert (quiet.snapshots / "two" / "file").read_bytes() == content
        else:
            with pytest.raises(OSError) as caught:
                file.read()
            assert caught.value.errno == errno.ESTALE
            with pytest.raises(OSError):
                os.listdir(quiet.snapshots / "one")
    quiet.umount()
