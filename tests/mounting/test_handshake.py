"""What is asked for at INIT, and the mount without it."""

import os
import random
import sys
from pathlib import Path

import pytest

from repository.units import MIB
from tests.support.mounted import run
from tests.support.mounting import Mounting

pytestmark = pytest.mark.mount

WRITES = 2_000
FEW = WRITES // 4
"""Requests beside the writes: attributes, flushes, what others on this machine ask about the mount."""
PIECES = 16


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


def test_what_was_written_is_read_from_the_page_cache(mounted: Mounting) -> None:
    """Whoever asks for attributes in between makes the kernel hear of a new mtime."""
    pid = mounted.pid()
    file = mounted.live / "file"
    content = bytearray(os.urandom(PIECES * MIB))
    with file.open("wb", buffering=0) as out:
        for start in range(0, len(content), MIB):
            out.write(content[start : start + MIB])
            file.stat()
    os.utime(file, ns=(0, 0))
    before = reads_of(pid)
    assert file.read_bytes() == content
    assert reads_of(pid) - before < PIECES, "128 KiB are a request, where nothing is in memory"


def test_what_others_write_is_seen_at_once(mounted: Mounting) -> None:
    """Through other handles of other programs, with every size the same as before."""
    file = mounted.live / "file"
    content = bytearray(os.urandom(MIB))
    file.write_bytes(content)
    rng = random.Random(3)
    with file.open("rb", buffering=0) as reading:
        for _ in range(60):
            assert os.pread(reading.fileno(), MIB, 0) == content
            start = rng.randrange(MIB - 9000)
            part = rng.randbytes(rng.choice([1, 4096, 9000]))
            content[start : start + len(part)] = part
            change = f"import os; f = os.open({str(file)!r}, os.O_WRONLY); os.pwrite(f, {part!r}, {start})"
            run([sys.executable, "-I", "-S", "-c", change])
        os.truncate(file, 5000)
        os.truncate(file, MIB)
        assert os.pread(reading.fileno(), MIB, 0) == content[:5000] + bytes(MIB - 5000)
        file.write_bytes(content)
        assert os.pread(reading.fileno(), MIB, 0) == content


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
