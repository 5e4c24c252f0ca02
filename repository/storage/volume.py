"""The only place that calls the operating system for a repository's files, with the handles that it opens.

Paths are relative to the repository's root, with `/`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from repository.errors import SyncFailedError, VolumeError
from repository.storage.calls import Calls
from repository.storage.handle import (
    IOV_MAX,
    STAT_BLOCK_BYTES,
    UNSUPPORTED,
    ZERO_PIECE_BYTES,
    Abilities,
    FileHandle,
    typed,
)

__all__ = ["IOV_MAX", "STAT_BLOCK_BYTES", "ZERO_PIECE_BYTES", "FileHandle", "Volume"]

BEYOND_BYTES: Final = 1 << 30
"""Behind the end of each file that this asks about."""

_T = TypeVar("_T")


class Volume:
    """The repository's directory. Thread safe; holds no state but what is known of the file system under it."""

    def __init__(self, root: Path, calls: Calls | None = None) -> None:
        self.root = root
        self._calls = calls if calls is not None else Calls()
        self._abilities = Abilities()

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else str(self.root)

    def believe(self, volume_class: str) -> None:
        """Take over what `init` found out: see `storage.probe`."""
        if "C" in volume_class:
            self._abilities.allocates = False
        if "B" in volume_class:
            self._abilities.punches = False

    @property
    def allocates(self) -> bool:
        """Whether there is `fallocate`, as far as anybody knows."""
        return self._abilities.allocates is not False

    def punches(self, try_on: str | None = None) -> bool:
        """Whether holes can be punched, as far as anybody knows (a repository may have been copied elsewhere since
        `init` asked). With `try_on` it is found out behind the end of that file, which changes nothing of it.

        Raises VolumeError.
        """
        if self._abilities.punches is None and try_on is not None:
            with self.open(try_on, writable=True) as handle:
                try:
                    handle.punch(BEYOND_BYTES, ZERO_PIECE_BYTES)
                    self._abilities.punches = True
                except VolumeError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    self._abilities.punches = False
        return self._abilities.punches is not False

    def _do(self, doing: str, path: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            raise typed(error, doing, self._path(path)) from error

    def open(self, path: str, *, writable: bool = False) -> FileHandle:
        """An existing file. VolumeError with errno ENOENT where it is missing."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        full = self._path(path)
        fd = self._do("open", path, lambda: self._calls.open(full, flags))
        return FileHandle(self._calls, fd, full, self._abilities)

    def create(self, path: str, mode: int = 0o600) -> FileHandle:
        """A new, empty file, readable and writable (VolumeError EEXIST if it is there); `+C` on btrfs."""
        full = self._path(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        fd = self._do("create", path, lambda: self._calls.open(full, flags, mode))
        handle = FileHandle(self._calls, fd, full, self._abilities)
        if self._wants_nocow(fd):
            self._do("set attributes of", path, lambda: self._calls.set_nocow(fd))
        return handle

    def _wants_nocow(self, fd: int) -> bool:
        return self._abilities.wants_nocow(self._calls, fd)

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
            raise typed(error, "examine", self._path(path)) from error
        return True

    def statvfs(self) -> os.statvfs_result:
        return self._do("examine", "", lambda: self._calls.statvfs(self._path("")))

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory durable. Raises SyncFailedError."""
        full = self._path(path)
        fd = self._do("open", path, lambda: self._calls.open(full, os.O_RDONLY | os.O_DIRECTORY))
        with FileHandle(self._calls, fd, full) as handle:
            handle.fsync()

    @property
    def frees_late(self) -> bool:
        """Whether room that was given back is only seen after `syncfs`."""
        if self._abilities.nocow is None:
            full = self._path("")
            fd = self._do("open", "", lambda: self._calls.open(full, os.O_RDONLY | os.O_DIRECTORY))
            with FileHandle(self._calls, fd, full):
                self._wants_nocow(fd)
        return bool(self._abilities.nocow)

    def syncfs(self) -> None:
        """Flush the whole file system: only then does btrfs show freed space. Raises SyncFailedError."""
        full = self._path("")
        fd = self._do("open", "", lambda: self._calls.open(full, os.O_RDONLY | os.O_DIRECTORY))
        with FileHandle(self._calls, fd, full):
            try:
                self._calls.syncfs(fd)
            except OSError as error:
                raise SyncFailedError(f"Could not flush '{full}': {error.strerror}.", error.errno or 0) from error
