"""Large files: what is asked of the kernel beside reading and writing, counted; and that none of it is needed."""

import errno
import os
from pathlib import Path

import pytest

from repository.errors import NoSpaceError
from repository.restore import files as writing
from repository.restore import restore as walking
from repository.restore.stretches import ALLOCATED_BYTES_MIN, EXT4_MAGIC, Piece, StretchWriter
from repository.storage.calls import Calls
from repository.storage.handle import AHEAD_BYTES
from repository.units import KIB, MIB
from tests.support.repositories import SetClock, make, open_for_writing
from tests.support.sources import store
from tests.unit.restore.test_restore import put_back

WINDOW = 1 * MIB


class Hinted(Calls):
    """Notes hints and allocations. The volume is what it says it is."""

    def __init__(self, magic: int = EXT4_MAGIC, error: int = 0) -> None:
        self.magic = magic
        self.error = error
        self.allocated: list[tuple[int, int]] = []
        self.begun: list[tuple[int, int]] = []

    def filesystem_type(self, fd: int) -> int:
        return self.magic

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self.allocated.append((offset, length))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        self.begun.append((offset, length))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))


DATA = memoryview(os.urandom(2 * ALLOCATED_BYTES_MIN))
HALF = ALLOCATED_BYTES_MIN // 2 + 7
PIECES = [
    Piece(3, DATA[:HALF]),
    Piece(3 + HALF, DATA[HALF : 2 * HALF]),  # a hole behind it
    Piece(4 * MIB + 1, DATA[:10]),
    Piece(4 * MIB + 11, DATA[10:20]),  # and another
    Piece(6 * MIB, DATA[: ALLOCATED_BYTES_MIN - 1]),
]
LAST = 6 * MIB + ALLOCATED_BYTES_MIN - 1


def written(path: Path, calls: Calls) -> bytes:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        StretchWriter(calls).write(fd, PIECES)
        return os.pread(fd, LAST + 1, 0)
    finally:
        os.close(fd)


def expected() -> bytes:
    content = bytearray(LAST)
    for offset, data in PIECES:
        content[offset : offset + len(data)] = data
    return bytes(content)


def test_room_is_made_once_for_what_lies_together_and_is_long(tmp_path: Path) -> None:
    calls = Hinted()
    assert written(tmp_path / "file", calls) == expected()
    assert calls.allocated == [(3, 2 * HALF)]
    assert calls.begun == [(3, LAST - 3)]


def test_no_room_is_made_elsewhere(tmp_path: Path) -> None:
    calls = Hinted(magic=0x9123683E)
    assert written(tmp_path / "file", calls) == expected()
    assert calls.allocated == []
    assert len(calls.begun) == 1


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOSPC, errno.EPERM])
def test_a_volume_that_refuses_is_written_all_the_same(tmp_path: Path, error: int) -> None:
    calls = Hinted(error=error)
    assert written(tmp_path / "file", calls) == expected()
    assert len(calls.allocated) == len(calls.begun) == 1


def test_a_full_volume_is_told_by_the_writing() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(NoSpaceError):
            StretchWriter(Hinted(error=errno.ENOSPC)).write(fd, PIECES)
    finally:
        os.close(fd)


class Ahead(Calls):
    """Notes what of packs was asked for ahead, and what was read without."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.on = False
        self.asked: list[tuple[int, int, int]] = []
        self.unasked: list[tuple[int, int, int]] = []

    def will_need(self, fd: int, offset: int, length: int) -> None:
        self.asked.append((fd, offset, offset + length))
        if self.refuses:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if self.on and length >= 64 * KIB and not self._covered(fd, offset, offset + length):
            self.unasked.append((fd, offset, length))
        return super().pread(fd, length, offset)

    def _covered(self, fd: int, start: int, end: int) -> bool:
        for _, first, behind in sorted(one for one in self.asked if one[0] == fd):
            if first <= start < behind:
                start = behind
        return start >= end


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "WINDOW_BYTES", WINDOW)
    monkeypatch.setattr(walking, "WINDOW_BYTES", WINDOW)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("refuses", [False, True])
def test_what_a_large_file_needs_is_asked_for_ahead(
    tmp_path: Path, files: Path, clock: SetClock, refuses: bool
) -> None:
    content = os.urandom(12 * MIB)
    (files / "large").write_bytes(content)
    make(tmp_path / "repo", clock)
    with open_for_writing(tmp_path / "repo", clock) as opened:
        created, _ = store(opened, files)
    calls = Ahead(refuses=refuses)
    with open_for_writing(tmp_path / "repo", clock, calls) as repo:
        calls.on = True
        _, told = put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    assert told.problems == []
    assert (tmp_path / "out" / "large").read_bytes() == content
    assert calls.asked
    if refuses:
        return
    assert calls.unasked == []
    nbytes = sum(end - start for _, start, end in calls.asked)
    assert len(content) <= nbytes < len(content) + MIB, "nothing is asked for twice"
    assert max(end - start for _, start, end in calls.asked) == AHEAD_BYTES
