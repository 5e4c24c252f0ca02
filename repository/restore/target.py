"""The directory that files are restored into, as the operating system sees it: the only calls that touch it.

Everything is created relative to the descriptor of its directory and no symlink in it is ever followed, so nothing can
be written outside. Single files raise TargetError; a full or read-only destination ends the whole restore.
"""

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from repository.errors import NoSpaceError, VolumeError
from repository.format.inode import Inode, NodeKind

TEMPORARY_PREFIX: Final = b".ballast-restore-"
ACL_ACCESS: Final = "system.posix_acl_access"
ACL_DEFAULT: Final = "system.posix_acl_default"
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NEEDS_ROOT: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
"""Answers to chown: not root; an owner that this user namespace does not know; a file system without owners."""
_FOREIGN_XATTRS: Final = ("security.", "trusted.", "system.")
"""Namespaces that an ordinary user may not set, or that another file system does not have: passed over silently."""
_TOO_LARGE_XATTR: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE})
"""Answers to setxattr where the volume keeps less per file than the source did (ext4: 4 KiB). A disk that is really
full says so again at the next write."""
_TYPES: Final = {
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER: stat.S_IFCHR,
    NodeKind.BLOCK: stat.S_IFBLK,
}
_counter = itertools.count()
_process_token = os.urandom(6).hex().encode()


class TargetError(Exception):
    """One file could not be written; the text says why, in a few words. `holds_files`: a destination is not empty."""

    holds_files = False


class NotEmptyError(TargetError):
    """The destination holds files, and nothing was said about what to do with them."""

    holds_files = True


class Existing(NamedTuple):
    """What stands under a name already. `mtime_ns` and `size` of a regular file tell whether it was restored before."""

    is_directory: bool
    is_file: bool
    size: int
    mtime_ns: int


def failure(error: OSError) -> Exception:
    """The typed error of a failed call: a full or read-only volume ends everything, anything else one file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError("The destination is full; what was restored so far is complete.")
    if error.errno in (errno.EROFS, errno.EIO):
        return VolumeError(f"The destination cannot be written: {error.strerror}.", error.errno)
    return TargetError(error.strerror or str(error))


def temporary_name() -> bytes:
    """A name that nobody else uses."""
    return TEMPORARY_PREFIX + _process_token + b"-%x" % next(_counter)


class TargetDirectory:
    """An open directory of the destination. When its last user lets go it gets its attributes and is closed.

    `path` is relative to the destination, for messages. `fresh`: it was made by this restore and holds only what this
    restore puts there. `inode` None: what is there keeps its attributes. Thread safe.
    """

    __slots__ = ("_attributes", "_inode", "_lock", "_parent", "_users", "fd", "fresh", "path")

    def __init__(
        self,
        fd: int,
        path: bytes,
        parent: "TargetDirectory | None",
        *,
        fresh: bool,
        inode: Inode | None,
        attributes: "Attributes",
    ) -> None:
        self.fd = fd
        self.path = path
        self.fresh = fresh
        self._parent = parent.hold() if parent is not None else None
        self._inode = inode
        self._attributes = attributes
        self._users = 1
        self._lock = threading.Lock()

    def hold(self) -> "TargetDirectory":
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Let go; the last one applies owner, mode and times, and closes. Raises TargetError once that is done."""
        directory: TargetDirectory | None = self
        problem: TargetError | None = None
        while directory is not None:
            with directory._lock:
                directory._users -= 1
                if directory._users:
                    break
            try:
                if directory._inode is not None:
                    lack = directory._attributes.apply(directory.fd, directory._inode)
                    if lack:
                        problem = problem or TargetError(lack)
            except TargetError as error:
                problem = problem or error
            finally:
                os.close(directory.fd)
            directory = directory._parent
        if problem is not None:
            raise problem

    def path_of(self, name: bytes) -> bytes:
        return self.path + b"/" + name if self.path else name

    def existing(self, name: bytes) -> Existing | None:
        """What stands under `name` now; nothing in a fresh directory, which is not asked."""
        if self.fresh:
            return None
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failure(error) from error
        return Existing(stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode), found.st_size, found.st_mtime_ns)

    def make_directory(self, name: bytes, inode: Inode) -> "TargetDirectory":
        """A new directory; until it is complete only its owner may look into it."""
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        return TargetDirectory(fd, self.path_of(name), self, fresh=True, inode=inode, attributes=self._attributes)

    def open_directory(self, name: bytes, inode: Inode | None) -> "TargetDirectory":
        """A directory that is there already; with `inode` it gets those attributes in the end."""
        try:
            fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        self._attributes.look_at(fd)
        return TargetDirectory(fd, self.path_of(name), self, fresh=False, inode=inode, attributes=self._attributes)

    def remove(self, name: bytes) -> None:
        """Remove what is not a directory."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error

    def make_special(self, name: bytes, inode: Inode) -> str:
        """A symlink, FIFO, socket or device, with its attributes, in place of what stands under the name.

        Returns what of it is missing, as `Attributes.apply`.
        """
        temporary = temporary_name()
        try:
            if inode.kind is NodeKind.SYMLINK:
                os.symlink(inode.target, temporary, dir_fd=self.fd)
            else:
                os.mknod(temporary, _TYPES[inode.kind] | 0o600, inode.rdev, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.EPERM and inode.kind in (NodeKind.CHARACTER, NodeKind.BLOCK):
                raise TargetError("only root may make a device") from error
            raise failure(error) from error
        return self._finish(temporary, name, lambda: self._attributes.apply_to_name(self.fd, temporary, inode))

    def make_link(self, name: bytes, source: "TargetDirectory", source_name: bytes) -> None:
        """One more name for the file `source_name` in `source`."""
        temporary = temporary_name()
        try:
            os.link(source_name, temporary, src_dir_fd=source.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            raise failure(error) from error
        self._finish(temporary, name, lambda: "")
        self.forget(temporary)  # still there where `name` was one of the file's names: such a rename does nothing

    def create_file(self, name: bytes) -> "TargetFile":
        """A new file that appears as `name` when it is finished."""
        temporary = temporary_name()
        try:
            fd = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        return TargetFile(self, fd, temporary, name, self._attributes)

    def put_file(self, name: bytes, inode: Inode, data: bytes) -> str:
        """A file of which all bytes are at hand. Returns what of it is missing, as `Attributes.apply`."""
        temporary = temporary_name()
        try:
            fd = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        try:
            try:
                written = os.pwrite(fd, data, 0) if data else 0
                while written < len(data):
                    written += os.pwrite(fd, memoryview(data)[written:], written)
                lack = self._attributes.apply(fd, inode)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException as error:
            self.forget(temporary)
            if isinstance(error, OSError):
                raise failure(error) from error
            raise
        return lack

    def _finish(self, temporary: bytes, name: bytes, prepare: Callable[[], str]) -> str:
        try:
            lack = prepare()
            self.rename(temporary, name)
        except BaseException:
            self.forget(temporary)
            raise
        return lack

    def rename(self, temporary: bytes, name: bytes) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error

    def forget(self, temporary: bytes) -> None:
        """Remove a file that was not finished."""
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self.fd)


class TargetFile:
    """A regular file being written under a temporary name. Leaving the context without `finish` removes it."""

    __slots__ = ("_attributes", "_directory", "_end", "_fd", "_finished", "_name", "_temporary")

    def __init__(
        self, directory: TargetDirectory, fd: int, temporary: bytes, name: bytes, attributes: "Attributes"
    ) -> None:
        self._directory = directory
        self._fd = fd
        self._temporary = temporary
        self._name = name
        self._attributes = attributes
        self._end = 0
        self._finished = False

    def __enter__(self) -> "TargetFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if not self._finished:
            self._directory.forget(self._temporary)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """All of `data` at byte `offset`."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view = view[written:]
                offset += written
            self._end = max(self._end, offset)
        except OSError as error:
            raise failure(error) from error

    def finish(self, inode: Inode) -> str:
        """Give it its length and attributes, and its name. Returns what of it is missing, as `Attributes.apply`."""
        try:
            if inode.size != self._end:  # a hole at the end
                os.ftruncate(self._fd, inode.size)
        except OSError as error:
            raise failure(error) from error
        lack = self._attributes.apply(self._fd, inode)
        self._directory.rename(self._temporary, self._name)
        self._finished = True
        return lack


class Attributes:
    """Sets owner, extended attributes, mode and times, in the order in which none undoes another.

    What only root may do (owners, and xattrs outside `user.`) is passed over silently for others, as tar does;
    a file whose owner could not be set loses its setuid and setgid bits. Change times cannot be set on Linux.
    Extended attributes that the volume has no place for are named in the answer; the file is there without them.
    """

    def __init__(self) -> None:
        self._inherited_acls = False

    def look_at(self, directory_fd: int) -> None:
        """Note whether files in this directory would inherit an ACL, which must then be taken off again."""
        try:
            os.getxattr(directory_fd, ACL_DEFAULT)
        except OSError:
            return
        self._inherited_acls = True

    def apply(self, fd: int, inode: Inode) -> str:
        """To an open file or directory. Returns what could not be set and should have been, in words; mostly empty."""
        try:
            mode = inode.mode if _chown(fd, inode) else inode.mode & 0o1777
            lack = self._set_xattrs(fd, inode)
            os.fchmod(fd, mode)
            os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))
        except OSError as error:
            raise failure(error) from error
        return lack

    def apply_to_name(self, directory_fd: int, name: bytes, inode: Inode) -> str:
        """To what must not be opened: symlinks, FIFOs, sockets, devices. Returns as `apply`."""
        try:
            owned = _chown_name(directory_fd, name, inode)
            lack = self._set_xattrs(b"/proc/self/fd/%d/%s" % (directory_fd, name), inode)
            if inode.kind is not NodeKind.SYMLINK:
                os.chmod(name, inode.mode if owned else inode.mode & 0o1777, dir_fd=directory_fd)
            os.utime(name, ns=(inode.atime_ns, inode.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)
        except OSError as error:
            raise failure(error) from error
        return lack

    def _set_xattrs(self, target: int | bytes, inode: Inode) -> str:
        if not inode.xattrs and not self._inherited_acls:
            return ""
        follow = isinstance(target, int)
        names = set()
        homeless: list[str] = []
        for raw_name, value in inode.xattrs:
            name = os.fsdecode(raw_name)
            names.add(name)
            try:
                os.setxattr(target, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno in _TOO_LARGE_XATTR:
                    homeless.append(name)
                elif not name.startswith(_FOREIGN_XATTRS) and error.errno not in (errno.ENOTSUP, errno.ENOENT):
                    raise
        if self._inherited_acls and inode.kind is not NodeKind.SYMLINK:
            for name in (ACL_ACCESS, ACL_DEFAULT):
                if name not in names:
                    with contextlib.suppress(OSError):
                        os.removexattr(target, name, follow_symlinks=follow)
        if not homeless:
            return ""
        which = ", ".join(map(repr, homeless))
        return f"restored without extended attributes that do not fit on this volume: {which}"


def _chown(fd: int, inode: Inode) -> bool:
    """Whether the file belongs now to whom it should."""
    try:
        os.fchown(fd, inode.uid, inode.gid)
    except OSError as error:
        if error.errno not in _NEEDS_ROOT:
            raise
        with contextlib.suppress(OSError):
            os.fchown(fd, -1, inode.gid)
        return False
    return True


def _chown_name(directory_fd: int, name: bytes, inode: Inode) -> bool:
    try:
        os.chown(name, inode.uid, inode.gid, dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NEEDS_ROOT:
            raise
        return False
    return True


def open_destination(path: bytes, inode: Inode | None, *, empty: bool, attributes: Attributes) -> TargetDirectory:
    """The destination, made (with its missing parents) where it is missing.

    With `empty` it must hold nothing. Raises TargetError with a sentence.
    """
    try:
        os.makedirs(path, 0o777, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(error) from error
    try:
        holds = bool(os.listdir(fd)) if empty else True
    except OSError as error:
        os.close(fd)
        raise failure(error) from error
    if empty and holds:
        os.close(fd)
        raise NotEmptyError("it holds files already")
    attributes.look_at(fd)
    return TargetDirectory(fd, b"", None, fresh=not holds, inode=inode, attributes=attributes)
