"""What a volume can do, found out by trying, at `init`.

Class A: allocation, punching and everything else. B: no punching. C: no allocation.
"""

import errno
from typing import Final, NamedTuple

from repository.errors import BallastError, VolumeError
from repository.storage.volume import FileHandle, Volume
from repository.units import KIB, MIB

PROBE_NAME: Final = ".ballast-probe"
_RENAMED: Final = ".ballast-probe-2"
_WRITTEN_BYTES: Final = 1 * MIB
_ALLOCATED_BYTES: Final = 4 * MIB
_PUNCHED_BYTES: Final = 512 * KIB
"""Many blocks of any size, so that bookkeeping of the file system cannot hide the difference."""
_UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV))


class VolumeProbe(NamedTuple):
    """The class of a volume, and what it lacks, in words."""

    volume_class: str
    lacks: tuple[str, ...]


def probe_volume(volume: Volume) -> VolumeProbe:
    """Try everything a repository needs with a file of 5 MiB in the volume's root; leaves nothing behind.

    Raises NoSpaceError where the file does not fit, VolumeError where files cannot even be overwritten, locked,
    renamed or made durable.
    """
    for name in (PROBE_NAME, _RENAMED):
        if volume.exists(name):
            volume.unlink(name)
    handle = volume.create(PROBE_NAME)
    try:
        with handle:
            lacks = _try(volume, handle)
    finally:
        for name in (PROBE_NAME, _RENAMED):
            if volume.exists(name):
                volume.unlink(name)
    if "allocation of room" in lacks:
        return VolumeProbe("C", lacks)
    return VolumeProbe("B" if lacks else "A", lacks)


def _try(volume: Volume, handle: FileHandle) -> tuple[str, ...]:
    pattern = bytes(range(1, 256)) * (_WRITTEN_BYTES // 255 + 1)
    handle.pwrite(pattern[:_WRITTEN_BYTES], 0)
    handle.fdatasync()
    handle.pwrite(b"\xff", 1)
    handle.fsync()
    if handle.pread(3, 0) != b"\x01\xff\x03":
        raise VolumeError("This volume does not keep what is overwritten in place.")
    if not handle.flock(exclusive=True):
        raise VolumeError("This volume does not lock files.")
    volume.replace(PROBE_NAME, _RENAMED)
    volume.fsync_dir("")
    lacks = []
    if not _allocates(handle):
        lacks.append("allocation of room")
    if not _punches(handle):
        lacks.append("punching of holes")
    return tuple(lacks)


def _allocates(handle: FileHandle) -> bool:
    try:
        handle.fallocate(_WRITTEN_BYTES, _ALLOCATED_BYTES)
    except VolumeError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return handle.stat().st_blocks * 512 >= _WRITTEN_BYTES + _ALLOCATED_BYTES


def _punches(handle: FileHandle) -> bool:
    before = handle.stat().st_blocks
    try:
        handle.punch(0, _PUNCHED_BYTES)
        handle.fsync()
    except BallastError as error:
        if isinstance(error, VolumeError) and error.errno in _UNSUPPORTED:
            return False
        raise
    freed = (before - handle.stat().st_blocks) * 512
    return freed >= _PUNCHED_BYTES // 2 and not any(handle.pread(_PUNCHED_BYTES, 0))
