"""The seam to the operating system: typed errors, whole transfers, what a volume can do."""

import errno
import gc
import os
from pathlib import Path

import pytest

from repository.errors import NoSpaceError, SyncFailedError, VolumeError
from repository.storage.probe import probe_volume
from repository.storage.volume import IOV_MAX, Volume
from repository.units import KIB, MIB
from tests.support.calls import Fault, FaultyCalls


def test_files_are_private_and_close_themselves(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    handle = volume.create("file")
    fd = handle._fd
    assert os.stat(tmp_path / "file").st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd)
    del handle
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    with Volume(tmp_path).create("file") as handle:
        handle.pwritev([b"%06d" % item for item in range(IOV_MAX * 2 + 5)], 3)
        assert handle.size() == 3 + 6 * (IOV_MAX * 2 + 5)
        assert handle.pread(6, 3 + 6 * 2000) == b"002000"
        assert handle.pread(100, handle.size() - 4) == b"2052"
        assert handle.pread(100, handle.size()) == b""


def test_holes_are_told(tmp_path: Path) -> None:
    with Volume(tmp_path).create("file") as handle:
        handle.pwrite(b"x" * 64 * KIB, 0)
        handle.fdatasync()
        handle.punch(8 * KIB, 16 * KIB)
        assert list(handle.holes(64 * KIB)) == [(8 * KIB, 24 * KIB)]
        assert list(handle.holes(16 * KIB)) == [(8 * KIB, 16 * KIB)]
        assert handle.pread(1, 10 * KIB) == b"\0"
        handle.fallocate(64 * KIB, 1 * MIB)
        assert handle.size() == 64 * KIB + 1 * MIB


def test_locks_exclude_each_other(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.create("lock").close()
    first, second = volume.open("lock"), volume.open("lock")
    assert first.flock(exclusive=True)
    assert not second.flock(exclusive=True)
    first.unlock()
    assert second.flock(exclusive=True)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, VolumeError), (errno.EROFS, VolumeError)],
)
def test_errors_are_typed(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    calls = FaultyCalls([Fault("pwritev", number), Fault("fallocate", number), Fault("create", number, path="second")])
    volume = Volume(tmp_path, calls)
    handle = volume.create("first")
    for call in (
        lambda: handle.pwrite(b"x", 0),
        lambda: handle.fallocate(0, 10),
        lambda: volume.create("second"),
    ):
        with pytest.raises(kind) as caught:
            call()
        if isinstance(caught.value, VolumeError):
            assert caught.value.errno == number
    calls.check()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_sync_is_an_error_of_its_own_whatever_its_number(tmp_path: Path, number: int) -> None:
    """ENOSPC from fdatasync means that bytes are lost, not that there is a home to look for."""
    calls = FaultyCalls([Fault("fdatasync", number), Fault("fsync", number)])
    handle = Volume(tmp_path, calls).create("file")
    for call in (handle.fdatasync, handle.fsync):
        with pytest.raises(SyncFailedError):
            call()


def test_missing_and_existing_files(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    assert not volume.exists("file")
    with pytest.raises(VolumeError) as missing:
        volume.open("file")
    assert missing.value.errno == errno.ENOENT
    volume.create("file").close()
    assert volume.exists("file")
    with pytest.raises(VolumeError) as existing:
        volume.create("file")
    assert existing.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("fault", "volume_class"),
    [
        (None, "A"),
        (Fault("punch", errno.EOPNOTSUPP), "B"),
        (Fault("fallocate", errno.EOPNOTSUPP), "C"),
    ],
)
def test_a_volume_is_probed(tmp_path: Path, fault: Fault | None, volume_class: str) -> None:
    calls = FaultyCalls([] if fault is None else [fault])
    probe = probe_volume(Volume(tmp_path, calls))
    assert probe.volume_class == volume_class
    assert bool(probe.lacks) == (fault is not None)
    assert not list(tmp_path.iterdir())
    calls.check()


def test_a_full_volume_cannot_be_probed_and_keeps_nothing(tmp_path: Path) -> None:
    calls = FaultyCalls([Fault("fallocate", errno.ENOSPC)])
    with pytest.raises(NoSpaceError):
        probe_volume(Volume(tmp_path, calls))
    assert not list(tmp_path.iterdir())
