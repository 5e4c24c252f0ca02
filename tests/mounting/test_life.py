"""The life of a mount: how it begins, how it ends, and what is there after it died."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from fusefs import control
from tests.support.mounting import COMMAND, Mounting, gone, until

pytestmark = pytest.mark.mount


def names(ballast: Mounting) -> list[str]:
    """Names of the listed snapshots."""
    return [row["name"] for row in json.loads(ballast.ballast("snapshot", "list", ballast.repository, "--json"))]


def test_a_missing_mountpoint_is_made_and_what_was_written_is_there_next_time(ballast: Mounting) -> None:
    ballast.mount()
    (ballast.live / "file").write_text("kept")
    assert "Safe to remove" in ballast.umount()
    assert not ballast.is_mounted()
    ballast.mount()
    assert (ballast.live / "file").read_text() == "kept"
    ballast.umount()


def test_when_umount_returns_the_lock_is_free(ballast: Mounting) -> None:
    for round_ in range(3):
        ballast.mount()
        (ballast.live / "file").write_text(str(round_))
        ballast.umount()
        assert len(names(ballast)) == round_ + 1


def test_umount_names_who_keeps_it_busy(mounted: Mounting) -> None:
    (mounted.live / "directory").mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=mounted.live / "directory") as sleeper:
        until(lambda: os.readlink(f"/proc/{sleeper.pid}/cwd").endswith("directory"))
        with (mounted.live / "open file").open("w"):
            said = mounted.ballast("umount", mounted.mountpoint, code=1)
        assert f"sleep (pid {sleeper.pid}: {mounted.live}/directory)" in said
        assert f"(pid {os.getpid()}: {mounted.live}/open file)" in said
        assert (mounted.live / "directory").is_dir(), "a refused umount changes nothing"
        sleeper.kill()
    mounted.umount()


def test_umount_is_answered_while_the_kernel_still_drops_what_it_cached(ballast: Mounting) -> None:
    """The connection ends long before `fusermount3 -u` returns on a loaded machine: this one returns when told to."""
    programs, gate = ballast.base / "programs", ballast.base / "gate"
    programs.mkdir()
    slow = programs / "fusermount3"
    real = shutil.which("fusermount3")
    waiting = f"{real} -u -- {ballast.mountpoint}; while [ ! -e {gate} ]; do sleep 0.05; done"
    slow.write_text(f'#!/bin/sh\nif [ "$1" != -u ]; then exec {real} "$@"; fi\n{waiting}\n')
    slow.chmod(0o755)
    ballast.environment["PATH"] = f"{programs}:{ballast.environment['PATH']}"
    ballast.mount()
    pid = ballast.pid()
    (ballast.live / "file").write_text("kept")
    try:
        assert "Safe to remove" in ballast.umount()
        assert not gone(pid)(), "it waits for its child"
        assert len(names(ballast)) == 1
    finally:
        gate.touch()
    until(gone(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(mounted: Mounting, number: signal.Signals) -> None:
    (mounted.live / "file").write_text("kept")
    pid = mounted.pid()
    os.kill(pid, number)
    until(gone(pid))
    assert not mounted.is_mounted()
    assert len(names(mounted)) == 1
    assert "without unmounting" not in mounted.mount()
    assert (mounted.live / "file").read_text() == "kept"


def test_sigterm_commits_and_ends_even_while_files_are_open(mounted: Mounting) -> None:
    pid = mounted.pid()
    file = os.open(mounted.live / "file", os.O_CREAT | os.O_WRONLY)
    os.write(file, b"written before the signal")
    os.kill(pid, signal.SIGTERM)
    until(gone(pid))
    assert not mounted.is_mounted()
    with pytest.raises(OSError) as caught:
        os.write(file, b"too late")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with suppress(OSError):
        os.close(file)
    assert "without unmounting" not in mounted.mount()
    assert (mounted.live / "file").read_text() == "written before the signal"


def test_a_foreign_umount_ends_it_cleanly(mounted: Mounting) -> None:
    (mounted.live / "file").write_text("kept")
    pid = mounted.pid()
    subprocess.run(["umount", str(mounted.mountpoint)], check=True)
    until(gone(pid))
    assert len(names(mounted)) == 1
    assert "without unmounting" not in mounted.mount()


def test_after_a_kill_the_next_mount_clears_the_dead_one_and_says_what_it_found(mounted: Mounting) -> None:
    with (mounted.live / "file").open("w") as file:
        file.write("synced")
        file.flush()
        os.fsync(file.fileno())
    pid = mounted.pid()
    os.kill(pid, signal.SIGKILL)
    until(gone(pid))
    with pytest.raises(OSError):
        os.statvfs(mounted.mountpoint)
    said = mounted.mount()
    assert f"Cleared a dead Ballast mount at {mounted.mountpoint}." in said
    assert "Last mount ended without unmounting" in said
    assert (mounted.live / "file").read_text() == "synced"


def test_umount_of_a_dead_mount_frees_the_mountpoint(mounted: Mounting) -> None:
    pid = mounted.pid()
    os.kill(pid, signal.SIGKILL)
    until(gone(pid))
    assert "had died before" in mounted.umount()
    assert not mounted.is_mounted()


def test_a_second_writer_is_refused_and_does_not_disturb_the_first(mounted: Mounting) -> None:
    (mounted.base / "other").mkdir()
    said = mounted.ballast("mount", mounted.repository, mounted.base / "other", code=11)
    assert str(mounted.pid()) in said and str(mounted.mountpoint) in said
    said = mounted.ballast("mount", mounted.repository, mounted.mountpoint, code=11)
    (mounted.live / "file").write_text("still there")


def test_mountpoints_that_will_not_do(quiet: Mounting) -> None:
    (quiet.base / "full").mkdir()
    (quiet.base / "full" / "file").write_text("would be hidden")
    (quiet.base / "file").write_text("")
    for mountpoint, sentence in (
        (quiet.base / "full", "is not empty"),
        (quiet.base / "file", "is not a directory"),
        (quiet.repository / "packs", "lies inside the repository"),
        (quiet.base, "which the mount would hide"),
    ):
        said = quiet.ballast("mount", quiet.repository, mountpoint, code=2)
        assert sentence in said and said.count("\n") == 1
        assert said.startswith("ballast: ") and "Traceback" not in said
    quiet.mount()
    said = quiet.ballast("mount", "--read-only", quiet.repository, quiet.mountpoint, code=1)
    assert "is a Ballast mount already" in said


def test_no_repository_is_exit_10(quiet: Mounting) -> None:
    said = quiet.ballast("mount", quiet.base / "nowhere", quiet.base / "mnt", code=10)
    assert "There is no repository" in said


def test_umount_of_something_else(ballast: Mounting) -> None:
    assert "Nothing of Ballast" in ballast.ballast("umount", "/proc", code=2)
    assert "Nothing of Ballast" in ballast.ballast("umount", ballast.base, code=2)


def test_in_the_foreground_it_tells_systemd_and_ends_on_sigterm(ballast: Mounting) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(ballast.base / "notify"))
        notifications.settimeout(20)
        words = [*COMMAND, "mount", "--foreground", str(ballast.repository), str(ballast.mountpoint)]
        environment = {**ballast.environment, "NOTIFY_SOCKET": str(ballast.base / "notify")}
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as daemon:
            assert notifications.recv(100) == b"READY=1"
            (ballast.live / "file").write_text("x")
            assert ballast.pid() == daemon.pid
            daemon.send_signal(signal.SIGTERM)
            _, log = daemon.communicate(timeout=20)
        assert daemon.returncode == 0
        assert "mount.ready" in log and "mount.ended" in log
    assert names(ballast)


def test_the_background_process_holds_no_directory_and_no_terminal(mounted: Mounting) -> None:
    process = Path(f"/proc/{mounted.pid()}")
    assert os.readlink(process / "cwd") == "/"
    assert {os.readlink(process / "fd" / str(number)) for number in (0, 1, 2)} == {"/dev/null"}
    assert (process / "stat").read_text().rsplit(")", 1)[1].split()[4] == "0", "no controlling terminal"


def test_the_sockets_are_private_and_go_with_the_mount(mounted: Mounting) -> None:
    sockets = [control.mount_socket(mounted.device()), control.repository_socket(mounted.repository)]
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(sockets[0].parent.stat().st_mode) == 0o700
    owned = [_which(path) for path in sockets]
    mounted.umount()
    for path, which in zip(sockets, owned, strict=True):  # the next mount may have the device's number already
        assert not path.exists() or _which(path) != which


def _which(path: Path) -> tuple[int, int]:
    """Tells a file from its successor, which may have got the same inode."""
    found = path.stat()
    return found.st_ino, found.st_ctime_ns


def test_changes_by_other_commands_go_through_the_mount(mounted: Mounting) -> None:
    (mounted.live / "file").write_text("one")
    (mounted.snapshots / "first").mkdir()
    repository = mounted.repository
    mounted.ballast("snapshot", "rename", repository, "first", "second")
    assert (mounted.snapshots / "second" / "file").read_text() == "one"
    mounted.ballast("snapshot", "pin", repository, "second")
    assert "pinned" in mounted.ballast("snapshot", "delete", repository, "second", code=1)
    mounted.ballast("snapshot", "unpin", repository, "second")
    mounted.ballast("snapshot", "delete", repository, "second")
    assert os.listdir(mounted.trash) == ["second"]
    mounted.ballast("snapshot", "undelete", repository, "second", "--name", "third")
    assert (mounted.snapshots / "third" / "file").read_text() == "one"
    assert control.request(repository, "commit", {"name": "fourth"})["name"] == "fourth"
    assert (mounted.snapshots / "fourth" / "file").read_text() == "one"
    assert control.request(repository, "commit", {"name": None}) == {}


def test_a_copy_in_another_mount_namespace_does_not_keep_umount_waiting(mounted: Mounting) -> None:
    """Found beside other tests: whoever ran `unshare --mount` meanwhile had a copy, and `umount` waited for its end."""
    (mounted.live / "file").write_text("kept")
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec sleep 600"],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "there\n"
            assert "Safe to remove" in mounted.umount()
            assert not mounted.is_mounted()
        finally:
            other.kill()
    mounted.mount()
    assert (mounted.live / "file").read_text() == "kept"
    mounted.umount()
