"""What is promised of `fsync`, of the end of a mount, and of a mount beside another one."""

import errno
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.conftest import NewMount
from tests.support.mounted import Mounted, attempt, ballast, is_mounted, python, run, start_python, wait_until

pytestmark = pytest.mark.mount

WRITER = """
number = 0
try:
    while True:
        number += 1
        with open(f"{sys.argv[1]}/{number % 7}", "w") as file:
            file.write(f"{number:08d}" * 50)
            file.flush()
            os.fsync(file.fileno())
        print(number)
except OSError as error:
    print("ended", error.errno)
"""
"""Says a number only when the file that holds it was synced."""


def numbers(root: Path) -> set[int]:
    """What the writer's files hold; one may have been opened last and not written to yet."""
    texts = [(root / name).read_text() for name in os.listdir(root)]
    assert all(len(text) in (0, 400) for text in texts)
    return {int(text[:8]) for text in texts if text}


def written_until(mount: Mounted, code: str, number: signal.Signals) -> int:
    """Runs the writer, sends the daemon a signal, and returns the last number that the writer was sure of."""
    with start_python(code, mount.live) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(100)]
        os.kill(mount.pid, number)
        said += writer.stdout.readlines()
    assert said[-1].startswith("ended")
    return int(said[-2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_fsync_acknowledged_survives_the_end_of_the_daemon(mount: Mounted, number: signal.Signals) -> None:
    """Also in the moments between SIGTERM and the end, when the last snapshot is being made."""
    last = written_until(mount, WRITER, number)
    mount.wait()
    mount.clean_up()
    mount.trouble()
    mount.start()
    assert max(numbers(mount.live)) >= last
    assert ballast("check", mount.repository).returncode == 0


def test_what_write_acknowledged_before_sigterm_survives_without_fsync(mount: Mounted) -> None:
    last = written_until(mount, WRITER.replace("            os.fsync(file.fileno())\n", ""), signal.SIGTERM)
    assert mount.wait() == 0
    mount.start()
    assert max(numbers(mount.live)) >= last, "nothing that was admitted may be lost by a clean end"


def test_fsync_of_a_file_keeps_its_name_and_its_new_parents(mount: Mounted) -> None:
    (mount.live / "old").mkdir()
    (mount.live / "old" / "file").write_text("moved later")
    mount.commit("base")
    (mount.live / "new" / "deep").mkdir(parents=True)
    os.rename(mount.live / "old" / "file", mount.live / "new" / "deep" / "renamed")
    with (mount.live / "new" / "deep" / "file").open("wb") as file:
        file.write(b"synced" * 100_000)
        file.flush()  # Python's own buffer is as large as st_blksize
        os.setxattr(file.fileno(), "user.x", b"too")
        os.fsync(file.fileno())
    mount.kill()
    mount.start()
    assert (mount.live / "new" / "deep" / "file").read_bytes() == b"synced" * 100_000
    assert os.getxattr(mount.live / "new" / "deep" / "file", "user.x") == b"too"
    assert (mount.live / "new" / "deep" / "renamed").read_text() == "moved later"
    assert os.listdir(mount.live / "old") == []


def test_fsync_of_a_directory_keeps_its_names(mount: Mounted) -> None:
    for number in range(50):
        (mount.live / str(number)).touch()
    (mount.live / "7").unlink()
    handle = os.open(mount.live, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    mount.kill()
    mount.start()
    assert len(os.listdir(mount.live)) == 49


def test_msync_makes_a_mapped_store_durable(mount: Mounted) -> None:
    (mount.live / "file").write_bytes(bytes(100_000))
    mount.commit("base")
    code = """
import mmap
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as map:
    map[50_000:50_006] = b"stored"
    map.flush()
"""
    python(code, mount.live / "file")
    mount.kill()
    mount.start()
    assert (mount.live / "file").read_bytes()[50_000:50_007] == b"stored\0"


def test_five_seconds_later_it_is_durable_without_fsync(mount: Mounted) -> None:
    (mount.live / "file").write_text("some time ago")
    os.rename(mount.live / "file", mount.live / "renamed")
    time.sleep(5.5)
    mount.kill()
    mount.start()
    assert (mount.live / "renamed").read_text() == "some time ago"
    assert "Recovered" in mount.said.read_text()


def test_after_a_kill_what_is_left_is_a_prefix(mount: Mounted) -> None:
    """One writer makes files in turn, each with the number of the one before; a gap would show."""
    code = """
number = 0
try:
    while True:
        number += 1
        with open(f"{sys.argv[1]}/{number:06d}", "w") as file:
            file.write("x" * (number * 37 % 20_000))
        if number % 10 == 0:
            os.rename(f"{sys.argv[1]}/{number - 5:06d}", f"{sys.argv[1]}/r{number - 5:06d}")
        if number % 50 == 0:
            os.fsync(os.open(sys.argv[1], os.O_RDONLY))
            print(number)
except OSError:
    pass
"""
    with start_python(code, mount.live) as writer:
        assert writer.stdout is not None
        synced = [int(writer.stdout.readline()) for _ in range(6)][-1]
        mount.kill()
    mount.start()
    names = sorted(os.listdir(mount.live), key=lambda name: int(name.lstrip("r")))
    found = [int(name.lstrip("r")) for name in names]
    assert found == list(range(1, len(found) + 1)) and found[-1] >= synced
    for name, number in zip(names[:-1], found[:-1], strict=True):
        assert (mount.live / name).stat().st_size == number * 37 % 20_000, name
        if number + 5 < found[-1]:
            assert name.startswith("r") == (number % 10 == 5), name


def test_a_read_only_mount_beside_a_writable_one(mount: Mounted) -> None:
    (mount.live / "file").write_text("one")
    mount.commit("one")
    beside = Mounted(mount.repository, mount.path.with_name("beside"), ("--read-only",))
    try:
        beside.start()
        assert sorted(os.listdir(beside.path)) == [".ballast", "README.txt", "snapshots", "trash"]
        assert (beside.snapshots / "one" / "file").read_text() == "one"
        (mount.live / "file").write_text("two")
        mount.commit("two")
        wait_until((beside.snapshots / "two").exists, "the other mount's new snapshot")
        assert (beside.snapshots / "two" / "file").read_text() == "two"
        assert run(["diff", "-r", mount.snapshots, beside.snapshots]) == ""
        (mount.snapshots / "one").rmdir()
        wait_until(lambda: not (beside.snapshots / "one").exists(), "the deletion to be seen")
        for call in (
            "os.mkdir(sys.argv[1] + '/snapshots/x')",
            "os.rmdir(sys.argv[1] + '/snapshots/two')",
            "open(sys.argv[1] + '/x', 'w')",
        ):
            assert attempt(call, beside.path) == "EROFS"
        beside.umount()
        assert beside.trouble() == []
    finally:
        beside.clean_up()


def test_a_read_only_mount_of_a_directory_that_cannot_be_written(mount: Mounted) -> None:
    (mount.live / "file").write_text("kept")
    mount.commit("kept")
    mount.umount()
    copy = mount.path.with_name("medium")
    copy.mkdir()
    run(["mount", "--bind", mount.repository, copy])
    beside = Mounted(copy, mount.path.with_name("beside"), ("--read-only",))
    try:
        run(["mount", "-o", "remount,bind,ro", copy])
        beside.start()
        assert (beside.snapshots / "kept" / "file").read_text() == "kept"
        beside.umount()
        assert beside.trouble() == []
    finally:
        beside.clean_up()
        run(["umount", copy])


def test_a_second_writable_mount_is_refused(mount: Mounted) -> None:
    done = ballast("mount", mount.repository, mount.path.with_name("second"))
    assert done.returncode == 11
    assert str(mount.pid) in done.stderr and done.stderr.count("\n") == 1
    assert not is_mounted(mount.path.with_name("second"))
    assert ballast("snapshot", "list", mount.repository).returncode == 0


def test_a_foreign_umount_under_load_loses_nothing(new_mount: NewMount) -> None:
    mount = new_mount()
    for number in range(200):
        (mount.live / str(number)).write_bytes(bytes([number]) * 5000)
    run(["umount", mount.path])
    assert mount.wait() == 0
    mount.start()
    assert sorted(os.listdir(mount.live), key=int) == [str(number) for number in range(200)]
    assert all((mount.live / str(number)).read_bytes() == bytes([number]) * 5000 for number in range(200))
    assert len(mount.names()) == 1


def test_umount_while_busy_says_who_and_changes_nothing(mount: Mounted) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=mount.live) as sleeper:
        wait_until(lambda: os.readlink(f"/proc/{sleeper.pid}/cwd") == str(mount.live), "sleep to stand there")
        done = ballast("umount", mount.path)
        assert done.returncode == 1
        assert f"sleep (pid {sleeper.pid}" in done.stderr
        (mount.live / "file").write_text("goes on")
        sleeper.kill()


def test_who_is_in_a_mount_that_ends_gets_an_error_not_a_hang(mount: Mounted) -> None:
    file = os.open(mount.live / "file", os.O_CREAT | os.O_WRONLY)
    mount.terminate()
    assert mount.wait() == 0
    with pytest.raises(OSError) as caught:
        os.write(file, b"too late")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    with suppress(OSError):
        os.close(file)
