"""btrfs refuses, for moments, what needs no room: it is asked again, a few times, and no other volume is."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from repository.errors import NoSpaceError
from repository.format.record import Buffer
from repository.storage.calls import Calls
from repository.storage.handle import BTRFS_MAGIC, INSIST_TIMES, FileHandle
from repository.storage.volume import Volume
from repository.units import KIB

SIZE = 64 * KIB
TMPFS_MAGIC = 0x01021994


class Moody(Calls):
    """Refuses the next `refuses` changes of a file, with `number`."""

    def __init__(self, magic: int = BTRFS_MAGIC, number: int = errno.EDQUOT) -> None:
        self.magic = magic
        self.number = number
        self.refuses = 0
        self.asked = 0
        self.flushed = 0

    def filesystem_type(self, fd: int) -> int:
        return self.magic

    def set_nocow(self, fd: int) -> None:
        pass

    def syncfs(self, fd: int) -> None:
        self.flushed += 1

    def _ask(self) -> None:
        self.asked += 1
        if self.refuses:
            self.refuses -= 1
            raise OSError(self.number, os.strerror(self.number))

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        self._ask()
        return super().pwrite(fd, buffer, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._ask()
        return super().pwritev(fd, [memoryview(buffers[0])[:1]], offset)  # and the rest by pwrite

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._ask()
        super().punch(fd, offset, length)

    def ftruncate(self, fd: int, length: int) -> None:
        self._ask()
        super().ftruncate(fd, length)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._ask()
        super().fallocate(fd, offset, length)


def punch(handle: FileHandle) -> None:
    handle.punch(0, SIZE)
    assert handle.pread(SIZE, 0) == bytes(SIZE)


def truncate(handle: FileHandle) -> None:
    handle.truncate(0)
    assert handle.size() == 0


def write(handle: FileHandle) -> None:
    handle.pwrite(b"y" * SIZE, 0)
    assert handle.pread(SIZE, 0) == b"y" * SIZE


CHANGES = pytest.mark.parametrize("change", [punch, truncate, write])


def a_file(folder: Path, calls: Moody) -> FileHandle:
    handle = Volume(folder, calls).create("file")
    handle.pwrite(b"x" * SIZE, 0)
    calls.asked = 0
    return handle


@CHANGES
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_it_is_asked_again_after_the_end_of_its_transaction(
    memory_folder: Path, change: Callable[[FileHandle], None], number: int
) -> None:
    for refused in range(INSIST_TIMES):
        calls = Moody(number=number)
        with a_file(memory_folder, calls) as handle:
            calls.refuses = refused
            change(handle)
            assert calls.flushed == refused
        (memory_folder / "file").unlink()


@CHANGES
def test_it_is_not_asked_for_ever(memory_folder: Path, change: Callable[[FileHandle], None]) -> None:
    calls = Moody()
    with a_file(memory_folder, calls) as handle:
        calls.refuses = INSIST_TIMES
        with pytest.raises(NoSpaceError):
            change(handle)
        assert calls.asked == INSIST_TIMES and calls.flushed == INSIST_TIMES - 1
        assert handle.pread(SIZE, 0) == b"x" * SIZE


@CHANGES
def test_other_volumes_mean_it(memory_folder: Path, change: Callable[[FileHandle], None]) -> None:
    calls = Moody(TMPFS_MAGIC)
    with a_file(memory_folder, calls) as handle:
        calls.refuses = 1
        with pytest.raises(NoSpaceError):
            change(handle)
        assert calls.asked == 1 and calls.flushed == 0


def test_allocating_is_asked_for_once(memory_folder: Path) -> None:
    """It needs room: who refuses it may mean it."""
    calls = Moody()
    with a_file(memory_folder, calls) as handle:
        calls.refuses = 1
        with pytest.raises(NoSpaceError):
            handle.allocate(SIZE, SIZE)
        assert calls.flushed == 0
        assert handle.size() == SIZE
