"""System calls of which one fails: the nth of a name, whatever it is about."""

import os
from collections import Counter
from collections.abc import Sequence

from repository.format.record import Buffer
from repository.storage.calls import Calls


class NthCallFails(Calls):
    """Counts calls by name; the `nth` of `name` (from 1) fails with `errno` while `armed`. Not for several threads."""

    def __init__(self, name: str = "", errno: int = 0, nth: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self.armed = False
        self.fired = False
        self._name, self._errno, self._nth = name, errno, nth

    def _meet(self, name: str) -> None:
        if not self.armed:
            return
        self.counts[name] += 1
        if name == self._name and self.counts[name] == self._nth:
            self.fired = True
            raise OSError(self._errno, os.strerror(self._errno))

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._meet("create" if flags & os.O_CREAT else "open")
        return super().open(path, flags, mode)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._meet("pread")
        return super().pread(fd, length, offset)

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        self._meet("pwrite")
        return super().pwrite(fd, buffer, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._meet("pwritev")
        return super().pwritev(fd, buffers, offset)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._meet("fallocate")
        super().fallocate(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._meet("punch")
        super().punch(fd, offset, length)

    def ftruncate(self, fd: int, length: int) -> None:
        self._meet("ftruncate")
        super().ftruncate(fd, length)

    def fdatasync(self, fd: int) -> None:
        self._meet("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._meet("fsync")
        super().fsync(fd)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        self._meet("lseek")
        return super().lseek(fd, offset, whence)

    def unlink(self, path: str) -> None:
        self._meet("unlink")
        super().unlink(path)

    def replace(self, source: str, target: str) -> None:
        self._meet("replace")
        super().replace(source, target)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._meet("mkdir")
        super().mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self._meet("rmdir")
        super().rmdir(path)

    def listdir(self, path: str) -> list[str]:
        self._meet("listdir")
        return super().listdir(path)

    def stat(self, path: str) -> os.stat_result:
        self._meet("stat")
        return super().stat(path)

    def fstat(self, fd: int) -> os.stat_result:
        self._meet("fstat")
        return super().fstat(fd)

    def statvfs(self, path: str) -> os.statvfs_result:
        self._meet("statvfs")
        return super().statvfs(path)

    def flock(self, fd: int, operation: int) -> None:
        self._meet("flock")
        super().flock(fd, operation)
