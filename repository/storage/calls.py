"""The operating system's calls, one method each, raising `OSError`; and the wall clock.

This is the seam for tests: they subclass `Calls` to record, count or break single calls. Nothing is decided here.
"""

import ctypes
import fcntl
import os
import time
from collections.abc import Sequence
from typing import Final

from repository.format.record import Buffer

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_SYNC_FILE_RANGE_WRITE: Final = 2
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_COMPR_FL: Final = 0x00000004
_FS_NOCOW_FL: Final = 0x00800000
_STATFS_BYTES: Final = 256
"""More than any libc's struct statfs; only its first word, the type, is read."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range: Final = _libc.sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_syncfs: Final = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
_fstatfs: Final = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Calls:
    """Raw system calls. Paths are absolute; offsets and lengths are bytes."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        return os.pwrite(fd, buffer, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        """Allocate and extend the size. Never emulated by writing, as posix_fallocate would."""
        _checked(_fallocate(fd, 0, offset, length))

    def punch(self, fd: int, offset: int, length: int) -> None:
        _checked(_fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length))

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def syncfs(self, fd: int) -> None:
        _checked(_syncfs(fd))

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        _checked(_sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE))

    def will_need(self, fd: int, offset: int, length: int) -> None:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def wont_need(self, fd: int) -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return os.lseek(fd, offset, whence)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def statvfs(self, path: str) -> os.statvfs_result:
        return os.statvfs(path)

    def filesystem_type(self, fd: int) -> int:
        """The magic number of the file system behind `fd` (statfs f_type)."""
        buffer = ctypes.create_string_buffer(_STATFS_BYTES)
        _checked(_fstatfs(fd, buffer))
        return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little")

    def set_nocow(self, fd: int) -> None:
        """`chattr +C`, which only an empty file accepts, and only without a `+c` (compress) from its directory."""
        data = bytearray(8)
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, data)
        flags = int.from_bytes(data[:4], "little")
        if flags & _FS_COMPR_FL:
            flags &= ~_FS_COMPR_FL
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, (flags | _FS_NOCOW_FL).to_bytes(8, "little"))

    def flock(self, fd: int, operation: int) -> None:
        fcntl.flock(fd, operation)


class SystemClock:
    """Wall-clock time of this machine."""

    def now_ns(self) -> int:
        return time.time_ns()
