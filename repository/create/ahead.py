"""Looking ahead of the scanner: subtrees of the parent snapshot are handed to a crew in the order of the walk, and the
scanner is told what it would find there.

What a worker says is as good as what the scanner would have seen at that moment; nothing is lost where it says nothing.
It is given up where too much differs: the second look at it would cost more than the first one saves.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import Final

from repository.create.looking import LookingWork, Unit, decode_looked, encode_units
from repository.create.plan import Base, ScanOptions, Wanted
from repository.create.skim import PlainLook
from repository.crew import Asked, Crew, WorkerLostError, cores, hire
from repository.errors import BallastError
from repository.format.inode import DirRef, NodeKind, Totals
from repository.ids import RecordId
from repository.repo import Repository
from repository.trees.reader import RecordCache, TreeReader
from repository.units import KIB, MIB

FILES_MIN: Final = 4000
"""Of the parent snapshot, for a crew to be hired: looking at so many takes 0.1 s, hiring and dismissing a tenth."""
WORKERS_MAX: Final = 4
"""The walk itself takes in what four have found; each takes 17 MB."""
UNIT_FILES: Final = 1024
"""The most in a subtree that is looked at as a whole, about 20 ms of work. In a larger directory the scanner looks at
the files itself, and its subdirectories are units or larger ones again."""
REQUEST_FILES: Final = 512
"""Subtrees travel together until they hold so many files: a message costs as much as 20 of them."""
REQUEST_UNITS: Final = 64
REQUEST_BYTES: Final = 16 * KIB
"""Of paths in one request: what is under way for a worker fits into its socket, so that asking never waits."""
ASKED_AHEAD: Final = 3
"""Requests that a worker has: one is at work, one there when it is done, one answered and not taken yet."""
AGE_MAX_S: Final = 60.0
"""Older looks are of no use: what has changed meanwhile would be missed by this snapshot (though not by the next)."""
GIVE_UP_NAMES: Final = 2000
"""So many names must differ, and more than do not, before looking ahead is given up."""
LISTINGS_BYTES: Final = 16 * MIB
"""Of decoded listings in a worker."""

_log: Final = logging.getLogger(__name__)


def look_ahead(repo: Repository, options: ScanOptions, base: Base | None, wanted: Wanted) -> "Ahead | None":
    """Somebody who looks ahead, where there is enough to look at, and a processor for it."""
    if base is None or base.root.totals.files < FILES_MIN:
        return None
    trees = TreeReader(RecordCache(repo.store.still(), LISTINGS_BYTES, inline=True))
    crew = hire(min(cores(), WORKERS_MAX), LookingWork(options, base, trees))
    return None if crew is None else Ahead(crew, repo.reader, requests_of(units_of(repo.reader, base, wanted)))


@dataclass(frozen=True, slots=True)
class Found:
    """A unit that can be asked for. `files`: how many the parent snapshot has in it."""

    unit: Unit
    path: bytes
    files: int


def units_of(reader: TreeReader, base: Base, wanted: Wanted) -> Iterator[Found]:
    """The units below what is wanted as a whole, in the order of the walk. Ends early where the parent cannot be read.

    Directories that were named themselves are left to the scanner, which has rules of its own for them.
    """
    try:
        yield from _named(reader, b"/", base.root.directory, wanted)
    except BallastError as error:
        _log.info("ahead.unreadable", extra={"reason": str(error)})


def _named(reader: TreeReader, path: bytes, listing: DirRef, wanted: Wanted) -> Iterator[Found]:
    if wanted.whole:
        yield from _below(reader, path, listing, wanted)
        return
    for name in sorted(wanted.children):
        inode = reader.lookup(listing, name)
        if inode is not None and inode.kind is NodeKind.DIRECTORY:
            yield from _named(reader, os.path.join(path, name), inode.directory, wanted.children[name])


def _below(reader: TreeReader, top: bytes, listing: DirRef, wanted: Wanted) -> Iterator[Found]:
    pending: list[tuple[tuple[bytes, ...], Iterator[tuple[bytes, Unit, Totals, DirRef]]]]
    pending = [((), _directories(reader, top, (), listing))]
    while pending:
        names, directories = pending[-1]
        for name, unit, totals, ref in directories:
            if len(pending) == 1 and name in wanted.children:
                continue
            if totals.files > UNIT_FILES:
                below = (*names, name)
                pending.append((below, _directories(reader, top, below, ref)))
                break
            yield Found(unit, unit.path, totals.files)
        else:
            pending.pop()


def _directories(
    reader: TreeReader, top: bytes, names: tuple[bytes, ...], listing: DirRef
) -> Iterator[tuple[bytes, Unit, Totals, DirRef]]:
    """Those of one directory."""
    for content_id, attrs_id, content, attrs in reader.scan_segments(listing):
        kinds = content.files.kinds
        row = kinds.find(NodeKind.DIRECTORY)
        ordinal = 0
        while row >= 0:
            name = content.names[row]
            child, totals = content.files.directory(row)
            unit = Unit(top, (*names, name), content_id, attrs_id, row)
            yield name, unit, totals, DirRef(child, attrs.columns.child(ordinal))
            row = kinds.find(NodeKind.DIRECTORY, row + 1)
            ordinal += 1


def requests_of(units: Iterator[Found]) -> Iterator[list[Found]]:
    """Units that travel together."""
    together: list[Found] = []
    files = nbytes = 0
    for found in units:
        if len(found.path) > REQUEST_BYTES:
            continue
        if together and (nbytes + len(found.path) > REQUEST_BYTES or files + found.files > 2 * REQUEST_FILES):
            yield together
            together, files, nbytes = [], 0, 0
        together.append(found)
        files += found.files
        nbytes += len(found.path)
        if files >= REQUEST_FILES or len(together) >= REQUEST_UNITS:
            yield together
            together, files, nbytes = [], 0, 0
    if together:
        yield together


@dataclass(frozen=True, slots=True)
class _UnderWay:
    asked: Asked
    units: list[Found]


class Ahead:
    """The scanner's end of it. Used by one thread."""

    def __init__(self, crew: Crew, reader: TreeReader, requests: Iterator[list[Found]]) -> None:
        self._crew: Crew | None = crew
        self._reader = reader
        self._requests = requests
        self._under_way_max = crew.workers * ASKED_AHEAD
        self._under_way: deque[_UnderWay] = deque()
        self._numbers: dict[bytes, int] = {}
        """The request that each path belongs to which may still be asked for."""
        self._looks: dict[bytes, PlainLook] = {}
        """Of the request that was answered last."""
        self._sent = self._received = 0
        self._asked_to: list[bytes] = []
        """The last path that was asked about, in the order of the walk."""
        self._same = self._differing = 0
        self._begun_s = 0.0
        self._fill()

    def looks_into(self, totals: Totals) -> bool:
        """See `plan.Lookahead`."""
        return self._crew is not None and totals.files > UNIT_FILES

    def take(self, path: bytes) -> PlainLook | None:
        """See `plan.Lookahead`."""
        if self._crew is None and not self._looks:
            return None
        self._fill()
        try:
            if path not in self._numbers and _order(path) > self._asked_to:
                self._skip_to(path)
            number = self._numbers.pop(path, 0)
            if not number:
                return None
            while self._received < number and self._crew is not None:
                self._receive()
                self._fill()  # or, where nothing is left to ask, the crew goes home: it takes 30 MB a worker
        except WorkerLostError as error:
            _log.warning("ahead.lost", extra={"reason": str(error)})
            self.close()
            return None
        look = self._looks.pop(path, None)
        if look is None or time.monotonic() - self._begun_s > AGE_MAX_S:
            return None
        if look[6]:
            self._load(look)
        return look

    def close(self) -> None:
        """Send the crew home. May be called twice; nothing is known any more then."""
        self._looks.clear()
        self._leave()

    def _leave(self) -> None:
        """Ask for nothing more."""
        crew, self._crew = self._crew, None
        self._under_way.clear()
        if crew is not None:
            crew.close()

    def _fill(self) -> None:
        """Have enough under way."""
        if self._crew is None:
            return
        while len(self._under_way) < self._under_way_max:
            units = next(self._requests, None)
            if units is None:
                if not self._under_way:
                    self._leave()
                return
            try:
                asked = self._crew.begin([encode_units([found.unit for found in units])])
            except WorkerLostError:
                self._leave()
                return
            self._sent += 1
            self._asked_to = _order(units[-1].path)
            self._under_way.append(_UnderWay(asked, units))
            self._numbers.update((found.path, self._sent) for found in units)

    def _skip_to(self, path: bytes) -> None:
        """The walk has come to `path`, which lies behind all that was asked about: a large directory of the parent
        snapshot is gone, say. Go on from there. Raises WorkerLostError."""
        here = _order(path)
        while self._under_way:
            under_way = self._under_way.popleft()
            under_way.asked.wait()
            self._received += 1
        self._numbers.clear()
        self._requests = dropwhile(lambda units: _order(units[-1].path) < here, self._requests)
        self._fill()

    def _receive(self) -> None:
        """Take in the next answer; what came before it is behind the walk. Raises WorkerLostError."""
        for path in self._looks:
            self._numbers.pop(path, None)
        self._looks.clear()
        under_way = self._under_way.popleft()
        looked = decode_looked(under_way.asked.wait())
        self._received += 1
        self._begun_s = looked.begun_s
        for found, look in zip(under_way.units, looked.looks, strict=True):
            if look is None:
                self._numbers.pop(found.path, None)
                self._differing += found.files
            else:
                self._looks[found.path] = look
                same, differing = _balance(look)
                self._same += same
                self._differing += differing
        if self._differing > max(self._same, GIVE_UP_NAMES):
            _log.info("ahead.given_up", extra={"same": self._same, "differing": self._differing})
            self._leave()

    def _load(self, look: PlainLook) -> None:
        """Have the listings in memory that the scanner will ask for, in one hop."""
        ids: list[RecordId] = []
        pending = [look]
        while pending:
            one = pending.pop()
            ids += [record_id for record_id in one[8:] if record_id is not None]
            pending += one[7].values()
        try:
            self._reader.cache.load(ids)
        except BallastError:
            return  # the scanner will tell


def _order(path: bytes) -> list[bytes]:
    """Sorts as the walk goes."""
    return path.split(b"/")


def _balance(look: PlainLook) -> tuple[int, int]:
    """How many names of files need no second look, and how many names do."""
    same, differing = 0, 0
    pending = [look]
    while pending:
        one = pending.pop()
        same += one[1]
        differing += len(one[5]) + len(one[6]) - len(one[7])
        pending += one[7].values()
    return same, differing
