"""Names in `live`: renaming with its flags, hard links, symlinks, names of any bytes, listing while things change."""

import ctypes
import errno
import os
import random
import shutil
import stat
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounted import Mounted, attempt, run

pytestmark = pytest.mark.mount

NOREPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4
_libc: Final = ctypes.CDLL(None, use_errno=True)


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def test_rename_replaces_what_is_there(place: Path) -> None:
    (place / "a").write_text("new")
    (place / "b").write_text("old")
    number = (place / "a").stat().st_ino
    os.rename(place / "a", place / "b")
    assert os.listdir(place) == ["b"]
    assert (place / "b").read_text() == "new"
    assert (place / "b").stat().st_ino == number


def test_rename_over_an_open_file_leaves_the_reader_its_own(place: Path) -> None:
    (place / "new").write_text("new")
    (place / "old").write_text("old")
    with (place / "old").open() as reader, (place / "new").open("a") as writer:
        os.rename(place / "new", place / "old")
        assert reader.read() == "old"
        assert os.fstat(reader.fileno()).st_nlink == 0
        writer.write(" and more")
        writer.flush()
        assert (place / "old").read_text() == "new and more"


def test_rename_noreplace(place: Path) -> None:
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename(place / "a", place / "b", NOREPLACE)
    rename(place / "a", place / "c", NOREPLACE)
    assert sorted(os.listdir(place)) == ["b", "c"]
    assert (place / "c").read_text() == "a"


def test_rename_exchange(place: Path) -> None:
    (place / "dir" / "sub").mkdir(parents=True)
    (place / "dir" / "sub" / "file").write_text("below")
    (place / "file").write_text("file")
    with pytest.raises(FileNotFoundError):
        rename(place / "file", place / "nothing", EXCHANGE)
    rename(place / "file", place / "dir" / "sub", EXCHANGE)
    assert (place / "file" / "file").read_text() == "below"
    assert (place / "dir" / "sub").read_text() == "file"
    with pytest.raises(OSError) as caught:
        rename(place / "dir", place / "dir" / "sub", EXCHANGE)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        rename(place / "file", place / "other", WHITEOUT)
    assert caught.value.errno == errno.EINVAL


def test_what_rename_refuses(place: Path) -> None:
    (place / "dir" / "sub").mkdir(parents=True)
    (place / "empty").mkdir()
    (place / "file").touch()
    for old, new, expected in (
        ("file", "dir", errno.EISDIR),
        ("dir", "file", errno.ENOTDIR),
        ("empty", "dir", errno.ENOTEMPTY),
        ("dir", "dir/sub/below", errno.EINVAL),
        ("missing", "file", errno.ENOENT),
        ("file", "missing/file", errno.ENOENT),
        ("file", "file/below", errno.ENOTDIR),
    ):
        with pytest.raises(OSError) as caught:
            os.rename(place / old, place / new)
        assert caught.value.errno == expected, (old, new)
    os.rename(place / "dir" / "sub", place / "empty")
    os.rename(place / "empty", place / "dir" / "again")
    assert os.listdir(place / "dir") == ["again"]


def test_moving_a_directory_takes_everything_below_along_over_commits(shared: Mounted, place: Path) -> None:
    (place / "a" / "b" / "c").mkdir(parents=True)
    (place / "a" / "b" / "c" / "file").write_text("deep")
    shared.settle()
    os.rename(place / "a" / "b", place / "moved")
    (place / "moved" / "c" / "file").write_text("changed")
    assert os.listdir(place / "a") == []
    shared.settle()
    os.rename(place / "moved", place / "a" / "back")
    assert (place / "a" / "back" / "c" / "file").read_text() == "changed"
    with pytest.raises(FileNotFoundError):
        (place / "moved").stat()


def test_hard_links_are_one_file_across_commits(shared: Mounted, place: Path) -> None:
    (place / "one").write_text("first")
    shared.settle()
    os.link(place / "one", place / "two")
    (place / "dir").mkdir()
    os.link(place / "two", place / "dir" / "three")
    assert (place / "one").stat().st_nlink == 3
    shared.settle()
    with (place / "dir" / "three").open("a") as file:
        file.write(", second")
    assert (place / "one").read_text() == "first, second"
    assert len({(place / name).stat().st_ino for name in ("one", "two", "dir/three")}) == 1
    (place / "one").unlink()
    shared.settle()
    assert (place / "two").stat().st_nlink == 2
    os.rename(place / "two", place / "dir" / "three")
    assert sorted(os.listdir(place / "dir")) == ["three"]
    assert (place / "two").exists(), "renaming one name of a file onto another does nothing"
    (place / "two").unlink()
    (place / "dir" / "three").chmod(0o600)
    shared.settle()
    found = (place / "dir" / "three").stat()
    assert (found.st_nlink, stat.S_IMODE(found.st_mode)) == (1, 0o600)
    assert (place / "dir" / "three").read_text() == "first, second"


def test_links_that_cannot_be(shared: Mounted, place: Path) -> None:
    (place / "dir").mkdir()
    (place / "file").touch()
    with pytest.raises(PermissionError):
        os.link(place / "dir", place / "link")
    with pytest.raises(FileExistsError):
        os.link(place / "file", place / "dir")
    with pytest.raises(OSError) as caught:
        os.link(place / "file", shared.snapshots / "file")
    assert caught.value.errno in (errno.EXDEV, errno.EROFS)
    with pytest.raises(OSError) as caught:
        os.link(place / "file", "/tmp/ballast-not-made")
    assert caught.value.errno == errno.EXDEV


def test_symlinks(shared: Mounted, place: Path) -> None:
    long = "x" * 4095
    for name, target in (("near", "file"), ("far", "/etc/hostname"), ("broken", "no/where"), ("long", long)):
        (place / name).symlink_to(target)
    (place / "file").write_text("reached")
    shared.settle()
    assert (place / "near").read_text() == "reached"
    assert os.readlink(place / "long") == long
    assert (place / "broken").lstat().st_size == len("no/where")
    assert not (place / "broken").exists()
    os.chown(place / "near", 12, 34, follow_symlinks=False)
    os.utime(place / "near", ns=(5, 7), follow_symlinks=False)
    found = (place / "near").lstat()
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (12, 34, 7)
    assert (place / "file").stat().st_uid == 0
    os.symlink(b"\xff\xfe raw", os.fsencode(place) + b"/bytes")
    assert os.readlink(os.fsencode(place) + b"/bytes") == b"\xff\xfe raw"


def test_names_of_any_bytes_up_to_255(shared: Mounted, place: Path) -> None:
    here = os.fsencode(place) + b"/"
    every = bytes(value for value in range(1, 256) if value != ord("/"))
    dice = random.Random(6)
    names = [every, b"x" * 255, "ü".encode() * 127, b"\xff", b" ", b"\n", b"-rf", b"*", b"a\\b", b"...", b".hidden"]
    names += [bytes(dice.choice(every) for _ in range(255)) for _ in range(20)]
    for name in names:
        with open(here + name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(here)) == sorted(names)
    shared.settle()
    assert sorted(os.listdir(here)) == sorted(names)
    for name in names:
        with open(here + name, "rb") as file:
            assert file.read() == name
    with pytest.raises(OSError) as caught:
        os.mkdir(here + b"x" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as caught:
        os.stat(here + b"x" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as caught:
        os.rename(here + b"*", here + b"x" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_directories_refuse_what_they_must(place: Path) -> None:
    (place / "full" / "sub").mkdir(parents=True)
    (place / "file").touch()
    for call, expected in (
        ("os.rmdir(sys.argv[1] + '/full')", "ENOTEMPTY"),
        ("os.rmdir(sys.argv[1] + '/file')", "ENOTDIR"),
        ("os.unlink(sys.argv[1] + '/full')", "EISDIR"),
        ("os.mkdir(sys.argv[1] + '/full')", "EEXIST"),
        ("os.rmdir(sys.argv[1] + '/nothing')", "ENOENT"),
        ("os.open(sys.argv[1] + '/full', os.O_WRONLY)", "EISDIR"),
        ("os.open(sys.argv[1] + '/file', os.O_CREAT | os.O_EXCL)", "EEXIST"),
        ("os.open(sys.argv[1] + '/file', os.O_DIRECTORY)", "ENOTDIR"),
        ("os.mkdir(sys.argv[1] + '/file/below')", "ENOTDIR"),
        ("os.truncate(sys.argv[1] + '/full', 0)", "EISDIR"),
    ):
        assert attempt(call, place) == expected, call


def test_a_removed_directory_that_somebody_stands_in(place: Path) -> None:
    (place / "gone").mkdir()
    handle = os.open(place / "gone", os.O_RDONLY)
    try:
        (place / "gone").rmdir()
        assert os.listdir(handle) == []
        with pytest.raises(FileNotFoundError):
            os.mkdir("below", dir_fd=handle)
        with pytest.raises(FileNotFoundError):
            os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=handle)
        assert os.fstat(handle).st_nlink == 0
    finally:
        os.close(handle)


def test_a_listing_that_is_rewound_shows_what_came_meanwhile(place: Path) -> None:
    (place / "first").touch()
    handle = os.open(place, os.O_RDONLY)
    try:
        assert os.listdir(handle) == ["first"]
        (place / "second").touch()
        (place / "first").unlink()
        assert os.listdir(handle) == ["second"], "os.listdir rewinds the directory"
    finally:
        os.close(handle)


def test_removing_while_listing_misses_nothing(place: Path) -> None:
    for number in range(1500):
        (place / f"file{number:04d}").touch()
    seen: list[str] = []
    with os.scandir(place) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
            if len(seen) == 700:
                (place / "newcomer").touch()
    assert len(seen) == len(set(seen))
    assert {f"file{number:04d}" for number in range(1500)} <= set(seen)
    assert set(os.listdir(place)) <= {"newcomer"}


def test_a_deep_tree_is_made_copied_and_removed(place: Path) -> None:
    deep = place / "tree"
    for _ in range(120):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "file").write_text("at the bottom")
    shutil.copytree(place / "tree", place / "copy")
    assert run(["diff", "-r", place / "tree", place / "copy"]) == ""
    shutil.rmtree(place / "tree")
    os.rename(place / "copy", place / "tree")
    assert (deep / "file").read_text() == "at the bottom"


def test_a_name_taken_again_and_again_is_always_the_newest(shared: Mounted, place: Path) -> None:
    path = place / "name"
    for number in range(200):
        match number % 4:
            case 0:
                path.write_text(str(number))
                assert path.read_text() == str(number)
            case 1:
                path.unlink()
                path.mkdir()
                assert path.is_dir()
            case 2:
                path.rmdir()
                path.symlink_to("nowhere")
                assert path.is_symlink()
            case _:
                path.unlink()
                assert not path.exists()
        if number % 70 == 0:
            shared.settle()
