"""System calls of a volume that cannot allocate, cannot punch, or neither: ext2, NTFS, exFAT."""

import errno
import os
from collections.abc import Sequence
from typing import Final

from repository.format.record import Buffer
from repository.storage.calls import Calls
from tests.support.calls import RecordingCalls


def _refuse() -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class BareCalls(Calls):
    """What is not allowed is answered as such file systems do. `refused` counts."""

    def __init__(self, *, allocates: bool = False, punches: bool = False) -> None:
        self.allocates: Final = allocates
        self.punches: Final = punches
        self.refused = 0

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        if not self.allocates:
            self.refused += 1
            _refuse()
        super().fallocate(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        if not self.punches:
            self.refused += 1
            _refuse()
        super().punch(fd, offset, length)


class BareRecordingCalls(RecordingCalls):
    """Neither allocates nor punches; everything else is on record."""

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        _refuse()

    def punch(self, fd: int, offset: int, length: int) -> None:
        _refuse()


class BareSmallCalls(BareCalls):
    """A volume of `room_bytes` that counts what files were made long: a write behind that is ENOSPC.

    As NTFS and exFAT do it, the write that meets the end is short, and the next one fails.
    """

    def __init__(self, room_bytes: int) -> None:
        super().__init__()
        self.room_bytes = room_bytes
        self._sizes: dict[str, int] = {}
        self._paths: dict[int, str] = {}

    def used_bytes(self) -> int:
        return sum(self._sizes.values())

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        if not flags & os.O_DIRECTORY:
            self._paths[fd] = path
            self._sizes.setdefault(path, os.fstat(fd).st_size)
        return fd

    def _grant(self, fd: int, length: int, offset: int) -> int:
        """How many of `length` bytes may be written at `offset`."""
        path = self._paths[fd]
        end = min(offset + length, self._sizes[path] + max(0, self.room_bytes - self.used_bytes()))
        if end <= offset and length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sizes[path] = max(self._sizes[path], end)
        return end - offset

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        return super().pwrite(fd, memoryview(buffer)[: self._grant(fd, len(buffer), offset)], offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        return super().pwrite(fd, data[: self._grant(fd, len(data), offset)], offset)

    def ftruncate(self, fd: int, length: int) -> None:
        super().ftruncate(fd, length)
        self._sizes[self._paths[fd]] = length

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._sizes.pop(path, None)

    def statvfs(self, path: str) -> os.statvfs_result:
        """The room that is left, as the volume's own."""
        found = list(super().statvfs(path))
        left = max(0, self.room_bytes - self.used_bytes()) // found[1]
        found[2:5] = self.room_bytes // found[1], left, left
        return os.statvfs_result(found)
