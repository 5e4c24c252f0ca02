"""Reading ranges of stored files: a bounded cache of plain chunks, few hops to workers, and reading ahead.

Everything here lives on the loop thread; workers get ids and return bytes. What an `await` may change: the cache (a
chunk may be gone again when the awaiter runs, so a flight hands its bytes over itself) and the streams of other
handles.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import trio

from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.errors import BallastError, DamagedError
from repository.format.inode import Extent
from repository.ids import RecordId
from repository.trees.reader import Content
from repository.units import KIB, MIB

_log = logging.getLogger(__name__)

CACHE_BYTES: Final = 32 * MIB
"""Holds the read-ahead of several streams at once; the kernel's page cache does the rest."""
HOP_BYTES: Final = 2 * MIB
"""A worker hop fetches at most this much (as stored in the extents): some 3 ms of work, so that hops overlap."""
WINDOW_MIN: Final = 512 * KIB
WINDOW_MAX: Final = 8 * MIB
"""Reading ahead grows from the one to the other in bytes, doubling with each sequential request."""
NEARBY_BYTES: Final = 2 * MIB
"""A request this close to the expected offset still counts as sequential: the kernel sends several at a time, in any
order."""
FLIGHTS_AHEAD_MAX: Final = 4
"""Hops of reading ahead under way, over all handles; beyond that nothing is read ahead."""


class Fetched(Protocol):
    """A record as read: only its plain bytes matter here."""

    @property
    def payload(self) -> bytes: ...


class ChunkSource(Protocol):
    """Where chunks come from: RecordStore. Called on worker threads."""

    def read_many(self, ids: Sequence[RecordId]) -> Sequence[Fetched]:
        """The records, in the order of `ids`, verified. Raises MissingRecordError, DamagedError."""
        ...


class Stream:
    """What one open handle has read so far."""

    __slots__ = ("ahead", "expected", "window")

    def __init__(self) -> None:
        self.expected = 0
        self.window = 0
        self.ahead = 0
        """Everything below this offset has been asked for."""

    def advance(self, start: int, end: int) -> tuple[int, int]:
        """Notes a request for [start, end) and returns the range of bytes to read ahead (may be empty)."""
        if abs(start - self.expected) > NEARBY_BYTES:
            self.window = 0
            self.ahead = end
        else:
            self.window = min(WINDOW_MAX, max(WINDOW_MIN, self.window * 2))
        self.expected = end
        first = max(self.ahead, end)
        last = end + self.window
        if last - first < self.window // 2:
            return first, first
        self.ahead = last
        return first, last


class _Flight:
    """A chunk on its way from a worker."""

    __slots__ = ("landed", "outcome")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.outcome: bytes | BallastError | None = None


class ChunkCache:
    """Plain chunks, the least recently used going first beyond `capacity_bytes`."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._chunks: OrderedDict[RecordId, bytes] = OrderedDict()
        self.held_bytes = 0

    def __contains__(self, chunk: RecordId) -> bool:
        return chunk in self._chunks

    def get(self, chunk: RecordId) -> bytes | None:
        """The chunk's bytes, now the most recently used."""
        found = self._chunks.get(chunk)
        if found is not None:
            self._chunks.move_to_end(chunk)
        return found

    def put(self, chunk: RecordId, payload: bytes) -> None:
        """Keeps a chunk, and lets go of others for it."""
        if chunk in self._chunks:
            return
        self._chunks[chunk] = payload
        self.held_bytes += len(payload)
        while self.held_bytes > self._capacity_bytes:
            _, oldest = self._chunks.popitem(last=False)
            self.held_bytes -= len(oldest)

    def clear(self) -> None:
        """Lets go of all."""
        self._chunks.clear()
        self.held_bytes = 0


class ReadPath:
    """Serves byte ranges of stored files; shared by `live/` and the snapshots."""

    def __init__(
        self,
        source: ChunkSource,
        trees: Trees,
        workers: Workers,
        nursery: trio.Nursery,
        capacity_bytes: int = CACHE_BYTES,
    ) -> None:
        self._source = source
        self._trees = trees
        self._workers = workers
        self._nursery = nursery
        self._cache = ChunkCache(capacity_bytes)
        self._flights: dict[RecordId, _Flight] = {}
        self._ahead = 0
        self.served = 0
        """Requests so far; who remembers it sees whether there were more."""

    @property
    def held_bytes(self) -> int:
        """Memory that the cached chunks take."""
        return self._cache.held_bytes

    def forget(self) -> None:
        """Empties the cache; what is under way is not touched."""
        self._cache.clear()

    def at_hand(self, file: Content, offset: int, length: int) -> bytes | memoryview | None:
        """As `read` of a file that is one chunk, if that is in memory: nobody has to wait, and nothing is read ahead.
        None otherwise."""
        extents = file.extents
        if not isinstance(extents, tuple) or len(extents) != 1:
            return None
        start, stored, chunk, first = extents[0]
        if start or stored != file.size:
            return None
        payload = self._cache.get(chunk)
        if payload is None or len(payload) < first + stored:
            return None
        self.served += 1
        if not first and not offset and stored <= length and len(payload) == stored:
            return payload
        return memoryview(payload)[first + min(offset, stored) : first + min(offset + length, stored)]

    async def read(self, inode: Content, stream: Stream, offset: int, length: int) -> bytes | memoryview:
        """Bytes [offset, offset + length) of a file, cut at its size. Raises DamagedError if a chunk of the range is
        bad."""
        end = min(offset + length, inode.size)
        if end <= offset:
            return b""
        first, last = stream.advance(offset, end)
        extents = await self._trees.ask(self._trees.reader.extents, inode, offset, end)
        wanted = unique(extents)
        if min(last, inode.size) > first and self._ahead < FLIGHTS_AHEAD_MAX:
            self._nursery.start_soon(self._read_ahead, inode, first, min(last, inode.size), wanted)
        return assemble(extents, await self.chunks(wanted), offset, end)

    async def chunks(self, wanted: Iterable[RecordId]) -> Mapping[RecordId, bytes]:
        """The plain bytes of each chunk. Raises DamagedError (MissingRecordError) for the first that cannot be had."""
        self.served += 1
        found: dict[RecordId, bytes] = {}
        waiting: dict[RecordId, _Flight] = {}
        missing: list[RecordId] = []
        for chunk in wanted:
            cached = self._cache.get(chunk)
            if cached is not None:
                found[chunk] = cached
            elif chunk in self._flights:
                waiting[chunk] = self._flights[chunk]
            else:
                missing.append(chunk)
        if missing:
            waiting |= self._take_off(missing)
            await self._fly(missing)
        for chunk, flight in waiting.items():
            await flight.landed.wait()
            if isinstance(flight.outcome, BallastError):
                raise flight.outcome
            assert flight.outcome is not None
            found[chunk] = flight.outcome
        return found

    def claim(self, chunks: Iterable[RecordId]) -> list[RecordId]:
        """Those of `chunks` that nobody has or fetches. From now on they are under way; `bring` has to follow."""
        fresh = [chunk for chunk in dict.fromkeys(chunks) if chunk not in self._cache and chunk not in self._flights]
        self._take_off(fresh)
        return fresh

    async def bring(self, claimed: Sequence[RecordId]) -> None:
        """Fetches what was claimed in one hop. Errors stay silent: whoever reads there will see them."""
        if claimed:
            await self._fly(claimed)

    def _take_off(self, chunks: Sequence[RecordId]) -> dict[RecordId, _Flight]:
        flights = {chunk: _Flight() for chunk in chunks}
        self._flights |= flights
        return flights

    async def _fly(self, chunks: Sequence[RecordId]) -> None:
        """Fetches chunks that have a flight, and lands them whatever happens."""
        outcomes: Sequence[bytes | BallastError] = ()
        try:
            outcomes = await self._workers.read(_fetch, self._source, chunks)
        finally:
            for index, chunk in enumerate(chunks):
                flight = self._flights.pop(chunk)
                flight.outcome = outcomes[index] if outcomes else DamagedError("the read was given up")
                if isinstance(flight.outcome, bytes):
                    self._cache.put(chunk, flight.outcome)
                flight.landed.set()

    async def _read_ahead(self, inode: Content, start: int, end: int, urgent: Sequence[RecordId]) -> None:
        """Fetches what follows a sequential request. Errors stay silent: whoever really reads there will see them."""
        self._ahead += 1
        try:
            extents = await self._trees.ask(self._trees.reader.extents, inode, start, end)
            for hop in hops(extents):
                known = (self._cache, self._flights, urgent)
                fresh = [chunk for chunk in hop if not any(chunk in some for some in known)]
                if fresh:
                    self._take_off(fresh)
                    await self._fly(fresh)
        except BallastError as error:
            _log.debug("readahead.failed", extra={"error": str(error)})
        except Exception:
            _log.exception("readahead.crashed")
        finally:
            self._ahead -= 1


def _fetch(source: ChunkSource, chunks: Sequence[RecordId]) -> list[bytes | BallastError]:
    """The chunks, on a worker thread. A bad one among them must not take the others with it: then each is read
    alone."""
    try:
        return [record.payload for record in source.read_many(chunks)]
    except DamagedError:
        return [_fetch_one(source, chunk) for chunk in chunks]


def _fetch_one(source: ChunkSource, chunk: RecordId) -> bytes | BallastError:
    try:
        return source.read_many([chunk])[0].payload
    except BallastError as error:
        return error


def unique(extents: Iterable[Extent]) -> list[RecordId]:
    """The chunks of `extents`, each once, in order."""
    return list(dict.fromkeys(extent.chunk for extent in extents))


def hops(extents: Iterable[Extent]) -> Iterable[list[RecordId]]:
    """The chunks of `extents` in order, in groups of at most about HOP_BYTES."""
    group: dict[RecordId, None] = {}
    group_bytes = 0
    for extent in extents:
        group[extent.chunk] = None
        group_bytes += extent.length
        if group_bytes >= HOP_BYTES:
            yield list(group)
            group = {}
            group_bytes = 0
    if group:
        yield list(group)


def assemble(extents: Sequence[Extent], chunks: Mapping[RecordId, bytes], start: int, end: int) -> bytes | memoryview:
    """Bytes [start, end) of a file from its extents (sorted, overlapping the range); zeros where there is none."""
    pieces: list[bytes | memoryview] = []
    position = start
    for extent in extents:
        first = max(extent.offset, start)
        last = min(extent.offset + extent.length, end)
        if first >= last:
            continue
        if first > position:
            pieces.append(bytes(first - position))
        begin = extent.chunk_offset + first - extent.offset
        piece = memoryview(chunks[extent.chunk])[begin : begin + last - first]
        if len(piece) != last - first:
            raise DamagedError(f"chunk {extent.chunk.hex()[:16]} is shorter than the extent that points into it")
        pieces.append(piece)
        position = last
    if position < end:
        pieces.append(bytes(end - position))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
