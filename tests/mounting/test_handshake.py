"""What is asked for at INIT, and the mount without it."""

import os
from pathlib import Path

import pytest

from tests.support.mounting import Mounting

pytestmark = pytest.mark.mount

WRITES = 2_000
FEW = WRITES // 4
"""Requests beside the writes: attributes, flushes, what others on this machine ask about the mount."""


def reads_of(pid: int) -> int:
    """How often a process has called read(2): for the daemon of a mount, once a request and a bit."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("syscr"))


def requests_of_small_writes(mounted: Mounting) -> int:
    pid = mounted.pid()
    with (mounted.live / "file").open("wb", buffering=0) as file:
        before = reads_of(pid)
        for _ in range(WRITES):
            file.write(b"four")
        return reads_of(pid) - before


def test_a_write_is_one_request(mounted: Mounting) -> None:
    assert WRITES <= requests_of_small_writes(mounted) < WRITES + FEW


def test_without_fusermount3_the_mount_works_all_the_same(ballast: Mounting) -> None:
    """libfuse mounts by itself then, as root may; nothing is asked for at INIT, so each write is two requests."""
    ballast.hide_fusermount3()
    ballast.mount()
    assert requests_of_small_writes(ballast) >= 2 * WRITES
    os.umask(0o027)
    (ballast.live / "new").touch()
    assert (ballast.live / "new").stat().st_mode & 0o777 == 0o640
    assert "Safe to remove" in ballast.umount()
    assert not os.listdir(ballast.mountpoint)
