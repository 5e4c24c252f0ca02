"""What a worker of the crew does that looks ahead: it walks subtrees of the parent snapshot and says what differs.

It walks with the scanner's own code, so that it finds what the scanner would; but whatever differs it only names, for
the scanner to look at again. Where it is unsure (there is something to tell, damage, or far more than there was), it
says nothing of the subtree, which is then walked as if there were no crew.
"""

import marshal
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeGuard

from repository.create.events import Event, Frame, FrameDone, LinkedNode, NodeFound
from repository.create.plan import Base, BaseReader, FileIds, ScanOptions, Wanted
from repository.create.scan import Level, Scanner
from repository.create.skim import Known, Look, PlainLook, ScanCounts, identity_of, same_inode
from repository.create.source import Directory, SourceError, open_ancestor
from repository.errors import BallastError
from repository.format.inode import Inode, NodeKind
from repository.format.record import Buffer
from repository.ids import FileId, RecordId
from repository.trees.ahead import load_levels
from repository.trees.reader import TreeReader

NAMES_MAX: Final = 8192
"""Names that are told of one subtree, about 200 KiB: where more differ, walking it again is little beside the rest."""
DIRECTORIES_MAX: Final = 4096
"""Directories that are entered for one subtree. It has not more files than UNIT_FILES, but may have these."""
RECORDS_MAX: Final = 2048
"""Records of trees that are read together: about 12 MB decoded."""


class Unit(NamedTuple):
    """A subtree of the parent snapshot: `names` below the absolute path `top`, and the row in which it stands."""

    top: bytes
    names: tuple[bytes, ...]
    content: RecordId
    attrs: RecordId
    position: int

    @property
    def path(self) -> bytes:
        """Its absolute path."""
        return b"/".join((self.top.rstrip(b"/"), *self.names))


class Looked(NamedTuple):
    """What was found of some units, None for those of which nothing can be said; and when it was begun
    (time.monotonic, which all processes share)."""

    begun_s: float
    looks: list[PlainLook | None]


class LookingWork:
    """The work of `crew.hire`, for `encode_units`."""

    def __init__(self, options: ScanOptions, base: Base, reader: TreeReader) -> None:
        self._reader: Final = reader
        self._looker: Final = Looker(options, base, reader)

    def __call__(self, request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        begun_s = time.monotonic()
        units = decode_units(request)
        inodes = [self._inode(unit) for unit in units]
        pairs = [(one.directory.content, one.directory.attrs) for one in inodes if one is not None]
        load_levels(self._reader.cache, [pair for pair in pairs if _is_whole(pair)], RECORDS_MAX)
        with _Way() as way:
            looks = [self._look(way, unit, inode) for unit, inode in zip(units, inodes, strict=True)]
        try:
            return [marshal.dumps((begun_s, looks))]
        except ValueError:  # a thousand directories below each other, and a difference in the last
            return [marshal.dumps((begun_s, [None] * len(looks)))]

    def _inode(self, unit: Unit) -> Inode | None:
        try:
            return self._reader.entry_at(unit.content, unit.attrs, unit.position).inode
        except BallastError:
            return None  # whoever walks there will tell

    def _look(self, way: "_Way", unit: Unit, inode: Inode | None) -> PlainLook | None:
        if inode is None:
            return None
        try:
            return self._looker.look(way.open(unit), inode)
        except (BallastError, SourceError, TooMuchError):
            self._looker.close()
            return None


def encode_units(units: Sequence[Unit]) -> bytes:
    """A request. Both ends are the same program: nothing here is stored anywhere."""
    return marshal.dumps([tuple(unit) for unit in units])


def decode_units(request: Buffer) -> list[Unit]:
    """The inverse of `encode_units`."""
    return [Unit(*found) for found in marshal.loads(request)]


def decode_looked(reply: Buffer) -> Looked:
    """What LookingWork answered."""
    return Looked(*marshal.loads(reply))


class _Way:
    """Opens directories as the scanner reaches them: symlinks are followed up to the path that was named, not below.
    Keeps the one above the last open, for its neighbours; so not for long. A context manager."""

    def __init__(self) -> None:
        self._above: Directory | None = None
        self._names: tuple[bytes, ...] = ()

    def open(self, unit: Unit) -> Directory:
        """The directory of `unit`. Raises SourceError."""
        names = (unit.top, *unit.names[:-1])
        if self._above is None or names != self._names:
            self._let_go()
            self._above = _opened(unit.top, unit.names[:-1])
            self._names = names
        return self._above.open_directory(unit.names[-1])

    def _let_go(self) -> None:
        if self._above is not None:
            self._above.release()
            self._above = None

    def __enter__(self) -> "_Way":
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()


def _opened(top: bytes, names: Sequence[bytes]) -> Directory:
    directory = open_ancestor(os.path.dirname(top))
    for name in (os.path.basename(top), *names):
        if name:
            try:
                below = directory.open_directory(name)
            finally:
                directory.release()
            directory = below
    return directory


class TooMuchError(Exception):
    """The subtree has far more in it than the parent snapshot says."""


class _Unsure:
    """Notices of a look: where there is one, the look says nothing."""

    def __init__(self) -> None:
        self.noted = False

    def problem(self, path: bytes, why: str) -> None:
        self.noted = True

    def note(self, sentence: str) -> None:
        self.noted = True


@dataclass(slots=True)
class _Note:
    """What is known of a directory so far."""

    frame: Frame
    found: os.stat_result
    counts: ScanCounts
    directories: int = 0
    gone: list[bytes] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    below: dict[bytes, PlainLook] = field(default_factory=dict)

    def result(self, *, pristine: bool) -> Look:
        listing = self.frame.ref
        return Look(identity_of(self.found), self.counts.files, self.counts.unchanged_bytes, self.directories, pristine,
                    self.gone, self.names, self.below, listing.content, listing.attrs)  # fmt: skip


class Looker(Scanner):
    """A scanner that only names what differs. `look` as often as wanted."""

    step_events = 1
    """Names are noted in the order in which they are visited, whether an event tells of them or not."""

    def __init__(self, options: ScanOptions, base: Base, reader: BaseReader) -> None:
        self._unsure = _Unsure()
        super().__init__(options, base, reader, FileIds(FileId(1)), self._unsure)
        self._fresh = ScanCounts()
        self._notes: list[_Note] = []
        self._told = self._entered = 0

    def look(self, directory: Directory, base: Inode) -> PlainLook | None:
        """What differs in and below `directory`, which is let go of. Raises SourceError, DamagedError, TooMuchError:
        then it has to be closed."""
        self._notes.clear()
        self._unsure.noted = False
        self._told = self._entered = 0
        self._enter(None, b"", directory, base, None)
        result: Look | None = None
        while self.step():
            result = self._take(self.events)
            self.events.clear()
            if self._unsure.noted:
                self.close()
                return None
        return None if result is None else result.plain()

    def close(self) -> None:
        super().close()
        self.events.clear()

    def _take(self, events: Iterable[Event]) -> Look | None:
        """Note them; the result, when the whole is done."""
        for event in events:
            match event:
                case FrameDone():
                    if (done := self._done()) is not None:
                        return done
                case NodeFound(frame, name, None):
                    self._count_name()
                    self._note_of(frame).gone.append(name)
                case LinkedNode():
                    pass  # its name follows
                case _:
                    self._count_name()
                    self._note_of(event.frame).names.append(event.name)
        return None

    def _done(self) -> Look | None:
        """The innermost directory is done; what is known of it, where it is the outermost as well."""
        note = self._notes.pop()
        frame = note.frame
        assert frame.base is not None
        pristine = not note.names and not note.gone and same_inode(frame.base, frame.inode, frame.ref, frame.totals)
        note.directories += pristine
        if not self._notes:
            return note.result(pristine=pristine)
        above = self._notes[-1]
        if pristine:
            above.counts.files += note.counts.files
            above.counts.unchanged_bytes += note.counts.unchanged_bytes
            above.directories += note.directories
        else:
            above.names.append(frame.name)
            above.below[frame.name] = note.result(pristine=False).plain()
        return None

    def _note_of(self, frame: Frame) -> _Note:
        return next(note for note in reversed(self._notes) if note.frame is frame)

    def _count_name(self) -> None:
        self._told += 1
        if self._told > NAMES_MAX:
            raise TooMuchError

    def _counts_for_entry(self) -> ScanCounts:
        self._fresh = ScanCounts()
        return self._fresh

    def _visit(self, level: Level, name: bytes, known: Known | Inode | None) -> bool:
        if known is not None and known.kind is NodeKind.DIRECTORY:
            return super()._visit(level, name, known)
        excludes, directory = self._options.excludes, level.directory
        if excludes:
            try:
                is_directory = stat.S_ISDIR(directory.lstat(name).st_mode)
            except SourceError:
                pass  # the scanner will tell
            else:
                if excludes.leaves_out(directory.path, name, is_directory):
                    return False
        self._count_name()
        self._notes[-1].names.append(name)
        return True

    def _enter(
        self,
        parent: Frame | None,
        name: bytes,
        directory: Directory,
        base: Inode | None,
        wanted: Wanted | None,
        look: Look | None = None,
    ) -> None:
        self._entered += 1
        if self._entered > DIRECTORIES_MAX:
            directory.release()
            raise TooMuchError
        super()._enter(parent, name, directory, base, wanted, look)
        level = self._stack[-1]
        self._notes.append(_Note(level.frame, level.found, self._fresh))


def _is_whole(pair: tuple[RecordId | None, RecordId | None]) -> TypeGuard[tuple[RecordId, RecordId]]:
    """Of a directory that is not empty."""
    return pair[0] is not None and pair[1] is not None
