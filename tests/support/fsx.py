"""Random operations on one file, each compared with a plain bytearray; a program of its own, stdlib only.

    fsx.py FILE SHADOW SEED OPERATIONS

SHADOW (a file elsewhere) is what FILE must hold at the beginning, and is rewritten at the end, when FILE has been
synced. So a test can do what it likes in between: remount, kill, take snapshots. Prints the last operations and exits
with 1 where FILE differs. The idea is that of `fsx` (Apple's, in xfstests); no line is.
"""

import hashlib
import mmap
import os
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

SIZE_MAX: Final = 3 * 1024 * 1024
REMEMBERED: Final = 40
"""Operations printed when something is wrong."""


class Mismatch(Exception):
    """The file is not what it should be."""


class Run:
    """One file and its shadow."""

    def __init__(self, path: str, shadow: bytearray, seed: int) -> None:
        self.path = path
        self.shadow = shadow
        self.dice = random.Random(seed)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.history: deque[str] = deque(maxlen=REMEMBERED)
        self.operations: list[Callable[[], str]] = [
            *[self.read] * 5,
            *[self.write] * 8,
            *[self.append] * 2,
            *[self.truncate] * 3,
            *[self.mapped_read] * 2,
            *[self.mapped_write] * 3,
            *[self.reopen] * 2,
            self.zeros,
            self.copy,
            self.sync,
            self.look,
        ]

    def step(self) -> None:
        """One operation."""
        operation = self.dice.choice(self.operations)
        self.history.append(operation.__name__)
        self.history[-1] = f"{operation.__name__} {operation()}"

    # --- choosing -----------------------------------------------------------------------------------------------

    def length(self) -> int:
        """Mostly small, sometimes several chunks."""
        return self.dice.randrange(1, self.dice.choice((10, 5000, 5000, 70_000, 70_000, 800_000)))

    def offset(self) -> int:
        """Anywhere in the file or a little beyond, often at a round place."""
        at = self.dice.randrange(min(SIZE_MAX, len(self.shadow) + 100_000) + 1)
        return at if self.dice.random() < 0.6 else at // 4096 * 4096

    def content(self, length: int) -> bytes:
        """Bytes that say when they were made; sometimes ones seen before, so that chunks are shared."""
        kind = self.dice.random()
        if kind < 0.1:
            return bytes([self.dice.randrange(256)]) * length
        if kind < 0.2 and len(self.shadow) > length:
            start = self.dice.randrange(len(self.shadow) - length)
            return bytes(self.shadow[start : start + length])
        return self.dice.randbytes(length)

    # --- operations ---------------------------------------------------------------------------------------------

    def expect(self, found: bytes, start: int, end: int) -> None:
        """Raises Mismatch unless `found` is what the shadow holds."""
        wanted = bytes(self.shadow[start:end])
        if found == wanted:
            return
        first = next(
            (at for at, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]),
            min(len(found), len(wanted)),
        )
        raise Mismatch(
            f"at {start + first} of [{start}, {end}): {found[first : first + 8]!r}, not {wanted[first : first + 8]!r}; "
            f"{len(found)} bytes, not {len(wanted)}"
        )

    def store(self, offset: int, part: bytes) -> None:
        """What a write does to the shadow."""
        if len(self.shadow) < offset:
            self.shadow.extend(bytes(offset - len(self.shadow)))
        self.shadow[offset : offset + len(part)] = part

    def read(self) -> str:
        start, length = self.offset(), self.length()
        self.expect(os.pread(self.file, length, start), start, start + length)
        return f"[{start}, {start + length})"

    def write(self) -> str:
        start = self.offset()
        part = self.content(min(self.length(), SIZE_MAX - start))
        self.put(start, part)
        return f"[{start}, {start + len(part)})"

    def put(self, start: int, part: bytes) -> None:
        if part and os.pwrite(self.file, part, start) != len(part):
            raise Mismatch("short write")
        if part:
            self.store(start, part)

    def append(self) -> str:
        part = self.content(min(self.length(), SIZE_MAX - len(self.shadow)))
        appending = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(appending, part)
        os.close(appending)
        self.shadow += part
        return f"{len(part)}"

    def zeros(self) -> str:
        start = self.offset()
        length = min(self.dice.randrange(1, 600_000), SIZE_MAX - start)
        self.put(start, bytes(length))
        return f"[{start}, {start + length})"

    def truncate(self) -> str:
        size = self.offset() if self.dice.random() < 0.9 else 0
        if self.dice.random() < 0.5:
            os.ftruncate(self.file, size)
        else:
            os.truncate(self.path, size)
        del self.shadow[size:]
        self.shadow.extend(bytes(size - len(self.shadow)))
        return f"{size}"

    def mapped_read(self) -> str:
        if not self.shadow:
            return "nothing"
        start = self.dice.randrange(len(self.shadow))
        end = min(start + self.length(), len(self.shadow))
        with mmap.mmap(self.file, len(self.shadow), prot=mmap.PROT_READ) as mapping:
            self.expect(mapping[start:end], start, end)
        return f"[{start}, {end})"

    def mapped_write(self) -> str:
        if not self.shadow:
            return "nothing"
        start = self.dice.randrange(len(self.shadow))
        part = self.content(min(self.length(), len(self.shadow) - start))
        with mmap.mmap(self.file, len(self.shadow)) as mapping:
            mapping[start : start + len(part)] = part
            if self.dice.random() < 0.5:
                mapping.flush()
        self.store(start, part)
        return f"[{start}, {start + len(part)})"

    def reopen(self) -> str:
        os.close(self.file)
        self.file = os.open(self.path, os.O_RDWR)
        return ""

    def copy(self) -> str:
        """copy_file_range within the file; the kernel refuses ranges that overlap."""
        length = min(self.length(), len(self.shadow) // 2)
        if not length:
            return "nothing"
        start = self.dice.randrange(len(self.shadow) - length)
        target = len(self.shadow)
        if target + length > SIZE_MAX:
            return "nothing"
        part = bytes(self.shadow[start : start + length])
        done = 0
        while done < length:
            done += os.copy_file_range(self.file, self.file, length - done, start + done, target + done)
        self.store(target, part)
        return f"[{start}, {start + length}) to {target}"

    def sync(self) -> str:
        os.fsync(self.file)
        return ""

    def look(self) -> str:
        size = os.stat(self.path).st_size
        if size != len(self.shadow):
            raise Mismatch(f"stat says {size} bytes, not {len(self.shadow)}")
        return f"{size}"

    def all(self) -> None:
        """The whole file, by another handle."""
        self.look()
        with open(self.path, "rb") as file:
            self.expect(file.read(), 0, len(self.shadow))


def main(path: str, shadow: Path, seed: int, operations: int) -> int:
    """Runs; 0 where FILE was always as it should be."""
    run = Run(path, bytearray(shadow.read_bytes() if shadow.exists() else b""), seed)
    try:
        run.all()
        for number in range(operations):
            run.step()
            if number % 50 == 49:
                run.all()
        run.all()
        os.fsync(run.file)
        os.close(run.file)
    except Mismatch as difference:
        print(f"seed {seed}: {difference}\nlast operations:", *run.history, sep="\n  ")
        return 1
    shadow.write_bytes(run.shadow)
    print(hashlib.sha256(run.shadow).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
