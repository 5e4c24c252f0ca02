"""An open file of a repository: whole transfers, room that is really there, typed errors.

Every `OSError` becomes a typed error here and in `volume.py`, once: ENOSPC and EDQUOT are NoSpaceError, a failed sync
is SyncFailedError, everything else VolumeError with its errno.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

from repository.errors import BallastError, NoSpaceError, SyncFailedError, VolumeError
from repository.format.record import Buffer
from repository.storage.calls import Calls
from repository.units import KIB, MIB

IOV_MAX: Final = 1024
"""Buffers in one pwritev: the kernel's UIO_MAXIOV."""
ZERO_PIECE_BYTES: Final = 1 * MIB
"""Written at once where room is allocated by writing: what one ENOSPC wastes, and what it costs in memory."""
AHEAD_BYTES: Final = 512 * KIB
"""Asked for at once when reading ahead: of a larger range the kernel may take only the beginning."""
BTRFS_MAGIC: Final = 0x9123683E
EXTENT_BYTES: Final = 128 * KIB
RESERVE_EXTENT_BYTES: Final = 4 * MIB
"""btrfs gives an extent back only when nothing of it is left: of what was allocated at once and is punched or cut off
in part, nothing comes free. So it is allocated in pieces there: half the mean size of a chunk, and a part of the slices
in which the reserve is lent."""
INSIST_TIMES: Final = 8
"""How often btrfs is asked for what it refuses although it needs no room: 25 of 26 refusals ended with the second time,
one wanted a fourth. Each asks for the end of its transaction first: milliseconds, on a busy disk up to seconds."""
UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.ENOSYS))
"""What a volume says that cannot allocate, or cannot punch."""
STAT_BLOCK_BYTES: Final = 512
"""Unit of st_blocks, whatever the volume's own is."""
_NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_ZEROS: Final = bytes(ZERO_PIECE_BYTES)

_T = TypeVar("_T")


def typed(error: OSError, doing: str, path: str, needed_bytes: int = 0) -> BallastError:
    number = error.errno or 0
    if number in _NO_SPACE:
        return NoSpaceError(f"There is no room on the volume to {doing} '{path}'.", needed_bytes)
    return VolumeError(f"Could not {doing} '{path}': {os.strerror(number) if number else error}.", number)


@dataclass(slots=True)
class Abilities:
    """What is known of a volume; None: nobody has tried yet."""

    allocates: bool | None = None
    punches: bool | None = None
    nocow: bool | None = None
    """Whether files want `+C`."""

    def wants_nocow(self, calls: Calls, fd: int) -> bool:
        """The same, found out from an open file of the volume."""
        if self.nocow is None:
            try:
                self.nocow = calls.filesystem_type(fd) == BTRFS_MAGIC
            except OSError:
                self.nocow = False
        return self.nocow


class FileHandle:
    """One open file. Closes itself when the last reference goes, so that dropping it never races with a reader.

    Thread safe except for `close`. Raises NoSpaceError, VolumeError and SyncFailedError.
    """

    __slots__ = ("_abilities", "_calls", "_fd", "path")

    def __init__(self, calls: Calls, fd: int, path: str, abilities: Abilities | None = None) -> None:
        self._calls = calls
        self._fd = fd
        self._abilities = Abilities() if abilities is None else abilities
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
            raise typed(error, "read", self.path) from error
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
                written = self._insist(partial(self._calls.pwritev, self._fd, group, position))
                position += written
                if written < total:
                    position = self._finish(group, written, position)
        except OSError as error:
            raise typed(error, "write to", self.path, sum(map(len, buffers))) from error

    def _finish(self, buffers: Sequence[Buffer], done: int, position: int) -> int:
        rest = memoryview(b"".join(buffers))[done:]
        while rest:
            written = self._insist(partial(self._calls.pwrite, self._fd, rest, position))
            if written == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[written:]
            position += written
        return position

    def _insist(self, call: Callable[[], _T]) -> _T:
        """What goes into room that is allocated, or gives some back; asked for again where btrfs refuses it.

        It takes room for its own trees until a transaction ends, within a quota too, and while others allocate there
        may be none at that moment. Raises OSError.
        """
        for _ in range(INSIST_TIMES - 1):
            try:
                return call()
            except OSError as error:
                if error.errno not in _NO_SPACE or not self._abilities.wants_nocow(self._calls, self._fd):
                    raise
            self._calls.syncfs(self._fd)
        return call()

    def fallocate(self, offset: int, length: int) -> None:
        """Allocate [offset, offset + length) and extend the file to its end."""
        try:
            self._calls.fallocate(self._fd, offset, length)
        except OSError as error:
            raise typed(error, "allocate room in", self.path, length) from error

    def allocate(self, offset: int, length: int, *, incompressible: bool = False) -> None:
        """Allocate [offset, offset + length) and extend the file to its end: all of it, or nothing is kept.

        By fallocate where the volume has it; elsewhere what lies behind the file's end is written, in pieces of
        ZERO_PIECE_BYTES, made durable, and looked for in st_blocks: zeros, or noise where `incompressible`. Bytes that
        the file has already are left alone. Raises NoSpaceError, VolumeError; SyncFailedError where writing was needed.
        """
        before = self.size()
        try:
            if self._abilities.allocates is not False:
                try:
                    self._fallocate(offset, length, RESERVE_EXTENT_BYTES if incompressible else EXTENT_BYTES)
                    return
                except VolumeError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    self._abilities.allocates = False
            self._allocate_by_writing(before, max(before, offset + length), incompressible)
        except NoSpaceError as error:
            self.truncate(before)  # part of it may have been allocated
            error.needed_bytes = length  # it may have been asked for in pieces
            raise

    def _fallocate(self, offset: int, length: int, extent_bytes: int) -> None:
        """In extents of that size where the volume gives back only whole ones."""
        if not self._abilities.wants_nocow(self._calls, self._fd):
            extent_bytes = max(1, length)
        end = offset + length
        while offset < end:
            upto = min(end, (offset // extent_bytes + 1) * extent_bytes)
            self.fallocate(offset, upto - offset)
            offset = upto

    def _allocate_by_writing(self, start: int, end: int, incompressible: bool) -> None:
        for position in range(start, end, ZERO_PIECE_BYTES):
            length = min(ZERO_PIECE_BYTES, end - position)
            self.pwrite(os.urandom(length) if incompressible else memoryview(_ZEROS)[:length], position)
        try:
            self.fdatasync()
        except SyncFailedError as error:
            if error.errno in _NO_SPACE and not start:  # else it may be about what the file held before
                raise NoSpaceError(f"There is no room on the volume to allocate room in '{self.path}'.", end) from error
            raise
        if self.stat().st_blocks * STAT_BLOCK_BYTES < end:
            raise VolumeError(f"The volume does not keep room that was allocated for '{self.path}'.")

    def punch(self, offset: int, length: int) -> None:
        """Give the whole blocks within [offset, offset + length) back to the volume; they read as zeros."""
        self._do("punch a hole into", lambda: self._insist(lambda: self._calls.punch(self._fd, offset, length)))

    def truncate(self, length: int) -> None:
        """Set the file's size to `length` bytes."""
        self._do("truncate", lambda: self._insist(lambda: self._calls.ftruncate(self._fd, length)))

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

    def will_need(self, offset: int, length: int) -> None:
        """Ask the kernel to read this range meanwhile; a hint that is never an error."""
        end = offset + length
        try:
            for start in range(offset, end, AHEAD_BYTES):
                self._calls.will_need(self._fd, start, min(AHEAD_BYTES, end - start))
        except OSError:
            return

    def wont_need(self) -> None:
        """Tell the kernel that what it holds in memory of this file is better used for something else; a hint that is
        never an error. What is not durable yet stays."""
        try:
            self._calls.wont_need(self._fd)
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
                raise typed(error, "examine", self.path) from error
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
            raise typed(error, "lock", self.path) from error
        return True

    def unlock(self) -> None:
        self._do("unlock", lambda: self._calls.flock(self._fd, fcntl.LOCK_UN))

    def _do(self, doing: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            raise typed(error, doing, self.path) from error

    def close(self) -> None:
        """Close now. Only for handles that no other thread may be using."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                self._calls.close(fd)
            except OSError as error:
                raise typed(error, "close", self.path) from error

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
