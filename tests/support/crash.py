"""What a power cut may leave of recorded operations, by a stricter model than any file system here.

Of a file's bytes written since its last sync, each sector of 512 bytes may show any moment in between (or, in another
style, any subset of the writes may be there, each torn at sectors); sizes, allocations and holes lag or lead on their
own. A name that was made, renamed or removed is certain only once its own directory was synced; until then each such
change may be there or not, except that changes of one name keep their order. Directories themselves are durable: a
repository makes all of them at init.
"""

import copy
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.calls import Operation

SECTOR_BYTES: Final = 512
PAGE_BYTES: Final = 4096
STYLES: Final = ("none", "all", "subset", "sectors", "mixed", "mixed")


@dataclass(slots=True, eq=False)
class _File:
    """One inode: what of it is durable, and its changes since the last sync."""

    content: bytearray = field(default_factory=bytearray)
    mtime_ns: int = 0
    pending: list[Operation] = field(default_factory=list)

    def sync(self) -> None:
        for operation in self.pending:
            _apply(self.content, operation)
            self.mtime_ns = operation.mtime_ns
        self.pending.clear()


def _extend(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))


def _sectors(operation: Operation) -> Iterable[tuple[int, int]]:
    """The parts [start, end) of a change that lie in one sector each; offsets in the file."""
    start = operation.offset
    end = start + operation.length
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield start, stop
        start = stop


def _put(content: bytearray, operation: Operation, start: int, stop: int) -> None:
    _extend(content, stop)
    content[start:stop] = operation.content[start - operation.offset : stop - operation.offset]


def _apply(content: bytearray, operation: Operation) -> None:
    """One change, as it was meant."""
    match operation.name:
        case "pwrite" | "pwritev":
            _put(content, operation, operation.offset, operation.offset + len(operation.content))
        case "fallocate":
            _extend(content, operation.offset + operation.length)
        case "ftruncate":
            del content[operation.length :]
            _extend(content, operation.length)
        case "punch":
            _zero(content, operation.offset, operation.offset + operation.length)
        case _:
            raise AssertionError(operation)


def _zero(content: bytearray, start: int, stop: int) -> None:
    stop = min(stop, len(content))
    if start < stop:
        content[start:stop] = bytes(stop - start)


def _punched(operation: Operation) -> tuple[int, int]:
    """The whole pages of a punch, as one range; the rest of it is only written over with zeros."""
    first = -(-operation.offset // PAGE_BYTES) * PAGE_BYTES
    return first, max(first, (operation.offset + operation.length) // PAGE_BYTES * PAGE_BYTES)


def _subset(file: _File, rng: random.Random) -> bytearray:
    """Each change kept or dropped, each kept write torn or whole."""
    content = bytearray(file.content)
    for operation in file.pending:
        if rng.random() < 0.4:
            continue
        if operation.content and rng.random() < 0.5:
            for start, stop in _sectors(operation):
                if rng.random() < 0.7:
                    _put(content, operation, start, stop)
        else:
            _apply(content, operation)
    return content


def _by_sectors(file: _File, rng: random.Random) -> bytearray:
    """Each sector as of some moment since the last sync, and so the size, the allocation and the holes."""
    count = len(file.pending)
    moments: dict[int, int] = {}
    shape_moment, size_moment = rng.randint(0, count), rng.randint(0, count)
    content = bytearray(file.content)
    size = len(content)
    for index, operation in enumerate(file.pending):
        if operation.content:
            for start, stop in _sectors(operation):
                if index < moments.setdefault(start // SECTOR_BYTES, rng.randint(0, count)):
                    _put(content, operation, start, stop)
        elif operation.name == "punch":
            first, last = _punched(operation)
            for start, stop in _sectors(operation):
                in_hole = first <= start and stop <= last
                unit = -1 - start // PAGE_BYTES if in_hole else start // SECTOR_BYTES
                if index < moments.setdefault(unit, rng.randint(0, count)):
                    _zero(content, start, stop)
        elif index < shape_moment:
            _apply(content, operation)
        if index < size_moment:
            size = _size_after(operation, size)
    if rng.random() < 0.5:
        del content[size:]
        _extend(content, size)
    return content


def _size_after(operation: Operation, size: int) -> int:
    match operation.name:
        case "ftruncate":
            return operation.length
        case "punch":
            return size
        case _:
            return max(size, operation.offset + max(operation.length, len(operation.content)))


def _crashed(file: _File, style: str, rng: random.Random) -> tuple[bytearray, int]:
    """What a file may hold after the power cut, and its mtime."""
    if not file.pending or style == "none":
        return file.content, file.mtime_ns
    last_ns = file.pending[-1].mtime_ns
    if style == "mixed":
        style = rng.choice(("none", "all", "subset", "sectors"))
    match style:
        case "none":
            return file.content, rng.choice((file.mtime_ns, last_ns))
        case "all":
            content = bytearray(file.content)
            for operation in file.pending:
                _apply(content, operation)
            return content, last_ns
        case "subset":
            return _subset(file, rng), rng.choice((file.mtime_ns, last_ns))
        case _:
            return _by_sectors(file, rng), rng.choice((file.mtime_ns, last_ns))


class _Renaming(NamedTuple):
    """A change of names that is not certain yet: `source` is no more, `target` (unless empty) means `file`."""

    source: str
    target: str
    file: _File | None

    def apply(self, names: dict[str, _File]) -> None:
        names.pop(self.source, None)
        if self.file is not None:
            names[self.target] = self.file


class Disk:
    """The disk under `root`, operation by operation. Names are kept relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """Where the operations' paths begin; a copy may go on elsewhere."""
        self._directories: set[str] = set()
        self._durable: dict[str, _File] = {}
        """What names meant when their directories were last synced."""
        self._now: dict[str, _File] = {}
        self._changes: list[_Renaming] = []

    @classmethod
    def of(cls, root: Path) -> "Disk":
        """The files that are under `root` now, all durable."""
        disk = cls(root)
        for folder, _, names in os.walk(root):
            disk._directories.add(os.path.relpath(folder, root))
            for name in names:
                path = Path(folder, name)
                file = _File(bytearray(path.read_bytes()), path.stat().st_mtime_ns)
                relative = str(path.relative_to(root))
                disk._durable[relative] = disk._now[relative] = file
        return disk

    def copy(self) -> "Disk":
        """The same disk, which goes its own way from here."""
        return copy.deepcopy(self)

    def take(self, operation: Operation) -> None:
        """The next operation of the log."""
        if operation.name == "mark":
            return
        path = os.path.relpath(operation.path, self.root)
        match operation.name:
            case "mkdir":
                self._directories.add(path)
            case "create":
                file = self._now[path] = _File(mtime_ns=operation.mtime_ns)
                self._changes.append(_Renaming(path, path, file))
            case "unlink":
                self._changes.append(_Renaming(path, path, None))
                del self._now[path]
            case "replace":
                target = os.path.relpath(operation.target, self.root)
                file = self._now[target] = self._now.pop(path)
                self._changes.append(_Renaming(path, target, file))
            case "fdatasync" | "fsync":
                self._sync(path)
            case "sync_failed":
                self._fail(path, operation.length)
            case _:
                if path in self._now:  # else it has no name any more
                    self._now[path].pending.append(operation)

    def _sync(self, path: str) -> None:
        file = self._now.get(path)
        if file is not None:
            file.sync()
            return
        folder = "" if path == "." else path
        for change in self._changes:
            if os.path.dirname(change.source) == folder:
                change.apply(self._durable)
        self._changes = [one for one in self._changes if os.path.dirname(one.source) != folder]

    def _fail(self, path: str, seed: int) -> None:
        """A failed sync: what was pending is there in part, and no later sync brings the rest."""
        file = self._now.get(path)
        if file is not None:
            rng = random.Random(seed)
            file.content, file.mtime_ns = _crashed(file, rng.choice(("none", "subset", "sectors")), rng)
            file.pending.clear()

    def _names(self, style: str, rng: random.Random) -> dict[str, _File]:
        names = dict(self._durable)
        if style == "mixed":
            style = rng.choice(("none", "all", "subset"))
        blocked: set[str] = set()
        for change in self._changes:
            touched = {change.source, change.target}
            keep = style == "all" or (style != "none" and rng.random() < 0.6)
            if keep and not touched & blocked:
                change.apply(names)
            else:
                blocked |= touched
        return names

    def crash(self, target: Path, rng: random.Random) -> None:
        """Make an image of what a power cut now may leave, under `target`, which is empty or missing."""
        style = rng.choice(STYLES)
        self._write(target, self._names(style, rng), style, rng)

    def show(self, target: Path) -> None:
        """Make what programs see now: what is left when only a process dies."""
        self._write(target, self._now, "all", random.Random(0))

    def _write(self, target: Path, names: dict[str, _File], style: str, rng: random.Random) -> None:
        for folder in sorted(self._directories):
            (target / folder).mkdir(parents=True, exist_ok=True)
        for name, file in sorted(names.items()):
            content, mtime_ns = _crashed(file, style, rng)
            _write(target / name, content, mtime_ns)


def _write(path: Path, content: bytearray, mtime_ns: int) -> None:
    """Pages of zeros become holes, as blocks that were allocated and never written are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    zeros = bytes(PAGE_BYTES)
    with path.open("wb", buffering=0) as out:
        for start in range(0, len(content), PAGE_BYTES):
            piece = content[start : start + PAGE_BYTES]
            if piece != zeros[: len(piece)]:
                out.seek(start)
                out.write(piece)
        out.truncate(len(content))
    if mtime_ns:
        os.utime(path, ns=(mtime_ns, mtime_ns))


class Image:
    """The state that a crash after `operations`, which began in an empty directory, leaves."""

    def __init__(self, root: Path, operations: list[Operation], rng: random.Random) -> None:
        self._disk = Disk(root)
        self._rng = rng
        for operation in operations:
            self._disk.take(operation)

    def write_to(self, target: Path) -> None:
        """Make the image's files under `target`, which exists and is empty."""
        self._disk.crash(target, self._rng)
