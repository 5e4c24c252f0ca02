"""The files that are being stored, as the operating system shows them: the only calls that touch them.

Everything is opened relative to the descriptor of its directory and never through a symlink, so that nobody
who renames directories meanwhile can lead the reader elsewhere. `OSError` becomes SourceError here.
"""

import errno
import os
import stat
import sys
import threading
from typing import Final

from repository.format.inode import NodeKind
from repository.format.xattrs import XATTRS_MAX_BYTES, encoded_length
from repository.units import MIB

HOLE_MIN_BYTES: Final = 1 * MIB
"""A hole is passed over from this length on; shorter ones are read as the zeros they are (chunks stay large)."""
SECTOR_BYTES: Final = 512
"""The unit of st_blocks, whatever the file system."""
_ENCODING: Final = sys.getfilesystemencoding()
_ERRORS: Final = sys.getfilesystemencodeerrors()
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT_XATTR: Final = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOSYS})
_VANISHED: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
_TYPE_MASK: Final = 0o170000
_KINDS: Final = {
    stat.S_IFREG: NodeKind.FILE,
    stat.S_IFDIR: NodeKind.DIRECTORY,
    stat.S_IFLNK: NodeKind.SYMLINK,
    stat.S_IFIFO: NodeKind.FIFO,
    stat.S_IFSOCK: NodeKind.SOCKET,
    stat.S_IFCHR: NodeKind.CHARACTER,
    stat.S_IFBLK: NodeKind.BLOCK,
}

_SETTLED: Final[dict[NodeKind, int]] = {kind: type_ for type_, kind in _KINDS.items() if kind is not NodeKind.DIRECTORY}

Xattrs = tuple[tuple[bytes, bytes], ...]


TOO_MANY_XATTRS: Final = f"its extended attributes take more than {XATTRS_MAX_BYTES // MIB} MiB, too much to store"


class SourceError(Exception):
    """A file could not be read. `errno` is the kernel's number; the text its words."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.errno = error.errno or 0

    @property
    def too_many_xattrs(self) -> bool:
        """Everything but the extended attributes can be read."""
        return self.errno == errno.E2BIG

    @property
    def vanished(self) -> bool:
        """The file was removed, or replaced by one of another type, between its listing and its reading."""
        return self.errno in _VANISHED


def kind_of(mode: int) -> NodeKind | None:
    """The node kind of an st_mode; None for a type that Linux does not have."""
    return _KINDS.get(mode & _TYPE_MASK)


def type_of(kind: NodeKind | None) -> int | None:
    """The type in st_mode of what has `kind`, as far as one lstat can tell whether it is unchanged."""
    return None if kind is None else _SETTLED.get(kind)


def same_state(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether nothing that a reader could notice happened to a file between the two."""
    return (
        one.st_ctime_ns == other.st_ctime_ns and one.st_mtime_ns == other.st_mtime_ns and one.st_size == other.st_size
    )


class Directory:
    """An open directory, closed when its last user lets go. `hold` and `release` are thread safe.

    `path` is absolute, and for messages and patterns only.
    """

    __slots__ = ("_lock", "_users", "fd", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path
        self._users = 1
        self._lock = threading.Lock()

    def hold(self) -> "Directory":
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            os.close(self.fd)

    def path_of(self, name: bytes) -> bytes:
        """The absolute path of `name` in it."""
        return self.path + name if self.path.endswith(b"/") else self.path + b"/" + name

    def names(self) -> list[bytes]:
        """All names in it, sorted as bytes."""
        try:
            return sorted([name.encode(_ENCODING, _ERRORS) for name in os.listdir(self.fd)])  # os.fsencode, at a tenth
        except OSError as error:
            raise SourceError(error) from error

    def lstat(self, name: bytes) -> os.stat_result:
        """What lstat says of `name` in it."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            raise SourceError(error) from error

    def open_directory(self, name: bytes) -> "Directory":
        """The directory `name` in it."""
        try:
            return Directory(os.open(name, _DIRECTORY_FLAGS, dir_fd=self.fd), self.path_of(name))
        except OSError as error:
            raise SourceError(error) from error

    def own_stat(self) -> os.stat_result:
        """What fstat says of the directory itself."""
        try:
            return os.fstat(self.fd)
        except OSError as error:
            raise SourceError(error) from error

    def readlink(self, name: bytes) -> bytes:
        """The target of the symlink `name`."""
        try:
            return os.readlink(name, dir_fd=self.fd)
        except OSError as error:
            raise SourceError(error) from error

    def xattrs(self, name: bytes | None = None) -> Xattrs:
        """Extended attributes of `name` in it (of a symlink: its own), or of the directory itself."""
        return xattrs_of(self.fd if name is None else b"/proc/self/fd/%d/%s" % (self.fd, name))

    def will_need(self, name: bytes) -> None:
        """Have the kernel fetch the file `name` while others are read."""
        try:
            descriptor = _open_quietly(self.fd, name)
        except OSError:
            return  # whoever reads it will tell
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def begins_with(self, name: bytes, signature: bytes) -> bool:
        """Whether `name` is a readable file whose content begins with `signature`."""
        try:
            with SourceFile(self, name) as file:
                return stat.S_ISREG(file.stat.st_mode) and file.read_all(len(signature)).startswith(signature)
        except SourceError:
            return False


def open_ancestor(path: bytes) -> Directory:
    """The directory at the absolute `path`, symlinks followed: one that leads to what was named.

    It may be one that nobody may list: only its attributes and named children can be asked for.
    """
    try:
        return Directory(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), path)
    except OSError as error:
        raise SourceError(error) from error


def open_root() -> Directory:
    """The root directory, to be listed."""
    try:
        return Directory(os.open(b"/", _DIRECTORY_FLAGS), b"/")
    except OSError as error:
        raise SourceError(error) from error


def lstat_path(path: bytes) -> os.stat_result:
    """What lstat says of an absolute path."""
    try:
        return os.lstat(path)
    except OSError as error:
        raise SourceError(error) from error


def directory_identity(path: bytes) -> tuple[int, int]:
    """Device and inode number of the directory at `path`, symlinks followed; (0, 0), which nothing has, if none is."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def xattrs_of(target: int | bytes) -> Xattrs:
    """Sorted extended attributes of an open file, or of a path (not followed). What may not be read is passed over.

    Raises SourceError, with `too_many_xattrs` where they are more than a snapshot holds.
    """
    follow = isinstance(target, int)
    found: list[tuple[bytes, bytes]] = []
    try:
        names = os.listxattr(target, follow_symlinks=follow)
        if not names:
            return ()
        for name in names:
            try:
                found.append((os.fsencode(name), os.getxattr(target, name, follow_symlinks=follow)))
            except OSError as error:
                if error.errno not in _ABSENT_XATTR:
                    raise
    except OSError as error:
        if error.errno in _ABSENT_XATTR:
            return ()
        raise SourceError(error) from error
    if not found:
        return ()
    if encoded_length(found) > XATTRS_MAX_BYTES:
        raise SourceError(OSError(errno.E2BIG, TOO_MANY_XATTRS))
    return tuple(sorted(found))


class SourceFile:
    """One file, open for reading, with what fstat said at that moment. A context manager."""

    __slots__ = ("_fd", "stat")

    def __init__(self, directory: Directory, name: bytes) -> None:
        try:
            self._fd = _open_quietly(directory.fd, name)
        except OSError as error:
            raise SourceError(error) from error
        self.stat = os.fstat(self._fd)

    def __enter__(self) -> "SourceFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def is_regular(self) -> bool:
        return stat.S_ISREG(self.stat.st_mode)

    def unchanged(self) -> bool:
        """Whether the file is still as it was when it was opened."""
        return same_state(self.stat, os.fstat(self._fd))

    def is_sparse(self) -> bool:
        """Whether it has fewer blocks than bytes by at least one hole worth passing over."""
        return self.stat.st_size - self.stat.st_blocks * SECTOR_BYTES >= HOLE_MIN_BYTES

    def read_all(self, size: int) -> bytes:
        """The bytes from the beginning; `size` of them and one more, where there are so many."""
        try:
            data = os.pread(self._fd, size + 1, 0)
            while len(data) < size:
                more = os.pread(self._fd, size + 1 - len(data), len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise SourceError(error) from error
        return data

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` with the bytes from `offset` on; returns how many there were."""
        filled = 0
        try:
            while filled < len(buffer):
                count = os.preadv(self._fd, [buffer[filled:]], offset + filled)
                if count == 0:
                    break
                filled += count
        except OSError as error:
            raise SourceError(error) from error
        return filled

    def next_data(self, offset: int, size: int) -> tuple[int, int]:
        """The next range (start, end) of data at or behind `offset`, in bytes; (size, size) where only a hole follows.

        Holes shorter than HOLE_MIN_BYTES count as data.
        """
        start = self._seek(offset, os.SEEK_DATA, size)
        if start - offset < HOLE_MIN_BYTES:
            start = offset
        end = start
        while end < size:
            end = self._seek(end, os.SEEK_HOLE, size)
            following = self._seek(end, os.SEEK_DATA, size)
            if following - end >= HOLE_MIN_BYTES:
                break
            end = following
        return start, end

    def _seek(self, offset: int, whence: int, size: int) -> int:
        if offset >= size:
            return size
        try:
            return min(os.lseek(self._fd, offset, whence), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return size  # only a hole follows
            if error.errno == errno.EINVAL:
                return offset if whence == os.SEEK_DATA else size  # a file system that cannot tell holes
            raise SourceError(error) from error

    def xattrs(self) -> Xattrs:
        """Its extended attributes."""
        return xattrs_of(self._fd)


def _open_quietly(directory_fd: int, name: bytes) -> int:
    """Open without leaving an access time where that is allowed (the owner and root)."""
    try:
        return os.open(name, _READ_FLAGS | os.O_NOATIME, dir_fd=directory_fd)
    except PermissionError:
        return os.open(name, _READ_FLAGS, dir_fd=directory_fd)
