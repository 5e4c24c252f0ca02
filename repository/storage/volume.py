"""The only place that calls the operating system for a repository's files.

Paths are relative to the repository's root, with `/`. Every `OSError` becomes a typed error here, once:
ENOSPC and EDQUOT are NoSpaceError, a failed sync is SyncFailedError, everything else VolumeError with its errno.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from repository.errors import BallastError, NoSpaceError, SyncFailedError, VolumeError
from repository.format.record import Buffer
from repository.storage.calls import Calls

IOV_MAX: Final = 1024
"""Buffers in one pwritev: the kernel's UIO_MAXIOV."""
BTRFS_MAGIC: Final = 0x9123683E
_NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))

_T = TypeVar("_T")


def _typed(error: OSError, doing: str, path: str, needed_bytes: int = 0) -> BallastError:
    number = error.errno or 0
    if number in _NO_SPACE:
        return NoSpaceError(f"There is no room on the volume to {doing} '{path}'.", needed_bytes)
    return VolumeError(f"Could not {doing} '{path}': {os.strerror(number) if number else error}.", number)


class FileHandle:
    """One open file. Closes itself when the last reference goes, so that dropping it never races with a reader.

    Thread safe except for `close`. Raises NoSpaceError, VolumeError and SyncFailedError.
    """

    __slots__ = ("_calls", "_fd", "path")

    def __init__(self, calls: Calls, fd: int, path: str) -> None:
        self._calls = calls
        self._fd = fd
        self.path = path

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`: fewer only at the end of the file."""
        try:
            first = self._calls.pread(self._fd, length, offset)
            if len(first) in (0, length):
                return first
            parts = [first]
            done = len(first)
            while done < length and parts[-1]:
                parts.append(self._calls.pread(self._fd, length - done, offset + done))
                done += len(parts[-1])
        except OSError as error:
            raise _typed(error, "read", self.path) from error
        return b"".join(parts)

    def pwrite(self, buffer: Buffer, offset: int) -> None:
        """All of `buffer` at `offset`."""
        self.pwritev((buffer,), offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """All of `buffers`, one behind the other, from `offset` on; short writes are continued."""
        position = offset
        try:
            for first in range(0, len(buffers), IOV_MAX):
                group = buffers[first : first + IOV_MAX]
                total = sum(map(len, group))
                written = self._calls.pwritev(self._fd, group, position)
                position += written
                if written < total:
                    position = self._finish(group, written, position)
        except OSError as error:
            raise _typed(error, "write to", self.path, sum(map(len, buffers))) from error

    def _finish(self, buffers: Sequence[Buffer], done: int, position: int) -> int:
        rest = memoryview(b"".join(buffers))[done:]
        while rest:
            written = self._calls.pwrite(self._fd, rest, position)
            if written == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[written:]
            position += written
        return position

    def fallocate(self, offset: int, length: int) -> None:
        """Allocate [offset, offset + length) and extend the file to its end."""
        try:
            self._calls.fallocate(self._fd, offset, length)
        except OSError as error:
            raise _typed(error, "allocate room in", self.path, length) from error

    def punch(self, offset: int, length: int) -> None:
        """Give the whole blocks within [offset, offset + length) back to the volume; they read as zeros."""
        self._do("punch a hole into", lambda: self._calls.punch(self._fd, offset, length))

    def truncate(self, length: int) -> None:
        """Set the file's size to `length` bytes."""
        self._do("truncate", lambda: self._calls.ftruncate(self._fd, length))

    def size(self) -> int:
        """The file's size in bytes."""
        return self.stat().st_size

    def stat(self) -> os.stat_result:
        return self._do("examine", lambda: self._calls.fstat(self._fd))

    def fdatasync(self) -> None:
        """Make the file's bytes durable. Raises SyncFailedError; never call it again on this file then."""
        self._sync(self._calls.fdatasync)

    def fsync(self) -> None:
        """Make the file's bytes and attributes durable. Raises SyncFailedError."""
        self._sync(self._calls.fsync)

    def _sync(self, call: Callable[[int], None]) -> None:
        try:
            call(self._fd)
        except OSError as error:
            raise SyncFailedError(
                f"Could not make '{self.path}' durable: {error.strerror}; what was written last is unknown.",
                error.errno or 0,
            ) from error

    def start_writeback(self, offset: int, length: int) -> None:
        """Ask the kernel to start writing this range; a hint that is never an error."""
        try:
            self._calls.start_writeback(self._fd, offset, length)
        except OSError:
            return

    def holes(self, end: int) -> Iterator[tuple[int, int]]:
        """The ranges (start, end) without blocks in the first `end` bytes; none where the volume cannot tell."""
        position = 0
        while position < end:
            try:
                start = self._calls.lseek(self._fd, position, os.SEEK_HOLE)
                if start >= end:
                    return
                stop = self._data_from(start, end)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTSUP):
                    return
                raise _typed(error, "examine", self.path) from error
            yield start, min(stop, end)
            position = stop

    def _data_from(self, start: int, end: int) -> int:
        try:
            return self._calls.lseek(self._fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            raise

    def map_for_reading(self) -> memoryview:
        """The whole file mapped read-only, for random access; for files that are never changed in place."""

        def map_it() -> memoryview:
            mapped = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
            mapped.madvise(mmap.MADV_RANDOM)
            return memoryview(mapped)

        return self._do("map", map_it)

    def flock(self, *, exclusive: bool, wait: bool = False) -> bool:
        """Lock the whole file for this handle; False when somebody else holds it."""
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            self._calls.flock(self._fd, operation if wait else operation | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise _typed(error, "lock", self.path) from error
        return True

    def unlock(self) -> None:
        self._do("unlock", lambda: self._calls.flock(self._fd, fcntl.LOCK_UN))

    def _do(self, doing: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            raise _typed(error, doing, self.path) from error

    def close(self) -> None:
        """Close now. Only for handles that no other thread may be using."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                self._calls.close(fd)
            except OSError as error:
                raise _typed(error, "close", self.path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            try:
                self._calls.close(fd)
            except OSError:
                return


class Volume:
    """The repository's directory. Thread safe; holds no state but the root's type of file system."""

    def __init__(self, root: Path, calls: Calls | None = None) -> None:
        self.root = root
        self._calls = calls if calls is not None else Calls()
        self._nocow: bool | None = None

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else str(self.root)

    def _do(self, doing: str, path: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            raise _typed(error, doing, self._path(path)) from error

    def open(self, path: str, *, writable: bool = False) -> FileHandle:
        """An existing file. VolumeError with errno ENOENT where it is missing."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        full = self._path(path)
        return FileHandle(self._calls, self._do("open", path, lambda: self._calls.open(full, flags)), full)

    def create(self, path: str, mode: int = 0o600) -> FileHandle:
        """A new, empty file, readable and writable (VolumeError EEXIST if it is there); `+C` on btrfs."""
        full = self._path(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        fd = self._do("create", path, lambda: self._calls.open(full, flags, mode))
        handle = FileHandle(self._calls, fd, full)
        if self._wants_nocow(fd):
            self._do("set attributes of", path, lambda: self._calls.set_nocow(fd))
        return handle

    def _wants_nocow(self, fd: int) -> bool:
        if self._nocow is None:
            try:
                self._nocow = self._calls.filesystem_type(fd) == BTRFS_MAGIC
            except OSError:
                self._nocow = False
        return self._nocow

    def read_file(self, path: str) -> bytes:
        """All bytes of a (small) file."""
        with self.open(path) as handle:
            return handle.pread(handle.size(), 0)

    def unlink(self, path: str) -> None:
        self._do("remove", path, lambda: self._calls.unlink(self._path(path)))

    def replace(self, source: str, target: str) -> None:
        """Rename within the repository, over an existing file."""
        self._do("rename", source, lambda: self._calls.replace(self._path(source), self._path(target)))

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._do("create", path, lambda: self._calls.mkdir(self._path(path), mode))

    def rmdir(self, path: str) -> None:
        self._do("remove", path, lambda: self._calls.rmdir(self._path(path)))

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        return sorted(self._do("list", path, lambda: self._calls.listdir(self._path(path))))

    def stat(self, path: str) -> os.stat_result:
        return self._do("examine", path, lambda: self._calls.stat(self._path(path)))

    def exists(self, path: str) -> bool:
        try:
            self._calls.stat(self._path(path))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _typed(error, "examine", self._path(path)) from error
        return True

    def statvfs(self) -> os.statvfs_result:
        return self._do("examine", "", lambda: self._calls.statvfs(self._path("")))

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory durable. Raises SyncFailedError."""
        full = self._path(path)
        fd = self._do("open", path, lambda: self._calls.open(full, os.O_RDONLY | os.O_DIRECTORY))
        with FileHandle(self._calls, fd, full) as handle:
            handle.fsync()

    def syncfs(self) -> None:
        """Flush the whole file system: only then does btrfs show freed space. Raises SyncFailedError."""
        full = self._path("")
        fd = self._do("open", "", lambda: self._calls.open(full, os.O_RDONLY | os.O_DIRECTORY))
        with FileHandle(self._calls, fd, full):
            try:
                self._calls.syncfs(fd)
            except OSError as error:
                raise SyncFailedError(f"Could not flush '{full}': {error.strerror}.", error.errno or 0) from error
