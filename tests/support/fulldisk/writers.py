"""Many writers in one process, and a reader that checks what it reads: python -m tests.support.fulldisk.writers.

Each writer has files of its own, which it appends to, syncs and removes. What was acknowledged is known at every
instant; in the end it is printed as JSON. Nothing else is promised by a write, and nothing less.
"""

import errno
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repository.units import KIB, MIB
from tests.support.fulldisk.user import random_bytes

PIECE_BYTES: Final = 64 * KIB
FILE_BYTES_MAX: Final = 3 * MIB
FILES_PER_WRITER: Final = 4
ENOUGH: Final = (errno.ENOSPC,)
"""What a write on a full disk may say."""


@dataclass(slots=True)
class Written:
    """A file and what of it was acknowledged. Its owner alone changes it."""

    path: str
    seed: int
    acknowledged: int = 0
    closed: bool = False


def content(seed: int, start: int, end: int) -> bytes:
    """The bytes [start, end) of the file with this seed."""
    pieces = range(start // PIECE_BYTES, -(-end // PIECE_BYTES))
    data = b"".join(random_bytes(seed * 1_000 + number, PIECE_BYTES) for number in pieces)
    skipped = pieces.start * PIECE_BYTES
    return data[start - skipped : end - skipped]


class Crew:
    """The writers of one process."""

    def __init__(self, live: Path, first: int, count: int, directories: int, seed: int) -> None:
        self._live = live
        self._directories = directories
        self._seed = seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.files: dict[int, list[Written]] = {first + number: [] for number in range(count)}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._longest_s = 0.0

    def run(self) -> None:
        """Until a line comes on stdin."""
        threads = [threading.Thread(target=self._guarded, args=(number,)) for number in self.files]
        threads.append(threading.Thread(target=self._read))
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.readline()
        self._stop.set()
        for thread in threads:
            thread.join()
        rows = [[one.path, one.seed, one.acknowledged] for owned in self.files.values() for one in owned]
        said = {"files": rows, "wrong": self.wrong, "counts": self.counts, "longest_ms": int(self._longest_s * 1000)}
        print(json.dumps(said), flush=True)

    def _guarded(self, number: int) -> None:
        try:
            self._write(number, random.Random(self._seed * 1_000 + number))
        except Exception as error:
            self.wrong.append(f"writer {number}: {error!r}")

    def _write(self, number: int, dice: random.Random) -> None:
        mine = self.files[number]
        made = 0
        while not self._stop.is_set():
            if len(mine) >= FILES_PER_WRITER:
                self._remove(mine, dice.randrange(len(mine)))
            made += 1
            name = f"dir-{number % self._directories}/{number:03d}-{made}"
            one = Written(name, self._seed * 1_000_000 + number * 5_000 + made)
            try:
                file = os.open(self._live / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except OSError as error:
                self._full(error, mine, dice)
                continue
            mine.append(one)
            try:
                self._fill(file, one, dice)
            except OSError as error:
                self._full(error, mine, dice)
            finally:
                os.close(file)
                one.closed = True

    def _fill(self, file: int, one: Written, dice: random.Random) -> None:
        wanted = dice.randrange(1, FILE_BYTES_MAX)
        while one.acknowledged < wanted and not self._stop.is_set():
            end = min(wanted, one.acknowledged + dice.choice((4 * KIB, 100 * KIB, 512 * KIB)))
            data = content(one.seed, one.acknowledged, end)
            begun_s = time.monotonic()
            written = os.write(file, data)
            self._longest_s = max(self._longest_s, time.monotonic() - begun_s)
            one.acknowledged += written
            self.counts["writes"] += 1
            if dice.random() < 0.05:
                os.fsync(file)
                self.counts["fsyncs"] += 1

    def _full(self, error: OSError, mine: list[Written], dice: random.Random) -> None:
        if error.errno not in ENOUGH:
            raise error
        self.counts["ENOSPC"] += 1
        if mine and dice.random() < 0.3:
            self._remove(mine, dice.randrange(len(mine)))
        self._stop.wait(dice.uniform(0.05, 0.5))

    def _remove(self, mine: list[Written], index: int) -> None:
        with self._lock:
            one = mine.pop(index)
            os.unlink(self._live / one.path)
        self.counts["removed"] += 1

    def _read(self) -> None:
        """Any range of any file, as far as it was acknowledged when the look began."""
        dice = random.Random(self._seed)
        while not self._stop.wait(0.005):
            with self._lock:
                known = [one for owned in self.files.values() for one in list(owned) if one.acknowledged]
                if not known:
                    continue
                one = dice.choice(known)
                end = one.acknowledged
                file = os.open(self._live / one.path, os.O_RDONLY)
            try:
                start = dice.randrange(end)
                end = min(end, start + 256 * KIB)
                if os.pread(file, end - start, start) != content(one.seed, start, end):
                    self.wrong.append(f"{one.path}: [{start}, {end}) is wrong")
                self.counts["reads"] += 1
            except OSError as error:
                self.wrong.append(f"{one.path}: {error!r}")
            finally:
                os.close(file)


if __name__ == "__main__":
    place, first, count, directories, seed = sys.argv[1:]
    Crew(Path(place), int(first), int(count), int(directories), int(seed)).run()
