"""What is in a snapshot: exactly what `live` was, for ever, under inode numbers that let unchanged files be skipped."""

import hashlib
import os
import random
import re
import shutil
import stat
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from repository.repo import Repository
from tests.support.mounted import Mounted, ballast, python, run

pytestmark = pytest.mark.mount


class Seen(NamedTuple):
    """All that can be told of a file by looking."""

    mode: int
    owner: tuple[int, int]
    links: int
    size: int
    rdev: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: str
    same_as: str
    """The first path (in order) of the same inode."""


def picture(root: Path) -> dict[str, Seen]:
    """Everything under `root`, itself included."""
    found: dict[str, Seen] = {}
    first: dict[int, str] = {}
    paths = [root, *sorted(path for path in root.rglob("*"))]
    for path in paths:
        name = str(path.relative_to(root))
        look = path.lstat()
        content = ""
        if stat.S_ISREG(look.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(look.st_mode):
            content = os.readlink(path)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        found[name] = Seen(
            look.st_mode,
            (look.st_uid, look.st_gid),
            look.st_nlink,
            look.st_size,
            look.st_rdev,
            look.st_mtime_ns,
            look.st_ctime_ns,
            look.st_atime_ns,
            tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in names),
            content,
            first.setdefault(look.st_ino, name),
        )
    return found


def fill(live: Path) -> None:
    """A tree with one of everything."""
    dice = random.Random(9)
    (live / "a" / "b").mkdir(parents=True)
    (live / "a" / "large").write_bytes(dice.randbytes(3_000_000))
    for number in range(120):
        path = live / "a" / "b" / f"{number:03d}"
        path.write_bytes(dice.randbytes(dice.randrange(3000)))
        os.chown(path, number, 2 * number)
        path.chmod(dice.randrange(0o10000))
        os.utime(path, ns=(dice.randrange(-(1 << 60), 1 << 62), dice.randrange(-(1 << 60), 1 << 62)))
    os.link(live / "a" / "large", live / "hard")
    os.link(live / "a" / "b" / "000", live / "a" / "hard too")
    (live / "soft").symlink_to("a/large")
    os.setxattr(live / "soft", "trusted.of link", b"\0\1", follow_symlinks=False)
    os.mkfifo(live / "fifo")
    os.mknod(live / "device", stat.S_IFBLK | 0o640, os.makedev(8, 17))
    python("import socket; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", live / "socket")
    with (live / "sparse").open("wb") as file:
        file.truncate(10**12)
        file.seek(10**11)
        file.write(b"island")
        file.truncate(2 * 10**7)
    os.setxattr(live / "a" / "large", "user.big", dice.randbytes(40_000))
    os.setxattr(live / "a" / "large", "user.small", b"")
    run(["setfacl", "-m", "u:77:rwx,d:u:78:r", live / "a" / "b"])
    run(["setfacl", "-m", "g:79:-", live / "hard"])
    live.chmod(0o1757)
    os.chown(live, 5, 6)
    os.setxattr(live, "user.of root", b"x")


def test_a_snapshot_is_exactly_what_live_was(mount: Mounted) -> None:
    fill(mount.live)
    expected = picture(mount.live)
    snapshot = mount.commit("exact")
    assert picture(snapshot) == expected
    assert picture(mount.live) == expected, "a commit changes nothing in live"
    shutil.rmtree(mount.live / "a")
    (mount.live / "hard").write_bytes(b"changed")
    (mount.live / "sparse").unlink()
    mount.live.chmod(0o700)
    assert picture(snapshot)["a/large"].content == expected["a/large"].content
    mount.remount()
    assert picture(snapshot) == expected, "after everything, and read from the disk"
    assert "a" not in picture(mount.live)
    mount.umount()
    assert ballast("check", "--read-data", mount.repository).returncode == 0


def test_later_snapshots_differ_only_where_live_did(mount: Mounted) -> None:
    fill(mount.live)
    first = mount.commit("first")
    before = picture(first)
    with (mount.live / "hard").open("r+b") as file:
        os.pwrite(file.fileno(), b"in the middle", 1_000_000)
    os.rename(mount.live / "a" / "b", mount.live / "moved")
    (mount.live / "moved" / "005").unlink()
    os.removexattr(mount.live / "a" / "large", "user.big")
    expected = picture(mount.live)
    second = mount.commit("second")
    assert picture(second) == expected
    assert picture(first) == before
    assert before["a/b/007"]._replace(same_as="moved/007") == expected["moved/007"]


def test_an_unchanged_file_has_one_number_and_no_other_file_has_it(mount: Mounted) -> None:
    (mount.live / "dir").mkdir()
    for number in range(30):
        (mount.live / "dir" / str(number)).write_text(str(number))
    os.link(mount.live / "dir" / "3", mount.live / "dir" / "link")
    first = mount.commit("first")
    (mount.live / "dir" / "0").write_text("data")
    (mount.live / "dir" / "1").chmod(0o600)
    os.setxattr(mount.live / "dir" / "2", "user.x", b"y")
    (mount.live / "dir" / "link").unlink()
    os.utime(mount.live / "dir" / "4", ns=(1, 1))
    os.rename(mount.live / "dir" / "5", mount.live / "dir" / "renamed")
    (mount.live / "dir" / "6").unlink()
    (mount.live / "dir" / "6").write_text("6")
    second = mount.commit("second")
    third = mount.commit("third")

    def numbers(root: Path) -> dict[str, int]:
        return {name: (root / "dir" / name).stat().st_ino for name in os.listdir(root / "dir")}

    one, two, three, live = (numbers(root) for root in (first, second, third, mount.live))
    assert two == three
    unchanged = {str(number) for number in range(7, 30)}
    assert {name for name in one if name in two and one[name] == two[name]} == unchanged
    assert not set(live.values()) & (set(one.values()) | set(two.values()))
    assert one["3"] == one["link"]
    assert (first / "dir").stat().st_ino != (second / "dir").stat().st_ino
    assert len({one[name] for name in one if name != "link"} | set(two.values())) == 31 - 1 + 7
    assert (first / "dir" / "6").stat().st_ino != (second / "dir" / "6").stat().st_ino


def test_diff_opens_no_unchanged_file(mount: Mounted, tmp_path: Path) -> None:
    for number in range(200):
        (mount.live / f"{number:03d}").write_bytes(os.urandom(3000))
    first = mount.commit("first")
    (mount.live / "100").write_bytes(b"same size" + os.urandom(2991))
    second = mount.commit("second")
    trace = tmp_path / "trace"
    traced = ["strace", "-f", "-s", "4096", "-e", "trace=open,openat", "-o", str(trace)]
    done = subprocess.run(
        [*traced, "diff", "-rq", str(first), str(second)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1 and "100 differ" in done.stdout
    opened = re.findall(r'"[^"]*/(\d{3})"', trace.read_text())
    assert opened and set(opened) == {"100"}


def test_open_unlinked_files_are_in_no_snapshot_and_live_on(mount: Mounted) -> None:
    (mount.live / "file").write_bytes(b"precious" * 100_000)
    (mount.live / "new").write_bytes(b"never committed" * 10_000)
    mount.commit("before")
    with (mount.live / "file").open("r+b") as file, (mount.live / "temporary").open("w+b") as temporary:
        temporary.write(b"scratch" * 50_000)
        (mount.live / "file").unlink()
        (mount.live / "temporary").unlink()
        after = mount.commit("after")
        assert os.listdir(after) == ["new"]
        os.pwrite(file.fileno(), b"changed!", 8)
        assert ballast("gc", "--safety", "none", mount.repository).returncode == 0
        (mount.snapshots / "before").rmdir()
        assert ballast("gc", "--safety", "none", mount.repository).returncode == 0
        assert os.listdir(mount.trash) == []
        mount.commit("more")
        assert os.pread(file.fileno(), 24, 0) == b"preciouschanged!precious"
        file.seek(0)
        assert (
            hashlib.sha256(file.read()).digest() == hashlib.sha256(b"preciouschanged!" + b"precious" * 99_998).digest()
        )
        temporary.seek(0)
        assert temporary.read() == b"scratch" * 50_000
    assert os.listdir(mount.snapshots / "more") == ["new"]
    mount.umount()
    assert ballast("check", "--read-data", mount.repository).returncode == 0


def test_snapshots_taken_while_programs_write_are_prefixes(mount: Mounted) -> None:
    """Two files always written in turn: in no snapshot may the second be ahead of the first."""
    done = threading.Event()
    for name in ("first", "second"):
        (mount.live / name).write_text("000000")

    def write() -> None:
        with (
            (mount.live / "first").open("r+b", buffering=0) as one,
            (mount.live / "second").open("r+b", buffering=0) as two,
        ):
            number = 0
            while not done.is_set():
                number += 1
                os.pwrite(one.fileno(), b"%06d" % number, 0)
                os.pwrite(two.fileno(), b"%06d" % number, 0)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        taken = [mount.commit(f"at-{number}") for number in range(12)]
    finally:
        done.set()
        thread.join()
    last = 0
    for snapshot in taken:
        first, second = (int((snapshot / name).read_text()) for name in ("first", "second"))
        assert second <= first <= second + 1
        assert first >= last
        last = first
    assert last > 0


def test_many_small_snapshots_cost_little(mount: Mounted) -> None:
    """A commit writes what changed and the way up to the root, not the tree: counted in records."""
    for number in range(600):
        (mount.live / f"{number % 20}").mkdir(exist_ok=True)
        (mount.live / f"{number % 20}" / f"{number}").write_text(str(number))
    mount.commit("base")
    before = records(mount.repository)
    for number in range(20):
        (mount.live / f"{number % 5}" / f"{number}").write_text(f"changed {number}")
        mount.commit(f"small-{number}")
    written = records(mount.repository) - before
    assert written <= 20 * 12, "a chunk, two journal records, two directories of two records, manifest, bitmap"
    assert len(mount.names()) == 21


def records(path: Path) -> int:
    """How many records the repository holds."""
    repository = Repository.open(path, writable=False)
    try:
        return sum(pack.records for pack in repository.store.packs())
    finally:
        repository.close()
