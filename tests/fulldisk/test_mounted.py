"""A mount on a disk that runs full: what the program that writes sees, what goes on meanwhile, and the way back.

On tmpfs and on an ext4 image. What matters is asserted by what happened, never by how long it took.
"""

import errno
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from repository.format.pack import PUNCHED_OFFSET, SPARE_MARK
from repository.units import KIB, MIB
from tests.support.mounted import CALM, Mounted, attempt, ballast, python, wait_until
from tests.support.smalldisk import SmallDisk, small_disk

pytestmark = pytest.mark.mount

RESERVE: Final = 20_000_000
FOUNDING: Final = ("--reserve", "20M", "--headspace", "0")
NOTE: Final = "DISK-IS-FULL.txt"
EVERYWHERE: Final = pytest.mark.parametrize("disk", ["tmpfs", "ext4"], indirect=True)
EXPECTED: Final = frozenset({"pack.not_sealed"})
"""What the log may say of a full disk beside what it says in any case."""

WRITE: Final = """
import random
path, seed, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(seed)
done = 0
file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
try:
    for _ in range(mib):
        part = dice.randbytes(1 << 20)
        while part:
            written = os.write(file, part)
            done += written
            part = part[written:]
    os.close(file)
    print("ok", done)
except OSError as error:
    print(errno.errorcode[error.errno], done)
"""
"""Writes so many MiB of a seed's bytes, and prints how it ended and how many bytes were acknowledged."""


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    """A disk of 180 MiB, not served yet: tmpfs, or what the test asks for."""
    with small_disk(getattr(request, "param", "tmpfs"), 180, *FOUNDING) as one:
        yield one
        surprises = [line for line in one.mount.trouble() if line.partition(":")[0] not in EXPECTED]
        assert not surprises, "\n".join(surprises)


def write(path: Path, seed: int, mib: int) -> tuple[str, int]:
    """Writes in a process of its own: how it ended, and how many bytes were acknowledged."""
    how, done = python(WRITE, path, str(seed), str(mib)).split()
    return how, int(done)


def content(seed: int, nbytes: int) -> bytes:
    """What `write` wrote."""
    dice = random.Random(seed)
    return b"".join(dice.randbytes(MIB) for _ in range(-(-nbytes // MIB)))[:nbytes]


def fill_up(mount: Mounted, name: str = "big", seed: int = 9) -> int:
    """Writes until the disk is full, with nothing to give up; how many bytes were acknowledged."""
    how, done = write(mount.live / name, seed, 400)
    assert how == "ENOSPC"
    return done


def is_normal(disk: SmallDisk) -> Callable[[], bool]:
    return lambda: disk.mode() == "normal" and not (disk.mount.path / NOTE).exists()


def reserve_bytes(disk: SmallDisk) -> int:
    return (disk.repository / "ballast.reserve").stat().st_blocks * 512


@EVERYWHERE
def test_a_write_that_finds_garbage_only_takes_longer(disk: SmallDisk) -> None:
    """The transparent write: a deleted snapshot is in the trash, and `cp` needs its room."""
    mount = disk.serve()
    write(mount.live / "old", 1, 60)
    mount.commit("old")
    (mount.live / "old").unlink()
    write(mount.live / "kept", 2, 20)
    mount.commit("kept")
    (mount.snapshots / "old").rmdir()
    assert os.listdir(mount.trash) == ["old"]

    free = disk.free_bytes()
    source = disk.directory / "source"
    source.write_bytes(content(3, free + 30 * MIB))
    done = subprocess.run(["cp", source, mount.live / "new"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (mount.live / "new").read_bytes() == source.read_bytes()
    assert (mount.snapshots / "kept" / "kept").read_bytes() == content(2, 20 * MIB)

    status = disk.status()
    recoveries = status["recoveries"]
    assert isinstance(recoveries, list) and recoveries
    assert {one["outcome"] for one in recoveries} == {"recovered"}
    assert any("collect" in step for one in recoveries for step in one["steps"])
    wait_until(lambda: reserve_bytes(disk) >= RESERVE, "the reserve to be whole")
    assert os.listdir(mount.trash) == []
    mount.remount()
    assert (mount.live / "new").read_bytes() == source.read_bytes()
    mount.umount()


@EVERYWHERE
def test_without_a_way_out_nothing_acknowledged_is_lost_and_removing_leads_back(disk: SmallDisk) -> None:
    mount = disk.serve()
    write(mount.live / "first", 1, 40)
    mount.commit("first")
    (mount.live / "first").unlink()
    write(mount.live / "second", 2, 40)
    mount.commit("second")
    assert not (mount.path / NOTE).exists()
    done = fill_up(mount)
    assert disk.mode() == "read-only"

    # everything that was acknowledged is there, and says why nothing more is taken
    assert (mount.live / "big").read_bytes() == content(9, done)
    assert (mount.live / "second").read_bytes() == content(2, 40 * MIB)
    assert (mount.snapshots / "first" / "first").read_bytes() == content(1, 40 * MIB)
    assert NOTE in os.listdir(mount.path)
    wait_until(lambda: "rmdir" in (mount.path / NOTE).read_text(), "the text")
    assert "Nothing is lost" in (mount.path / NOTE).read_text()
    found = os.statvfs(mount.live)
    assert found.f_bavail == 0

    # growth is refused, and the kernel holds no directory meanwhile
    live = mount.live
    for call in (
        'os.mkdir(sys.argv[1] + "/d")',
        'os.symlink("to", sys.argv[1] + "/s")',
        'os.link(sys.argv[1] + "/second", sys.argv[1] + "/l")',
        'os.mkfifo(sys.argv[1] + "/f")',
        'open(sys.argv[1] + "/n", "x")',
        'os.setxattr(sys.argv[1] + "/second", "user.x", b"y")',
        'os.truncate(sys.argv[1] + "/second", 1 << 40)',
        'open(sys.argv[1] + "/second", "ab", buffering=0).write(b"more")',
        'os.mkdir(sys.argv[1] + "/../snapshots/third")',
    ):
        assert attempt(call, live) == "ENOSPC", call

    # what shrinks, and what changes nothing in size, works; and is durable
    (live / "second").rename(live / "renamed")
    (live / "renamed").chmod(0o600)
    os.truncate(live / "renamed", 30 * MIB)
    with (live / "renamed").open("rb") as file:
        os.fsync(file.fileno())
    assert disk.mode() == "read-only", "the snapshots hold it all"

    (mount.snapshots / "first").rmdir()
    wait_until(is_normal(disk), "the way back")
    assert NOTE not in os.listdir(mount.path)
    assert write(live / "after", 4, 20) == ("ok", 20 * MIB)
    wait_until(lambda: reserve_bytes(disk) >= RESERVE, "the reserve to be whole")
    mount.remount()
    assert (live / "renamed").read_bytes() == content(2, 30 * MIB)
    assert (live / "big").read_bytes() == content(9, done)
    assert (live / "after").read_bytes() == content(4, 20 * MIB)
    mount.umount()
    assert ballast("check", disk.repository, "--read-data").returncode == 0


def test_removing_what_no_snapshot_holds_leads_back_too(disk: SmallDisk) -> None:
    mount = disk.serve()
    write(mount.live / "kept", 1, 20)
    mount.commit("kept")
    fill_up(mount)
    (mount.live / "big").unlink()
    wait_until(is_normal(disk), "the way back")
    assert write(mount.live / "after", 4, 60) == ("ok", 60 * MIB)
    mount.umount()


def test_room_that_somebody_else_gives_back_is_noticed(disk: SmallDisk) -> None:
    mount = disk.serve()
    disk.fill(leave_bytes=30 * MIB)
    done = fill_up(mount)
    disk.clear()
    wait_until(is_normal(disk), "the monitor to look")
    assert write(mount.live / "after", 4, 20) == ("ok", 20 * MIB)
    assert (mount.live / "big").read_bytes() == content(9, done)
    mount.umount()


@EVERYWHERE
def test_at_zero_bytes_everything_but_growth_works(disk: SmallDisk) -> None:
    """Another program took the last byte. Tens of thousands of names go, with what the headroom holds."""
    mount = disk.serve()
    python('for n in range(4000): open(f"{sys.argv[1]}/{n}", "w").write("text")', mount.live)
    mount.commit("files")
    disk.fill()
    assert disk.free_bytes() == 0
    fill_up(mount)
    assert disk.mode() == "read-only"
    disk.fill()
    python('for n in range(4000): os.rename(f"{sys.argv[1]}/{n}", f"{sys.argv[1]}/r{n}")', mount.live)
    disk.fill()
    python('for n in range(4000): os.unlink(f"{sys.argv[1]}/r{n}")', mount.live)
    assert attempt("os.fsync(os.open(sys.argv[1], os.O_RDONLY))", mount.live) == "ok"
    assert (mount.snapshots / "files" / "7").read_text() == "text"
    assert ballast("snapshot", "list", disk.repository).returncode == 0
    disk.fill()
    mount.remount()
    assert not (mount.live / "r7").exists()
    mount.umount()


def test_readers_and_names_go_on_while_a_writer_waits(disk: SmallDisk) -> None:
    """A collection that takes as long as it likes: only who needs room waits for it."""
    mount = disk.serve(gated=True)
    write(mount.live / "old", 1, 60)
    mount.commit("old")
    write(mount.live / "kept", 2, 30)
    (mount.live / "old").unlink()
    mount.commit("kept")
    (mount.snapshots / "old").rmdir()

    ends: list[tuple[str, int]] = []
    directory = mount.live / "directory"
    directory.mkdir()
    writers = [
        threading.Thread(target=lambda seed=seed: ends.append(write(directory / str(seed), seed, 15)))
        for seed in range(10, 15)
    ]
    for writer in writers:
        writer.start()
    wait_until(disk.collecting, "a writer to meet the full disk", timeout_s=60)

    assert disk.mode() == "emergency"
    assert sorted(os.listdir(directory)) == [str(seed) for seed in range(10, 15)]
    assert len(list(os.scandir(mount.snapshots))) == 2
    assert (mount.live / "kept").read_bytes() == content(2, 30 * MIB)
    assert (mount.snapshots / "kept" / "kept").read_bytes() == content(2, 30 * MIB)
    os.statvfs(mount.live)
    (mount.live / "name").mkdir()  # out of the headroom
    (mount.live / "name").rename(directory / "moved")
    assert attempt("os.fsync(os.open(sys.argv[1], os.O_RDONLY))", directory) == "ok"
    assert len(ends) < len(writers), "and who needs room waits: one may have been done before"

    disk.open_gate()
    for writer in writers:
        writer.join(60)
        assert not writer.is_alive()
    assert ends == [("ok", 15 * MIB)] * len(writers)
    for seed in range(10, 15):
        assert (directory / str(seed)).read_bytes() == content(seed, 15 * MIB)
    mount.umount()


def test_a_writer_waits_no_longer_than_the_deadline(disk: SmallDisk) -> None:
    mount = disk.serve((*CALM, "--write-deadline", "1s"), gated=True)
    write(mount.live / "old", 1, 60)
    mount.commit("old")
    (mount.live / "old").unlink()
    (mount.live / "small").write_text("small")
    mount.commit("kept")
    (mount.snapshots / "old").rmdir()
    how, done = write(mount.live / "new", 2, 200)
    assert how == "ENOSPC"
    assert disk.collecting()
    assert (mount.live / "new").read_bytes() == content(2, done)
    disk.open_gate()
    wait_until(is_normal(disk), "the collection to end")
    assert write(mount.live / "again", 3, 20) == ("ok", 20 * MIB)
    assert [line for line in mount.trouble() if not line.startswith(("space.deadline", "pack.not_sealed"))] == []
    mount.umount()


@EVERYWHERE
def test_killed_on_a_full_disk_it_mounts_again_with_all_that_was_promised(disk: SmallDisk) -> None:
    mount = disk.serve()
    write(mount.live / "first", 1, 40)
    mount.commit("first")
    done = fill_up(mount)
    with (mount.live / "big").open("rb") as file:
        os.fsync(file.fileno())
    (mount.live / "first").rename(mount.live / "renamed")
    assert attempt("os.fsync(os.open(sys.argv[1], os.O_RDONLY))", mount.live) == "ok"
    disk.fill()
    mount.kill()
    disk.fill()

    mount.start()
    assert (mount.live / "big").read_bytes() == content(9, done)
    assert (mount.live / "renamed").read_bytes() == content(1, 40 * MIB)
    disk.clear()
    (mount.live / "big").unlink()
    (mount.snapshots / "first").rmdir()
    wait_until(is_normal(disk), "the way back")
    assert write(mount.live / "after", 4, 20) == ("ok", 20 * MIB)
    mount.umount()
    assert ballast("check", disk.repository, "--read-data").returncode == 0


def test_a_journal_that_cannot_be_committed_waits_and_a_mount_for_reading_is_named(disk: SmallDisk) -> None:
    """A crash, the headroom gone, not a byte and no garbage: there is no room for what live needs. It is not lost."""
    mount = disk.serve()
    write(mount.live / "first", 1, 10)
    mount.commit("first")
    (mount.live / "many").mkdir()
    for number in range(2_000):
        (mount.live / "many" / f"{number:04d}").write_bytes(b"%d" % number)
    assert attempt("os.fsync(os.open(sys.argv[1], os.O_RDONLY))", mount.live / "many") == "ok"
    mount.kill()
    assert ballast("gc", disk.repository).returncode == 0, "seals what was left open"
    for pack in (disk.repository / "packs").rglob("*.pack"):
        if pack.read_bytes()[: PUNCHED_OFFSET + 1][-1] == SPARE_MARK:
            pack.unlink()
    disk.fill()

    for _ in range(2):
        done = ballast("mount", disk.repository, mount.path)
        assert done.returncode == 28, done.stderr
        assert "ballast mount --read-only" in done.stderr
    mount.options = ("--read-only",)
    mount.start()
    assert (mount.snapshots / "first" / "first").read_bytes() == content(1, 10 * MIB)
    mount.umount()

    mount.options = CALM
    assert ballast("snapshot", "delete", disk.repository, "first").returncode == 0
    disk.clear()
    mount.start()
    assert (mount.live / "first").read_bytes() == content(1, 10 * MIB)
    assert [(mount.live / "many" / f"{number:04d}").read_bytes() for number in range(2_000)] == [
        b"%d" % number for number in range(2_000)
    ]
    mount.umount()
    assert ballast("check", disk.repository, "--read-data").returncode == 0


def test_what_a_full_disk_put_off_becomes_a_snapshot_once_there_is_room(disk: SmallDisk) -> None:
    """Not before: it would hold what its owner is about to remove."""
    mount = disk.serve(("--settle", "100ms", "--interval", "0", "--keep-all"))
    write(mount.live / "kept", 1, 20)
    wait_until(lambda: mount.names() != [], "a snapshot")
    done = fill_up(mount)
    names = mount.names()
    with (mount.live / "big").open("rb") as file:
        os.fsync(file.fileno())
    mount.umount()
    mount.start()
    assert mount.names() == names
    assert (mount.live / "big").stat().st_size == done
    (mount.live / "big").unlink()
    for name in names:
        (mount.snapshots / name).rmdir()
    wait_until(is_normal(disk), "the way back")
    wait_until(lambda: len(mount.names()) == 1, "the snapshot that was put off")
    assert os.listdir(mount.snapshots / mount.names()[0]) == ["kept"]
    mount.umount()


def test_deleting_through_the_socket_says_what_came_back(disk: SmallDisk) -> None:
    mount = disk.serve()
    write(mount.live / "old", 1, 60)
    mount.commit("old")
    (mount.live / "old").unlink()
    fill_up(mount)
    assert disk.mode() == "read-only"
    done = ballast("snapshot", "delete", disk.repository, "old")
    assert done.returncode == 0, done.stderr
    assert disk.mode() == "normal"
    assert errno.errorcode[errno.ENOSPC] not in done.stdout
    assert write(mount.live / "after", 4, 10) == ("ok", 10 * MIB)
    mount.umount()


def test_bytes_that_were_refused_take_no_memory(disk: SmallDisk) -> None:
    """120 writers on a full disk: each has one request in the mount at a time, and the mount holds none of it."""
    mount = disk.serve()
    fill_up(mount)
    ends = python(
        """
import threading
found = []
def run(number):
    try:
        file = os.open(sys.argv[1] + "/big", os.O_WRONLY)
        for _ in range(20):
            try:
                os.pwrite(file, bytes(1 << 20), number << 20)
                found.append("ok")
            except OSError as error:
                found.append(errno.errorcode[error.errno])
    finally:
        os.close(file)
threads = [threading.Thread(target=run, args=(number,)) for number in range(120)]
[one.start() for one in threads]
[one.join() for one in threads]
print(sorted(set(found)), len(found))
""",
        mount.live,
    )
    assert ends.split() == ["['ENOSPC']", "2400"]
    mount.umount()


def test_what_a_refused_write_would_have_changed_reads_as_before(disk: SmallDisk) -> None:
    """Also out of the page cache, into whose pages the kernel copies the bytes before it asks."""
    mount = disk.serve()
    fill_up(mount)
    big = mount.live / "big"
    before = big.read_bytes()
    ends = python(
        """
found = []
file = os.open(sys.argv[1], os.O_RDWR)
for start in (0, 1000, 4096, 5 << 20, os.fstat(file).st_size - 10):
    for length in (1, 4096, 20000, 1 << 20):
        try:
            os.pwrite(file, bytes(length), start)
            found.append("ok")
        except OSError as error:
            found.append(errno.errorcode[error.errno])
print(sorted(set(found)), len(found))
""",
        big,
    )
    assert ends.split() == ["['ENOSPC']", "20"]
    assert big.read_bytes() == before
    mount.umount()


@pytest.mark.parametrize("size", [4 * KIB, MIB])
def test_small_and_large_writes_end_alike(disk: SmallDisk, size: int) -> None:
    """What was acknowledged before ENOSPC is there, to the byte, in every file."""
    mount = disk.serve()
    disk.fill(leave_bytes=24 * MIB)
    found = python(
        """
done = []
for number in range(2000):
    part = bytes([number % 251 + 1]) * int(sys.argv[2])
    try:
        file = os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT)
    except OSError:
        break
    try:
        for index in range(4):
            os.pwrite(file, os.urandom(len(part) - 8) + number.to_bytes(8, "big"), index * len(part))
            done.append((number, index))
    except OSError as error:
        assert error.errno == errno.ENOSPC
        os.close(file)
        break
    os.close(file)
else:
    print("never full")
print(len(done))
""",
        mount.live,
        str(size),
    ).split()
    assert len(found) == 1
    count = int(found[0])
    assert count > 10
    mount.remount()
    for at in range(count):
        number, index = divmod(at, 4)
        with (mount.live / str(number)).open("rb") as file:
            file.seek((index + 1) * size - 8)
            assert file.read(8) == number.to_bytes(8, "big")
    mount.umount()
