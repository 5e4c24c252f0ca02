"""A disk of a few dozen blocks that needs no root: system calls that answer ENOSPC beyond a budget, and their probe.

Every block that the calls allocate is counted, file by file; truncating, punching and unlinking give back. What else
takes room (`fill`, a thief) is a number.
"""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from repository.format import config as config_format
from repository.format.config import ChunkerParameters, Config, decode_config
from repository.format.record import Buffer
from repository.repo import Repository
from repository.storage.calls import Calls
from repository.units import KIB
from tests.support.repositories import SetClock, small_catalog

BLOCK: Final = 4 * KIB


class TinyDisk(Calls):
    """`capacity_bytes` in blocks of 4 KiB. Thread safe. Only paths under `root` are counted."""

    def __init__(self, root: Path, capacity_bytes: int = 1 << 40) -> None:
        self.root = str(root)
        self.capacity_blocks = capacity_bytes // BLOCK
        self.inodes_left = 1 << 20
        self.others_blocks = 0
        """Taken by files of other programs."""
        self.thief = False
        """Somebody takes every block in the instant in which it comes free."""
        self.refused = 0
        """How often there was no room."""
        self.asked = 0
        """Calls that ask or change the volume's room: statvfs, stat, fallocate, ftruncate."""
        self.before: dict[str, Callable[[], None]] = {}
        """What to run just before a call of a name (fallocate, ftruncate, punch, unlink)."""
        self.created: list[str] = []
        self.renamed: list[str] = []
        self._blocks: dict[str, set[int]] = {}
        self._paths: dict[int, str] = {}
        self._lock = threading.RLock()

    # --- what a test says and asks -----------------------------------------------------------------------------

    def adopt(self) -> None:
        """Count what lies under the root already."""
        with self._lock:
            for file in Path(self.root).rglob("*"):
                if file.is_file():
                    self._blocks[str(file)] = set(range(-(-file.stat().st_size // BLOCK)))

    def used_bytes(self) -> int:
        """Blocks of the repository."""
        with self._lock:
            return sum(map(len, self._blocks.values())) * BLOCK

    def free_bytes(self) -> int:
        with self._lock:
            return self.capacity_blocks * BLOCK - self.used_bytes() - self.others_blocks * BLOCK

    def leave(self, free_bytes: int) -> None:
        """Other programs take all but so much, or give back until so much is free."""
        with self._lock:
            self.others_blocks = self.capacity_blocks - self.used_bytes() // BLOCK - free_bytes // BLOCK

    # --- calls -------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        with self._lock:
            if flags & os.O_CREAT and path.startswith(self.root) and not os.path.exists(path):
                if self.inodes_left <= 0:
                    self._refuse()
                self.inodes_left -= 1
                self.created.append(path)
            fd = super().open(path, flags, mode)
            self._paths[fd] = path
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._paths.pop(fd, None)
            super().close(fd)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        self._meet("fallocate")
        with self._lock:
            self._take(fd, offset, length)
            super().fallocate(fd, offset, length)

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        with self._lock:
            self._take(fd, offset, len(buffer))
            return super().pwrite(fd, buffer, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        with self._lock:
            self._take(fd, offset, sum(map(len, buffers)))
            return super().pwritev(fd, buffers, offset)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._meet("punch")
        with self._lock:
            super().punch(fd, offset, length)
            whole = range(-(-offset // BLOCK), (offset + length) // BLOCK)
            self._give(self._paths[fd], self._of(fd).intersection(whole))

    def ftruncate(self, fd: int, length: int) -> None:
        self._meet("ftruncate")
        with self._lock:
            super().ftruncate(fd, length)
            end = -(-length // BLOCK)
            self._give(self._paths[fd], {block for block in self._of(fd) if block >= end})

    def unlink(self, path: str) -> None:
        self._meet("unlink")
        with self._lock:
            super().unlink(path)
            self._give(path, self._blocks.get(path, set()))
            self._blocks.pop(path, None)
            self.inodes_left += 1

    def replace(self, source: str, target: str) -> None:
        with self._lock:
            super().replace(source, target)
            self.renamed.append(source)
            self._give(target, self._blocks.get(target, set()))
            self._blocks[target] = self._blocks.pop(source, set())

    def stat(self, path: str) -> os.stat_result:
        self._meet("stat")
        return super().stat(path)

    def statvfs(self, path: str) -> os.statvfs_result:
        self._meet("statvfs")
        free = max(0, self.free_bytes() // BLOCK)
        total, inodes = self.capacity_blocks, max(0, self.inodes_left)
        return os.statvfs_result((BLOCK, BLOCK, total, free, free, 1 << 20, inodes, inodes, 0, 255))

    def _meet(self, name: str) -> None:
        self.asked += 1
        if name in self.before:
            self.before[name]()

    def _of(self, fd: int) -> set[int]:
        return self._blocks.setdefault(self._paths[fd], set())

    def _take(self, fd: int, offset: int, length: int) -> None:
        if not length or not self._paths[fd].startswith(self.root):
            return
        more = set(range(offset // BLOCK, -(-(offset + length) // BLOCK))) - self._of(fd)
        if len(more) * BLOCK > self.free_bytes():
            self._refuse()
        self._of(fd).update(more)

    def _give(self, path: str, blocks: set[int]) -> None:
        self._blocks.setdefault(path, set()).difference_update(blocks)
        if self.thief:
            self.others_blocks += len(blocks)

    def _refuse(self) -> None:
        self.refused += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TinyProbe:
    """What a `TinyDisk` says about its room."""

    def __init__(self, disk: TinyDisk) -> None:
        self._disk = disk

    def capacity_bytes(self) -> int:
        return self._disk.capacity_blocks * BLOCK

    def available_bytes(self) -> int:
        return max(0, self._disk.free_bytes())

    def growth_bytes(self) -> int:
        return self.available_bytes()

    def allocatable_bytes(self) -> int:
        return self.available_bytes()

    def capacity_inodes(self) -> int:
        return 1 << 20

    def available_inodes(self) -> int:
        return max(0, self._disk.inodes_left)


TINY: Final = ChunkerParameters(KIB, 2 * KIB, 4 * KIB)
SEGMENT: Final = 8 * KIB
PACK: Final = 32 * KIB
RESERVE: Final = 16 * KIB


def allow_tiny_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs below 4 MiB are of no use to anybody but a test, which wants many of them."""
    monkeypatch.setattr(config_format, "PACK_BYTES_MIN", PACK)
    monkeypatch.setattr(config_format, "SEGMENT_BYTES_MIN", SEGMENT)


def make_tiny(path: Path, clock: SetClock, *, reserve_bytes: int = RESERVE) -> Config:
    """A repository of packs of 32 KiB in segments of 8 KiB, chunks of 1 to 4 KiB and a reserve of 16 KiB."""
    with small_catalog():
        made = Repository.init(path, reserve_bytes=reserve_bytes, headspace_bytes=0, clock=clock)
    config = replace(made, chunker=TINY, pack_bytes=PACK, segment_bytes=SEGMENT)
    (path / "repository.json").write_bytes(config.encode())
    for spare in (path / "packs").rglob("*.pack"):
        spare.unlink()  # as large as a pack of the sizes before
    assert decode_config((path / "repository.json").read_bytes()) == config
    return config


def tiny_disk(path: Path, room_bytes: int) -> TinyDisk:
    """The disk of the repository at `path`, with so much room beside what it takes now."""
    disk = TinyDisk(path)
    disk.adopt()
    disk.capacity_blocks = (disk.used_bytes() + room_bytes) // BLOCK
    return disk


def open_tiny(path: Path, disk: TinyDisk, clock: SetClock) -> Repository:
    """Open for writing on that disk."""
    return Repository.open(path, writable=True, clock=clock, calls=disk, probe=TinyProbe(disk))
