"""Other programs on the disk: one fills it, one takes whatever comes free, one cannot make up its mind."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from repository.units import KIB, MIB
from tests.support.fulldisk.disks import THROUGH_FUSE, Disk

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PIECES: Final = (64 * MIB, 4 * MIB, 256 * KIB, 16 * KIB, 4 * KIB, 512)
NAMES_PER_DIRECTORY: Final = 2_000
ROUNDS_MAX: Final = 40

GROW: Final = """
import errno, os
FULL = (errno.ENOSPC, errno.EDQUOT)

def grow(file, begun, nbytes, writes):
    # Adds nbytes of room at the end of a file, or raises OSError.
    if writes:
        end = begun + nbytes
        while begun < end:
            begun += os.pwrite(file, bytes(min(1 << 20, end - begun)), begun)
    else:
        os.posix_fallocate(file, begun, nbytes)
"""

THIEF: Final = (
    GROW
    + """
import sys, time, threading
path, writes, smallest = sys.argv[1], sys.argv[2] == "writes", int(sys.argv[3])
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND * 0, 0o600)
stolen, stop = 0, threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
print("ready", flush=True)
while not stop.is_set():
    took = False
    piece = 16 << 20
    while piece >= smallest and not stop.is_set():
        begun = os.fstat(file).st_size
        try:
            grow(file, begun, piece, writes)
            stolen += piece
            took = True
        except OSError as error:
            if error.errno not in FULL:
                raise
            if os.fstat(file).st_size > begun and not writes:
                os.ftruncate(file, begun)
            piece //= 4
    if not took:
        time.sleep(0.0005)
print(os.fstat(file).st_blocks * 512, flush=True)
"""
)

RANDOM: Final = (
    GROW
    + """
import random, sys, time, threading
path, writes, most, seed = sys.argv[1], sys.argv[2] == "writes", int(sys.argv[3]), int(sys.argv[4])
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
dice, stop, turns, full = random.Random(seed), threading.Event(), 0, 0
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
print("ready", flush=True)
while not stop.wait(dice.uniform(0.01, 0.5)):
    turns += 1
    now = os.fstat(file).st_size
    wanted = dice.choice((0, most, dice.randrange(most), dice.randrange(most)))
    try:
        if wanted > now:
            grow(file, now, wanted - now, writes)
        else:
            os.ftruncate(file, wanted)
    except OSError as error:
        if error.errno not in FULL:
            raise
        full += 1
os.ftruncate(file, 0)
print(turns, full, flush=True)
"""
)


class Filler:
    """A file beside the repository that takes room and gives it back; root's share too."""

    def __init__(self, disk: Disk, name: str = "other-program") -> None:
        self._disk = disk
        self._folder = disk.path / name
        self._folder.mkdir()
        self._file: Final = os.open(self._folder / "large", os.O_RDWR | os.O_CREAT, 0o600)
        self._names = 0
        self._closed = False

    def close(self) -> None:
        """Before the disk is unmounted. More than once does no harm."""
        if not self._closed:
            os.close(self._file)
        self._closed = True

    def leave(self, nbytes: int) -> None:
        """Takes so much that about `nbytes` are available, or gives so much back."""
        for _ in range(ROUNDS_MAX):
            excess = self._disk.available_bytes() - nbytes
            if abs(excess) < 64 * KIB:
                return
            self._resize(excess)
        assert self._disk.available_bytes() >= nbytes - 2 * MIB, "the filler took too much"

    def leave_at_most(self, nbytes: int) -> None:
        """Takes until no more than about `nbytes` are available; where garbage has the room already, nothing."""
        for _ in range(ROUNDS_MAX):
            excess = self._disk.available_bytes() - nbytes
            if excess < 64 * KIB:
                return
            self._resize(excess)
        assert self._disk.available_bytes() <= nbytes + 2 * MIB, "the filler took too little"

    def give(self, nbytes: int) -> None:
        """Gives so many bytes back (all it has, at most)."""
        self._resize(-nbytes)

    def _resize(self, by: int) -> None:
        now = os.fstat(self._file).st_size
        if by < 0:
            os.ftruncate(self._file, max(0, now + by))
            os.fsync(self._file)
        else:
            self._take(by)

    def _take(self, nbytes: int) -> None:
        left = nbytes
        for piece in PIECES:
            while left >= piece:
                try:
                    grow(self._file, os.fstat(self._file).st_size, piece, self._disk)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    break
                left -= piece

    def fill(self) -> None:
        """To the last inode, then to the last byte, root's share too; asserts that not even a name fits any more."""
        if self._disk.free_inodes() is not None:
            self._take_names()
        for _ in range(ROUNDS_MAX):
            before = os.fstat(self._file).st_blocks
            self._take(1 << 62)
            _sync(self._disk)
            small = self._take_small()
            _sync(self._disk)
            if os.fstat(self._file).st_blocks == before and not small:
                break
        self._assert_full()

    def _take_names(self) -> None:
        """Empty files until there is no inode left; where a directory cannot grow any more, in another."""
        while True:
            folder = self._folder / f"names-{self._names}"
            try:
                folder.mkdir()
                for number in range(NAMES_PER_DIRECTORY):
                    (folder / str(number)).touch()
            except OSError as error:
                assert error.errno in FULL, error
                return
            self._names += 1

    def _take_small(self) -> int:
        """Small files, for room that the large one cannot get; how many could be made."""
        made = 0
        try:
            while made < NAMES_PER_DIRECTORY:
                file = os.open(self._folder / f"small-{self._names}-{made}", os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    os.write(file, bytes(4 * KIB))
                    os.fsync(file)
                    made += 1
                finally:
                    os.close(file)
        except OSError as error:
            assert error.errno in FULL, error
        self._names += 1
        return made

    def _assert_full(self) -> None:
        probe = self._folder / "one more byte"
        try:
            with probe.open("wb", buffering=0) as file:
                for _ in range(1024):
                    file.write(bytes(4 * KIB))
                os.fsync(file.fileno())
        except OSError as error:
            assert error.errno in FULL, error
            probe.unlink(missing_ok=True)
            return
        raise AssertionError(f"{self._disk.available_bytes()} bytes are left on a full {self._disk.kind}")

    def remove(self) -> None:
        """Everything it took comes back; it is of no use any more."""
        self.close()  # what is open keeps a name in its directory on disks served by FUSE
        subprocess.run(["rm", "-rf", self._folder], check=True)


def grow(file: int, begun: int, nbytes: int, disk: Disk) -> None:
    """Adds `nbytes` of room at `begun`, the end of a file. Raises OSError; then a part may have been added."""
    if disk.kind not in THROUGH_FUSE:
        try:
            os.posix_fallocate(file, begun, nbytes)
        except OSError:
            os.ftruncate(file, begun)
            raise
        return
    end = begun + nbytes
    while begun < end:
        begun += os.pwrite(file, bytes(min(MIB, end - begun)), begun)


def _sync(disk: Disk) -> None:
    subprocess.run(["sync", "-f", disk.path], check=True)


class Program:
    """A program that goes on until it is told to stop."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def stop(self) -> list[int]:
        """What it says in the end."""
        output, _ = self._process.communicate("stop\n", timeout=60)
        assert self._process.returncode == 0, f"a filler ended with {self._process.returncode}"
        return [int(word) for word in output.split()]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def running(self) -> bool:
        return self._process.poll() is None


@contextmanager
def thief(disk: Disk) -> Iterator[Program]:
    """Takes every byte that becomes free, within a millisecond, until it is stopped."""
    yield from _program(THIEF, disk.path / "stolen", _way(disk), "4096")
    (disk.path / "stolen").unlink()


@contextmanager
def fickle(disk: Disk, most_bytes: int, seed: int) -> Iterator[Program]:
    """Takes up to `most_bytes` and gives them back, at random, until it is stopped."""
    yield from _program(RANDOM, disk.path / "fickle", _way(disk), str(most_bytes), str(seed))
    (disk.path / "fickle").unlink()


def _way(disk: Disk) -> str:
    return "writes" if disk.kind in THROUGH_FUSE else "allocates"


def _program(code: str, path: Path, *words: str) -> Iterator[Program]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-u", "-c", code, path, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    program = Program(process)
    try:
        yield program
    finally:
        if program.running:
            program.kill()
