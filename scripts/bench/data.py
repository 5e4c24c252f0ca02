"""What is stored: a tree of files, one large file, and changes that can be taken back.

Owner of: the same seed makes the same bytes, so that rounds and machines can be compared.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.measure import BenchError

SEED: Final = 20_261_120
SYNTHETIC_FILES: Final = 10_000
FILES_PER_DIRECTORY: Final = 60
MEDIAN_FILE_BYTES: Final = 4_000
SIGMA: Final = 1.4
"""Of the logarithm of file sizes. With this and the median the mean is about 10 kB, like a source tree's."""
FILE_BYTES_MAX: Final = 8 << 20
DUPLICATES_SHARE: Final = 0.05
BINARY_SHARE: Final = 0.15
VOCABULARY_WORDS: Final = 4096
CHANGED_SHARE: Final = 0.02
RENAMED_SHARE: Final = 0.01
PIECE_BYTES: Final = 4 << 20
EDITS_COUNT: Final = 200
EDIT_BYTES: Final = 64
UNIT_BYTES: Final = 4096
FILES_PER_GROWING_DIRECTORY: Final = 250
LINUX_PACKAGE: Final = "linux-source"
LINUX_TARBALLS: Final = "linux-source-*.tar.xz"


class _Texts:
    """Bytes that compress like source text: words of a fixed vocabulary, the frequent ones first."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        letters = np.frombuffer(b"etaoinshrdlucmfwygpbvk_(){};=*-/", np.uint8)
        self._words = [bytes(rng.choice(letters, rng.integers(2, 12))) for _ in range(VOCABULARY_WORDS)]

    def make(self, size_bytes: int) -> bytes:
        """`size_bytes` of it."""
        count = size_bytes // 4 + 8
        ranks = np.minimum(self._rng.zipf(1.3, count) - 1, VOCABULARY_WORDS - 1)
        breaks = self._rng.random(count) < 0.1
        separators = (b" ", b"\n")
        text = b"".join(
            self._words[rank] + separators[at] for rank, at in zip(ranks.tolist(), breaks.tolist(), strict=True)
        )
        while len(text) < size_bytes:
            text += text
        return text[:size_bytes]


def make_synthetic_tree(root: Path, files: int = SYNTHETIC_FILES, seed: int = SEED) -> None:
    """Fills `root` (new) with `files` files: texts, some binaries, some duplicates of others."""
    rng = np.random.default_rng(seed)
    texts = _Texts(rng)
    sizes = np.minimum(rng.lognormal(np.log(MEDIAN_FILE_BYTES), SIGMA, files), FILE_BYTES_MAX).astype(np.int64)
    kinds = rng.random(files)
    previous = b""
    for index, (size_bytes, kind) in enumerate(zip(sizes.tolist(), kinds.tolist(), strict=True)):
        group = index // FILES_PER_DIRECTORY
        path = root / f"part-{group % 23:02}" / f"unit-{group:04}" / f"file-{index:06}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind < BINARY_SHARE:
            previous = rng.bytes(size_bytes)
        elif kind < 1 - DUPLICATES_SHARE:
            previous = texts.make(size_bytes)
        path.write_bytes(previous)


def make_large_file(path: Path, size_bytes: int, seed: int = SEED) -> None:
    """One file, in pieces of PIECE_BYTES: every other one random, every other one text; no two are equal."""
    pieces = _Pieces(seed + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        written_bytes = 0
        for index in range(-(-size_bytes // PIECE_BYTES)):
            piece = pieces.random() if index % 2 == 0 else pieces.text()
            written_bytes += file.write(piece[: size_bytes - written_bytes])


def make_image(path: Path, size_bytes: int, seed: int = SEED) -> None:
    """A disk image as a virtual machine leaves it: of each five pieces two random, two text, one a hole."""
    pieces = _Pieces(seed + 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for index in range(-(-size_bytes // PIECE_BYTES)):
            if index % 5 != 4:
                file.seek(index * PIECE_BYTES)
                file.write(pieces.random() if index % 2 == 0 else pieces.text())
        file.truncate(size_bytes)


class _Pieces:
    """Pieces of PIECE_BYTES that share nothing with each other."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        # Text is slow to make: one piece, in which other letters stand for each each time. It compresses alike.
        self._text = np.frombuffer(_Texts(self._rng).make(PIECE_BYTES), np.uint8)

    def random(self) -> bytes:
        return self._rng.bytes(PIECE_BYTES)

    def text(self) -> bytes:
        return bytes(self._rng.permutation(256).astype(np.uint8)[self._text])


class Edits:
    """Small changes within the large file, and taken back: EDITS_COUNT places get a few other bytes."""

    def __init__(self, path: Path, seed: int = SEED) -> None:
        rng = np.random.default_rng(seed + 3)
        self._path = path
        end = max(1, path.stat().st_size - EDIT_BYTES)
        self._offsets: list[int] = rng.integers(0, end, EDITS_COUNT).tolist()
        self._undo: list[tuple[int, bytes]] = []

    def apply(self) -> None:
        with self._path.open("r+b") as file:
            for offset in self._offsets:
                file.seek(offset)
                before = file.read(EDIT_BYTES)
                self._undo.append((offset, before))
                file.seek(offset)
                file.write(bytes(byte ^ 0x55 for byte in before))

    def revert(self) -> None:
        _put_back(self._path, self._undo)


def _put_back(path: Path, undo: list[tuple[int, bytes]]) -> None:
    """What stood at the offsets before, the last change first; nothing is left to undo then."""
    with path.open("r+b") as file:
        while undo:
            offset, before = undo.pop()
            file.seek(offset)
            file.write(before)


class ImageWrites:
    """Writes of UNIT_BYTES random bytes at random aligned places of an image; and taken back."""

    def __init__(self, path: Path, count: int, seed: int = SEED) -> None:
        rng = np.random.default_rng(seed + 5)
        self.count = count
        self._path = path
        units = max(1, path.stat().st_size // UNIT_BYTES)
        self._offsets: list[int] = (rng.integers(0, units, count) * UNIT_BYTES).tolist()
        self._content = rng.bytes(count * UNIT_BYTES)
        self._undo: list[tuple[int, bytes]] = []

    def write_to(self, path: Path) -> None:
        """The writes to any copy of the image, each a call of its own."""
        descriptor = os.open(path, os.O_WRONLY)
        try:
            for index, offset in enumerate(self._offsets):
                os.pwrite(descriptor, self._content[index * UNIT_BYTES : (index + 1) * UNIT_BYTES], offset)
        finally:
            os.close(descriptor)

    def apply(self) -> None:
        with self._path.open("rb") as file:
            for offset in self._offsets:
                file.seek(offset)
                self._undo.append((offset, file.read(UNIT_BYTES)))
        self.write_to(self._path)

    def revert(self) -> None:
        _put_back(self._path, self._undo)


def add_small_files(root: Path, first: int, end: int, seed: int = SEED) -> None:
    """The files `first` to `end` - 1 of a growing tree: each has a few bytes that no other has."""
    for index in range(first, end):
        directory = root / f"{index // FILES_PER_GROWING_DIRECTORY:06}"
        if index % FILES_PER_GROWING_DIRECTORY == 0 or index == first:
            directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / f"{index:08}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, b"%d of %d\n" % (index, seed) * 4)
        os.close(descriptor)


def unpack_linux(cache: Path) -> Path:
    """The tree of Debian's kernel source below `cache`; installed and unpacked where that was not done before."""
    target = cache / "linux"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    tarballs = sorted(Path("/usr/src").glob(LINUX_TARBALLS))
    if not tarballs:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise BenchError(f"install {LINUX_PACKAGE} (Debian's kernel source), or name another --tree")
        subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", LINUX_PACKAGE], check=True)
        tarballs = sorted(Path("/usr/src").glob(LINUX_TARBALLS))
    unpacked = cache / "linux.partial"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    subprocess.run(["tar", "xf", tarballs[-1], "-C", unpacked, "--strip-components=1"], check=True)
    unpacked.rename(target)
    return target


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a tree is."""

    files: int
    content_bytes: int


def regular_files(root: Path) -> Iterator[Path]:
    """Every regular file below `root`, in one order on every machine."""
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path


def measure_tree(root: Path) -> Extent:
    """Counts `root`, and so brings its inodes into the cache."""
    sizes = [path.stat().st_size for path in regular_files(root)]
    return Extent(len(sizes), sum(sizes))


class Changes:
    """Changes made to a tree in place, and taken back: the peers recognise files by path and times.

    2 % of the files get a line in the middle, 1 % another name; ten more are for the commit of a small change.
    """

    SMALL_COUNT: Final = 10

    def __init__(self, root: Path, seed: int = SEED) -> None:
        files = list(regular_files(root))
        rng = np.random.default_rng(seed + 2)
        order = [files[at] for at in rng.permutation(len(files)).tolist()]
        changed = max(1, int(len(files) * CHANGED_SHARE))
        renamed = max(1, int(len(files) * RENAMED_SHARE))
        if len(files) < changed + renamed + self.SMALL_COUNT:
            raise BenchError(f"the tree has {len(files)} files only; at least a hundred are needed")
        self._changed = order[:changed]
        self._renamed = order[changed : changed + renamed]
        self.small = order[changed + renamed : changed + renamed + self.SMALL_COUNT]
        self._undo: list[tuple[Path, bytes]] = []
        self._moved: list[Path] = []

    def apply(self) -> None:
        """Rewrites and renames."""
        for index, path in enumerate(self._changed):
            self._rewrite(path, f"\n/* changed: {index} */\n")
        for path in self._renamed:
            path.rename(path.with_name(path.name + ".renamed"))
            self._moved.append(path)

    def apply_small(self) -> None:
        """Rewrites ten files."""
        for index, path in enumerate(self.small):
            self._rewrite(path, f"\n/* changed a little: {index} */\n")

    def revert(self) -> None:
        """Every byte and name as before; the times are new."""
        for path, before in reversed(self._undo):
            path.write_bytes(before)
        for path in self._moved:
            path.with_name(path.name + ".renamed").rename(path)
        self._undo.clear()
        self._moved.clear()

    def _rewrite(self, path: Path, line: str) -> None:
        before = path.read_bytes()
        middle = len(before) // 2
        self._undo.append((path, before))
        path.write_bytes(before[:middle] + line.encode() + before[middle:])
