"""What a volume can do, found out by trying, at `init`. Its classes: see `policy.volumes`."""

import errno
from typing import Final, NamedTuple

from repository.errors import BallastError, VolumeError
from repository.policy.volumes import NO_ALLOCATION, NO_PERMISSIONS, NO_PUNCHING, class_of
from repository.storage.volume import STAT_BLOCK_BYTES, FileHandle, Volume
from repository.units import KIB, MIB

PROBE_NAME: Final = ".ballast-probe"
_RENAMED: Final = ".ballast-probe-2"
_WRITTEN_BYTES: Final = 1 * MIB
_ALLOCATED_BYTES: Final = 4 * MIB
_PUNCHED_BYTES: Final = 512 * KIB
"""Many blocks of any size, so that bookkeeping of the file system cannot hide the difference."""
_LOOKS: Final = 5
"""How often room is looked at that others use at the same time."""
_PRIVATE_MODE: Final = 0o600
_UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV))


class VolumeProbe(NamedTuple):
    """The class of a volume, and what it lacks (words of `policy.volumes`)."""

    volume_class: str
    lacks: tuple[str, ...]


def probe_volume(volume: Volume) -> VolumeProbe:
    """Try everything a repository needs with a file of 5 MiB in the volume's root; leaves nothing behind.

    Raises NoSpaceError where the file does not fit, VolumeError where files cannot even be overwritten, locked,
    renamed or made durable, or where what is written takes no room that could be counted on.
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
    return VolumeProbe(class_of(lacks), lacks)


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
        lacks.append(NO_ALLOCATION)
        if not _keeps_zeros(volume, handle):
            raise VolumeError(
                "This volume compresses what is written, or shares it: no room can be kept for writing on it."
            )
    if not _punches(handle):
        lacks.append(NO_PUNCHING)
    if handle.stat().st_mode & 0o777 != _PRIVATE_MODE:
        lacks.append(NO_PERMISSIONS)
    return tuple(lacks)


def _allocates(handle: FileHandle) -> bool:
    try:
        handle.fallocate(_WRITTEN_BYTES, _ALLOCATED_BYTES)
    except VolumeError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return handle.stat().st_blocks * STAT_BLOCK_BYTES >= _WRITTEN_BYTES + _ALLOCATED_BYTES


def _keeps_zeros(volume: Volume, handle: FileHandle) -> bool:
    """Whether zeros take room. st_blocks does not tell: compressed files count what they would be without."""
    volume.believe(class_of((NO_ALLOCATION,)))
    for _ in range(_LOOKS):
        handle.truncate(_WRITTEN_BYTES)
        handle.fsync()
        before = volume.statvfs()
        handle.allocate(_WRITTEN_BYTES, _ALLOCATED_BYTES)
        after = volume.statvfs()
        if (before.f_bfree - after.f_bfree) * after.f_frsize >= _ALLOCATED_BYTES // 2:
            return True
    return False


def _punches(handle: FileHandle) -> bool:
    before = handle.stat().st_blocks
    try:
        handle.punch(0, _PUNCHED_BYTES)
        handle.fsync()
    except BallastError as error:
        if isinstance(error, VolumeError) and error.errno in _UNSUPPORTED:
            return False
        raise
    freed = (before - handle.stat().st_blocks) * STAT_BLOCK_BYTES
    return freed >= _PUNCHED_BYTES // 2 and not any(handle.pread(_PUNCHED_BYTES, 0))
