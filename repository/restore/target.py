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
from enum import Enum
from typing import Final, NamedTuple

from repository.format.inode import Inode, NodeKind
from repository.restore.attributes import Attributes, TargetError, failure

TEMPORARY_PREFIX: Final = b".ballast-restore-"
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES: Final = {
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER: stat.S_IFCHR,
    NodeKind.BLOCK: stat.S_IFBLK,
}
_counter = itertools.count()
_restore_token = os.urandom(6).hex().encode()


class WhenThere(Enum):
    """What happens to a file that stands in the way."""

    KEEP = "keep"
    """It stays; unless it has the same size and time as the one in the snapshot, that is reported."""
    OVERWRITE = "overwrite"
    """It is replaced. A directory in the way of anything else stays, and is reported."""


class NotEmptyError(TargetError):
    """The destination holds files, and nothing was said about what to do with them."""

    holds_files = True


class Existing(NamedTuple):
    """What stands under a name already. `mtime_ns` and `size` of a regular file tell whether it was restored before."""

    is_directory: bool
    is_file: bool
    size: int
    mtime_ns: int


def job_prefix(number: int) -> bytes:
    """What the temporary names of that job begin with in a process of its own: what it left there can be found."""
    return TEMPORARY_PREFIX + _restore_token + b"-%x-" % number


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at byte `offset` of an open file. Raises as `failure`."""
    try:
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)
    except OSError as error:
        raise failure(error) from error


class TargetDirectory:
    """An open directory of the destination. When its last user lets go it gets its attributes and is closed.

    `path` is relative to the destination, for messages. `fresh`: it was made by this restore and holds only what this
    restore puts there. `hidden`: it has a temporary name itself until all small files are in it, which need none then.
    `inode` None: what is there keeps its attributes. Thread safe.
    """

    __slots__ = ("_attributes", "_filling", "_granted", "_inode", "_lock", "_parent", "_prefix", "_temporary", "_users",
                 "fd", "fresh", "hidden", "path")  # fmt: skip

    def __init__(
        self,
        fd: int,
        path: bytes,
        parent: "TargetDirectory | None",
        *,
        fresh: bool,
        inode: Inode | None,
        attributes: Attributes,
        prefix: bytes = job_prefix(0),
        hidden: bool = False,
        temporary: bytes = b"",
    ) -> None:
        """`temporary`: its name for now, in `parent`, where it is hidden."""
        self.fd = fd
        self.path = path
        self._prefix = prefix
        self.fresh = fresh
        self.hidden = hidden
        self._temporary = temporary
        self._filling = 1
        self._granted: dict[tuple[int, int, int], bool] = {}
        self._parent = parent.hold() if parent is not None else None
        self._inode = inode
        self._attributes = attributes
        self._users = 1
        self._lock = threading.Lock()

    def hold(self) -> "TargetDirectory":
        with self._lock:
            self._users += 1
        return self

    def fill(self) -> "TargetDirectory":
        """`hold`, by somebody who will put files into it. Only while another does."""
        with self._lock:
            self._users += 1
            self._filling += 1
        return self

    def filled(self) -> None:
        """One of those who put files into it (whoever opened it is the first) is done; a hidden one gets its name with
        the last. To be released nevertheless. Raises TargetError where it keeps the temporary one."""
        with self._lock:
            self._filling -= 1
            if self._filling or not self._temporary:
                return
        assert self._parent is not None
        try:
            name = os.path.basename(self.path)
            os.rename(self._temporary, name, src_dir_fd=self._parent.fd, dst_dir_fd=self._parent.fd)
        except OSError as error:
            left = os.fsdecode(self._temporary)
            raise TargetError(f"it stays under the name '{left}' with all that is in it: {error.strerror}") from error

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

    def _temporary_name(self) -> bytes:
        """A name that nobody else uses."""
        return self._prefix + b"%x" % next(_counter)

    def sweep(self, prefix: bytes) -> None:
        """Remove the temporary files of a process that died."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.fd):
                if os.fsencode(name).startswith(prefix):
                    self.forget(os.fsencode(name))

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

    def make_directory(self, name: bytes, inode: Inode, *, hidden: bool) -> "TargetDirectory":
        """A new directory; until it is complete only its owner may look into it. `hidden` only in a fresh one, where
        nothing can stand under the name."""
        first = self._temporary_name() if hidden else name
        try:
            os.mkdir(first, 0o700, dir_fd=self.fd)
            fd = os.open(first, _DIRECTORY_FLAGS, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        return TargetDirectory(
            fd,
            self.path_of(name),
            self,
            fresh=True,
            inode=inode,
            attributes=self._attributes,
            hidden=hidden,
            temporary=first if hidden else b"",
        )

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
        temporary = self._temporary_name()
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
        temporary = self._temporary_name()
        try:
            os.link(source_name, temporary, src_dir_fd=source.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            raise failure(error) from error
        self._finish(temporary, name, lambda: "")
        self.forget(temporary)  # still there where `name` was one of the file's names: such a rename does nothing

    def create_file(self, name: bytes) -> "TargetFile":
        """A new file that appears as `name` when it is finished."""
        temporary = self._temporary_name()
        try:
            fd = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        return TargetFile(self, fd, temporary, name, self._attributes)

    def put_file(self, name: bytes, inode: Inode, data: bytes) -> str:
        """A file of which all bytes are at hand. Returns what of it is missing, as `Attributes.apply`."""
        if self.hidden:
            return self._put_at_once(name, inode, data)
        temporary = self._temporary_name()
        try:
            fd = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        try:
            try:
                if data:
                    write_at(fd, data, 0)
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

    def _put_at_once(self, name: bytes, inode: Inode, data: bytes) -> str:
        """As `put_file`, under the final name."""
        mode = inode.mode
        plain = mode <= 0o777 and not inode.xattrs and not self._attributes.inherited_acls
        try:
            fd = os.open(name, _CREATE_FLAGS, mode if plain else 0o600, dir_fd=self.fd)
        except OSError as error:
            raise failure(error) from error
        try:
            try:
                if data:
                    write_at(fd, data, 0)
                if plain and self._as_wished(fd, (inode.uid, inode.gid, mode)):
                    os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))
                    return ""
                return self._attributes.apply(fd, inode)
            finally:
                os.close(fd)
        except BaseException as error:
            self.forget(name)
            if isinstance(error, OSError):
                raise failure(error) from error
            raise

    def _as_wished(self, fd: int, wished: tuple[int, int, int]) -> bool:
        """Whether a new file has owner, group and mode as `wished` without more ado. In one directory the answer is
        the same for all who wish the same: one of them is asked."""
        answer = self._granted.get(wished)
        if answer is None:
            found = os.fstat(fd)
            answer = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == wished
            self._granted[wished] = answer
        return answer

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

    __slots__ = ("_attributes", "_directory", "_finished", "_name", "_temporary", "fd")

    def __init__(
        self, directory: TargetDirectory, fd: int, temporary: bytes, name: bytes, attributes: Attributes
    ) -> None:
        self._directory = directory
        self.fd = fd
        self._temporary = temporary
        self._name = name
        self._attributes = attributes
        self._finished = False

    def __enter__(self) -> "TargetFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        if not self._finished:
            self._directory.forget(self._temporary)

    def finish(self, inode: Inode) -> str:
        """Give it its length and attributes, and its name. Returns what of it is missing, as `Attributes.apply`."""
        try:
            if os.fstat(self.fd).st_size != inode.size:  # a hole at the end
                os.ftruncate(self.fd, inode.size)
        except OSError as error:
            raise failure(error) from error
        lack = self._attributes.apply(self.fd, inode)
        self._directory.rename(self._temporary, self._name)
        self._finished = True
        return lack


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
