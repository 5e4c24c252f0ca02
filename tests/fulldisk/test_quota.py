"""A quota that `statvfs` does not know of, for real: a btrfs subvolume with a limit. There is room, yet EDQUOT."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from repository.units import MIB
from tests.support.mounted import CALM, ballast, wait_until
from tests.support.smalldisk import SmallDisk, limited_disk

pytestmark = [pytest.mark.mount, pytest.mark.slow]

LIMIT_MIB = 200
PIECE = MIB


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with limited_disk(LIMIT_MIB, "--reserve", "20M", "--headspace", "0") as one:
        yield one


def some_bytes(seed: int, mib: int) -> bytes:
    return random.Random(seed).randbytes(mib * MIB)


def append_all(path: Path, data: bytes) -> tuple[int, int]:
    """How many bytes were acknowledged, and the error that ended it (0: none)."""
    with path.open("ab", buffering=0) as file:
        for start in range(0, len(data), PIECE):
            try:
                file.write(data[start : start + PIECE])
            except OSError as error:
                return os.fstat(file.fileno()).st_size, error.errno or -1
        return os.fstat(file.fileno()).st_size, 0


def test_no_way_out_and_back(disk: SmallDisk) -> None:
    mount = disk.serve()
    held, kept, large = some_bytes(1, 60), some_bytes(2, 3), some_bytes(3, 120)
    (mount.live / "held").write_bytes(held)
    mount.commit("held")
    (mount.live / "held").unlink()
    (mount.live / "kept").write_bytes(kept)
    assert disk.free_bytes() > LIMIT_MIB * MIB, "the volume itself has room"
    acknowledged, error = append_all(mount.live / "large", large)
    assert error == errno.ENOSPC and 0 < acknowledged < len(large)
    assert disk.mode() == "read-only"
    assert (mount.live / "large").read_bytes() == large[:acknowledged]
    assert (mount.live / "kept").read_bytes() == kept
    assert (mount.snapshots / "held" / "held").read_bytes() == held
    assert "held" in (mount.path / "DISK-IS-FULL.txt").read_text()
    (mount.live / "kept").rename(mount.live / "renamed")
    (mount.live / "large").unlink()
    (mount.snapshots / "held").rmdir()
    wait_until(lambda: disk.mode() == "normal", "the way back")
    assert append_all(mount.live / "again", large) == (len(large), 0)
    mount.umount()
    disk.serve(CALM)
    assert (mount.live / "again").read_bytes() == large
    assert (mount.live / "renamed").read_bytes() == kept
    mount.umount()
    done = ballast("check", disk.repository, "--read-data")
    assert done.returncode == 0, done.stdout + done.stderr


def test_garbage_pays_for_the_write(disk: SmallDisk) -> None:
    mount = disk.serve()
    (mount.live / "old").write_bytes(some_bytes(4, 100))
    mount.commit("old")
    (mount.live / "old").unlink()
    (mount.snapshots / "old").rmdir()
    mount.commit("without")
    large = some_bytes(5, 100)
    assert append_all(mount.live / "large", large) == (len(large), 0)
    assert disk.mode() == "normal"
    recoveries = disk.status()["recoveries"]
    assert isinstance(recoveries, list) and recoveries
    assert any("collect" in step for one in recoveries for step in one["steps"])
    assert (mount.live / "large").read_bytes() == large
