"""Reading ahead among neighbours: who reads several of a directory's small files, or lists several of its directories,
will want the others.

A hop to a worker and back for one small record costs as much as one that brings thirty. Loop thread only, but for
`_small_files` where a segment is not in memory.
"""

import logging
from collections import OrderedDict
from typing import Final, TypeVar

import trio

from fusefs.places import Place
from fusefs.readpath import ReadPath
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import BallastError
from repository.format.inode import DirRef, Extent
from repository.format.tree import DirAttrs, DirContent
from repository.ids import RecordId
from repository.trees.reader import NotCached, TreeReader
from repository.units import KIB, MIB

_log = logging.getLogger(__name__)

V = TypeVar("V")

SMALL_BYTES: Final = 256 * KIB
"""Larger files are read ahead by themselves, and pay for their own hops."""
MISSED_MIN: Final = 3
"""Files of one segment that had to be waited for before the rest is fetched: two may be chance."""
FETCH_BYTES_MAX: Final = 4 * MIB
"""Of one segment, so that a wrong guess costs some 10 ms of a worker and a part of the cache."""
GUESSES_MAX: Final = 8
"""Directories in a row whose small files are fetched as soon as they are listed, while reading goes from one to the
next; each from which HITS_MIN files are read gives the guesses back."""
HITS_MIN: Final = 2
ORDER_MAX: Final = 4
"""How much evidence is remembered for reading by name."""
ROWS_MAX: Final = 256
"""Segments remembered with their counts; about 200 bytes each."""
HOP_FIRST: Final = 16
HOP_NEXT: Final = 64
HOP_BYTES: Final = MIB
"""Chunks in the first hop and in those behind it, and the bytes at which one is full: a reader that meets one of them
under way waits for all, some 1 and 4 ms. Reading a file through the mount takes three times as long as a worker has for
it."""
FETCHES_MAX: Final = 2
"""Under way at once; a guess that finds both taken is dropped."""
DIRECTORIES_FIRST: Final = 4
"""Directories read with the first of a segment that is listed: a walk mostly goes on, and a single look pays little."""
DIRECTORIES_NEXT: Final = 32
"""The same for every further one of that segment: 64 records, some 5 ms of a worker."""
BELOW_MIN: Final = 16
BELOW_MAX: Final = 256
"""Records read from below those directories: none at first, twice as many each time that something of what was read
before was listed, as a walk does, and half as many when nothing was. At most some 20 ms of a worker."""


class Neighbours:
    """Watches which files are waited for and which directories are listed, segment by segment."""

    def __init__(
        self, reader: TreeReader, trees: Trees, reads: ReadPath, workers: Workers, nursery: trio.Nursery
    ) -> None:
        """`reader` may read by itself (inline): it is used on worker threads alone."""
        self._reader = reader
        self._trees = trees
        self._reads = reads
        self._workers = workers
        self._nursery = nursery
        self._missed: OrderedDict[RecordId, int] = OrderedDict()
        """Files waited for since the segment was seen first, or since it was fetched."""
        self._listed: OrderedDict[RecordId, None] = OrderedDict()
        self._fetching: set[RecordId] = set()
        self._found = 0
        """Directories listed since the last load that were in memory thanks to it."""
        self._below = 0
        self._guesses = 0
        self._served = 0
        """Requests answered when something was fetched last."""
        self._last: Place | None = None
        self._by_name = 0
        """Above 0: files are read by name, as `tar` does; `cp` reads them by number."""

    @property
    def guesses(self) -> int:
        """Above 0: files are read one directory after the other, and those of the next would be fetched (`entered`)."""
        return self._guesses

    def missed(self, place: Place, size: int) -> None:
        """A reader has to wait for the file at `place`."""
        if size > SMALL_BYTES:
            return
        content, attrs = place.row.content, place.row.attrs
        last = self._last
        if last is not None and last.row.content == content and last.position != place.position:
            step = 1 if last.position < place.position else -2
            self._by_name = max(-ORDER_MAX, min(ORDER_MAX, self._by_name + step))
        self._last = place
        before = self._missed.get(content)
        missed = (before or 0) + 1
        _note(self._missed, content, missed)
        if missed >= MISSED_MIN:
            self._begin(content, attrs, place.position, guessed=False)
        elif before is None and self._guesses:
            self._begin(content, attrs, place.position, guessed=True)

    def entered(self, directory: DirRef, place: Place | None) -> None:
        """The directory, which stands at `place`, was opened for listing. While files are read one directory after the
        other, its own are fetched at once, and the first of the directory behind it: when that is opened, they are
        there."""
        content, attrs = directory.content, directory.attrs
        if self._guesses and content is not None and attrs is not None and content not in self._missed:
            self._begin(content, attrs, -1, guessed=True, beside=place)

    def _begin(
        self, content: RecordId, attrs: RecordId, position: int, *, guessed: bool, beside: Place | None = None
    ) -> None:
        """Fetches the segment's small files, those behind `position` first; then those of what follows `beside`."""
        if content in self._fetching or len(self._fetching) >= FETCHES_MAX:
            return
        served = self._reads.served
        if served - self._served >= HITS_MIN:
            self._guesses = GUESSES_MAX
        elif guessed:
            self._guesses -= 1
        self._served = served
        _note(self._missed, content, 0)
        self._fetching.add(content)
        by_name = self._by_name > 0
        try:
            hops = _small_files(self._trees.reader, content, attrs, position, by_name)
        except NotCached:
            self._nursery.start_soon(self._look_and_fetch, content, attrs, position, by_name, beside)
        except BallastError:
            self._fetching.discard(content)
        else:
            self._fetch_soon(content, hops, beside)

    async def _look_and_fetch(
        self, content: RecordId, attrs: RecordId, position: int, by_name: bool, beside: Place | None
    ) -> None:
        hops: list[list[RecordId]] = [[]]
        try:
            hops = await self._workers.read(_small_files, self._reader, content, attrs, position, by_name)
        except BallastError as error:
            _log.debug("neighbours.failed", extra={"error": str(error)})
        finally:
            self._fetch_soon(content, hops, beside)

    def _fetch_soon(self, content: RecordId, hops: list[list[RecordId]], beside: Place | None) -> None:
        """The first hop's chunks count as under way at once: who reads one of them waits for it, and fetches none."""
        first = self._reads.claim(hops[0])
        self._nursery.start_soon(self._fetch, content, first, hops[1:], beside)

    async def _fetch(
        self, content: RecordId, first: list[RecordId], rest: list[list[RecordId]], beside: Place | None
    ) -> None:
        try:
            await self._reads.bring(first)
            for hop in rest:
                await self._reads.bring(self._reads.claim(hop))
            if beside is not None:
                await self._reads.bring(self._reads.claim(self._first_behind(beside)))
        except BallastError as error:
            _log.debug("neighbours.failed", extra={"error": str(error)})
        except Exception:
            _log.exception("neighbours.crashed")
        finally:
            self._fetching.discard(content)

    def _first_behind(self, place: Place) -> list[RecordId]:
        """The first small files of the next directory in a segment, as far as it is in memory what they are."""
        try:
            reader = self._trees.reader
            following = reader.directory_behind(place.row.content, place.row.attrs, place.position)
            if following is None or following.content is None or following.attrs is None:
                return []
            return _small_files(reader, following.content, following.attrs, -1, self._by_name > 0)[0]
        except (NotCached, BallastError):
            return []

    async def listed(self, place: Place) -> None:
        """The directory at `place` is about to be listed: brings its records into memory, if they are not there, and
        those of its next neighbours along with them. Errors are silent: whoever needs a record will see them."""
        row = place.row
        known = row.attrs in self._listed
        _note(self._listed, row.attrs, None)
        most = DIRECTORIES_NEXT if known else DIRECTORIES_FIRST
        where = (row.content, row.attrs, place.position)
        try:
            reader = self._trees.reader
            if not await self._trees.ask(reader.unread_directories, *where, most):
                self._found += 1
                return
            more = max(BELOW_MIN, 2 * self._below) if self._found else self._below // 2
            self._below = min(BELOW_MAX, more)
            self._found = 0
            await self._workers.read(self._reader.load_beside, *where, most, self._below)
        except BallastError as error:
            _log.debug("neighbours.failed", extra={"error": str(error)})


def _note(rows: OrderedDict[RecordId, V], key: RecordId, value: V) -> None:
    """Remembers `value` as the youngest of ROWS_MAX."""
    rows[key] = value
    rows.move_to_end(key)
    if len(rows) > ROWS_MAX:
        rows.popitem(last=False)


def _small_files(
    reader: TreeReader, content_id: RecordId, attrs_id: RecordId, position: int, by_name: bool
) -> list[list[RecordId]]:
    """Chunks of the small files of a segment, by number or by name, from those behind row `position` on and around, hop
    by hop. None of a list of segments. Raises NotCached where `reader` does."""
    content, attrs = reader.cache.fetch((content_id, attrs_id))
    if not isinstance(content, DirContent) or not isinstance(attrs, DirAttrs):
        return [[]]
    keys = range(len(content.names)) if by_name else [attrs.columns.file_id(row) for row in range(len(content.names))]
    behind = keys[position] if position >= 0 else -1
    small = [
        (key <= behind, key, size, extents)
        for key, (extents, size, _) in zip(keys, content.files.contents(), strict=True)
        if 0 < size <= SMALL_BYTES and isinstance(extents, tuple)
    ]
    hops: list[list[RecordId]] = []
    most = HOP_FIRST
    hop: list[RecordId] = []
    hop_bytes = found_bytes = 0
    for _, _, size, extents in sorted(small, key=_order):
        hop += [extent.chunk for extent in extents]
        hop_bytes += size
        found_bytes += size
        if len(hop) >= most or hop_bytes >= HOP_BYTES:
            hops.append(hop)
            hop, hop_bytes, most = [], 0, HOP_NEXT
        if found_bytes > FETCH_BYTES_MAX:
            break
    return [*hops, hop]


def _order(small: tuple[bool, int, int, tuple[Extent, ...]]) -> tuple[bool, int]:
    return small[:2]
