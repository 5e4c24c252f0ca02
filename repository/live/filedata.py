"""The bytes of one changed file, as layers over what was committed. Pure bookkeeping, no reading, no storing.

From newest to oldest: *runs* (written, still in memory), *flights* (handed to the store, not yet answered), *pieces*
(stored in this generation) and *lower* (the frozen generation's layers or the committed inode), of which only the
first `visible` bytes show. Owner of the invariants: runs are sorted and disjoint, pieces are sorted and disjoint, and
whatever is read comes from the newest layer that covers it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from repository.format.inode import Inode
from repository.ids import RecordId

FILE_SIZE_MAX: Final = (1 << 63) - 1
"""Bytes; offsets are signed 64 bit everywhere in the kernel."""
Bytes = bytes | bytearray | memoryview


class Piece(NamedTuple):
    """Bytes `start` to `end` of the file are those of `chunk` from `chunk_offset` on; zeros where `chunk` is None."""

    start: int
    end: int
    chunk: RecordId | None
    chunk_offset: int

    def clip(self, start: int, end: int) -> "Piece":
        """The part of this piece within [start, end); the caller knows that they overlap."""
        first = max(start, self.start)
        return Piece(first, min(end, self.end), self.chunk, self.chunk_offset + first - self.start if self.chunk else 0)


class Span(NamedTuple):
    """Bytes `start` to `end` of a file and where they are: in memory, in a chunk (a Piece), or below (`lower`)."""

    start: int
    end: int
    source: "bytes | memoryview | Piece | Inode | None"


@dataclass(frozen=True, slots=True)
class Cut:
    """In the journal's order of events of one file: everything from byte `size` on went away."""

    size: int


class Run:
    """Consecutive written bytes that are still in memory, from `start` on."""

    __slots__ = ("end", "parts", "start")

    def __init__(self, start: int, part: Bytes) -> None:
        self.start = start
        self.end = start + len(part)
        self.parts: list[Bytes] = [part]

    def append(self, part: Bytes) -> None:
        self.parts.append(part)
        self.end += len(part)

    def split(self, nbytes: int) -> "Run | None":
        """Keeps at least `nbytes` of the written parts; the others come back as a run of their own. Copies nothing."""
        kept = 0
        for index, part in enumerate(self.parts):
            if kept >= nbytes:
                rest = Run(self.start + kept, part)
                for other in self.parts[index + 1 :]:
                    rest.append(other)
                del self.parts[index:]
                self.end = self.start + kept
                return rest
            kept += len(part)
        return None

    def joined(self) -> Bytes:
        """All bytes as one buffer; remembered, so that asking again copies nothing."""
        if len(self.parts) != 1:
            self.parts = [b"".join(self.parts)]
        return self.parts[0]

    def gather(self, buffer: bytearray) -> memoryview:
        """All bytes, copied into `buffer`, which is long enough; a view of just them."""
        view = memoryview(buffer)
        at = 0
        for part in self.parts:
            view[at : at + len(part)] = part
            at += len(part)
        return view[:at]

    def patch(self, offset: int, part: Bytes) -> None:
        """Overwrites bytes inside this run; the caller knows that they lie inside."""
        buffer = self.joined()
        if not isinstance(buffer, bytearray):
            buffer = bytearray(buffer)
            self.parts = [buffer]
        at = offset - self.start
        buffer[at : at + len(part)] = part

    def slice(self, start: int, end: int) -> memoryview:
        """A view of file bytes [start, end), which lie inside; valid until the next patch."""
        return memoryview(self.joined())[start - self.start : end - self.start]


class Flight:
    """Bytes on their way into the store. `pieces` is None until the store has answered.

    A truncation that happens meanwhile lowers `limit`: what is applied to the file is clipped by it, what the journal
    is told is not (the truncation itself follows there). `lengths`: of its chunks, where they are cut already.
    """

    __slots__ = ("data", "end", "lengths", "limit", "pieces", "start")

    def __init__(self, start: int, data: Bytes, lengths: Sequence[int] = ()) -> None:
        self.start = start
        self.data = data
        self.end = start + len(data)
        self.limit = self.end
        self.lengths: Final = lengths
        self.pieces: tuple[Piece, ...] | None = None


@dataclass(slots=True)
class FileData:
    """The layers of one file. All offsets and lengths in bytes."""

    lower: "FileData | Inode | None" = None
    visible: int = 0
    pieces: list[Piece] = field(default_factory=list)
    flights: list[Flight] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    unjournaled: list[Flight | Cut] = field(default_factory=list)

    def write(self, offset: int, part: Bytes) -> int:
        """Takes `part` as the newest content from `offset` on; returns by how many bytes memory grew."""
        end = offset + len(part)
        runs = self.runs
        if not runs or runs[-1].end < offset:
            runs.append(Run(offset, part))
            return len(part)
        if runs[-1].end == offset:
            runs[-1].append(part)
            return len(part)
        first = bisect_left(runs, offset, key=_run_end)
        run = runs[first]
        if run.start <= offset and end <= run.end:
            run.patch(offset, part)
            return 0
        return self._write_over(first, offset, end, part)

    def _write_over(self, first: int, offset: int, end: int, part: Bytes) -> int:
        """The general case of `write`: trims the runs from index `first` on that [offset, end) overlaps."""
        runs = self.runs
        before = sum(run.end - run.start for run in runs[first:])
        kept: list[Run] = []
        last = first
        tail: Run | None = None
        while last < len(runs) and runs[last].start < end:
            run = runs[last]
            if run.end > end:
                tail = Run(end, bytes(run.slice(end, run.end)))
            if run.start < offset:
                kept.append(run if run.end <= offset else Run(run.start, bytes(run.slice(run.start, offset))))
            last += 1
        after = runs[last:]
        if kept and kept[-1].end == offset:
            kept[-1].append(part)
        else:
            kept.append(Run(offset, part))
        if tail is not None:
            kept.append(tail)
        runs[first:] = kept + after
        return sum(run.end - run.start for run in runs[first:]) - before

    def truncate(self, size: int) -> int:
        """Drops everything from byte `size` on; returns by how many bytes memory shrank (not negative)."""
        shrunk = 0
        while self.runs and self.runs[-1].end > size:
            run = self.runs.pop()
            shrunk += run.end - max(run.start, size)
            if run.start < size:
                self.runs.append(Run(run.start, bytes(run.slice(run.start, size))))
        for flight in self.flights:
            flight.limit = min(flight.limit, max(size, flight.start))
        while self.pieces and self.pieces[-1].end > size:
            piece = self.pieces.pop()
            if piece.start < size:
                self.pieces.append(piece.clip(piece.start, size))
        self.visible = min(self.visible, size)
        self.unjournaled.append(Cut(size))
        return shrunk

    def launch(self, start: int, data: Bytes, lengths: Sequence[int] = ()) -> Flight:
        """Notes that `data`, formerly in runs, is on its way into the store; `lengths` as in `Flight`."""
        flight = Flight(start, data, lengths)
        self.flights.append(flight)
        self.unjournaled.append(flight)
        return flight

    def land(self, flight: Flight) -> None:
        """The store has answered for `flight` (the oldest one): its pieces become part of the file."""
        assert flight.pieces is not None
        self.flights.remove(flight)
        flight.data = b""  # the journal needs only the pieces, and may be seconds away
        for piece in flight.pieces:
            if piece.start < flight.limit:
                self.place(piece if piece.end <= flight.limit else piece.clip(piece.start, flight.limit))

    def place(self, piece: Piece) -> None:
        """Puts `piece` over whatever pieces were there."""
        pieces = self.pieces
        if not pieces or pieces[-1].end <= piece.start:
            pieces.append(piece)
            return
        first = bisect_right(pieces, piece.start, key=_piece_end)
        last = bisect_left(pieces, piece.end, lo=first, key=_piece_start)
        fresh: list[Piece] = []
        if first < last:
            head, tail = pieces[first], pieces[last - 1]
            if head.start < piece.start:
                fresh.append(head.clip(head.start, piece.start))
            fresh.append(piece)
            if tail.end > piece.end:
                fresh.append(tail.clip(piece.end, tail.end))
        else:
            fresh.append(piece)
        pieces[first:last] = fresh

    def spans(self, start: int, end: int) -> list[Span]:
        """Where the bytes [start, end) are, in order, covering the whole range.

        A span whose source is an Inode is to be looked up in that committed inode; None is zeros.
        """
        found: list[Span] = []
        gaps = [(start, end)]
        gaps = _fill(gaps, ((run.start, run.end, run) for run in self._runs_in(start, end)), found)
        for flight in reversed(self.flights):
            if gaps:
                gaps = _fill(gaps, ((flight.start, flight.limit, flight),), found)
        if gaps:
            gaps = _fill(gaps, ((piece.start, piece.end, piece) for piece in self._pieces_in(start, end)), found)
        for first, last in gaps:
            shown = min(last, self.visible)
            if first < shown:
                if isinstance(self.lower, FileData):
                    found.extend(self.lower.spans(first, shown))
                else:
                    found.append(Span(first, shown, self.lower))
            if shown < last:
                found.append(Span(max(first, shown), last, None))
        found.sort(key=_span_start)
        return found

    def base(self) -> tuple[Inode | None, int]:
        """The committed inode under all layers and how many of its bytes show."""
        lower, visible = self.lower, self.visible
        while isinstance(lower, FileData):
            visible = min(visible, lower.visible)
            lower = lower.lower
        return lower, visible

    def allocated_bytes(self) -> int:
        """Bytes that are not holes. Below pieces it counts as if the part that shows were evenly filled: exact for
        files that are not sparse, and for all once they are committed.
        """
        held = self.pending_bytes()
        for piece in self.pieces:
            if piece.chunk is not None:
                held += piece.end - piece.start
        if self.lower is None or not self.visible:
            return held
        below, size = _allocated(self.lower), _extent_end(self.lower)
        if not below:
            return held
        covered = sum(max(0, min(piece.end, self.visible) - piece.start) for piece in self.pieces)
        covered += sum(max(0, min(run.end, self.visible) - run.start) for run in self.runs)
        shown = max(0, min(self.visible, size) - covered)
        return held + below * shown // max(size, 1)

    def pending_bytes(self) -> int:
        """Bytes in memory: runs, and flights that have not landed."""
        pending = 0
        for run in self.runs:
            pending += run.end - run.start
        for flight in self.flights:
            pending += len(flight.data)
        return pending

    def _runs_in(self, start: int, end: int) -> Sequence[Run]:
        runs = self.runs
        if not runs or runs[-1].end <= start or runs[0].start >= end:
            return ()
        return runs[bisect_right(runs, start, key=_run_end) : bisect_left(runs, end, key=_run_start)]

    def _pieces_in(self, start: int, end: int) -> Sequence[Piece]:
        pieces = self.pieces
        if not pieces or pieces[-1].end <= start or pieces[0].start >= end:
            return ()
        return pieces[bisect_right(pieces, start, key=_piece_end) : bisect_left(pieces, end, key=_piece_start)]


def _allocated(lower: FileData | Inode) -> int:
    return lower.allocated_bytes() if isinstance(lower, FileData) else lower.allocated_bytes


def _extent_end(lower: FileData | Inode) -> int:
    """Size of the file as that layer knows it (its last byte, for a layer that has not been committed)."""
    if isinstance(lower, Inode):
        return lower.size
    ends = [lower.visible, *(run.end for run in lower.runs[-1:]), *(piece.end for piece in lower.pieces[-1:])]
    return max([*ends, *(flight.end for flight in lower.flights)])


def _run_start(run: Run) -> int:
    return run.start


def _run_end(run: Run) -> int:
    return run.end


def _piece_start(piece: Piece) -> int:
    return piece.start


def _piece_end(piece: Piece) -> int:
    return piece.end


def _span_start(span: Span) -> int:
    return span.start


def _source(start: int, end: int, origin: Run | Flight | Piece) -> Span:
    if isinstance(origin, Run):
        return Span(start, end, origin.slice(start, end))
    if isinstance(origin, Flight):
        return Span(start, end, memoryview(origin.data)[start - origin.start : end - origin.start])
    if origin.chunk is None:
        return Span(start, end, None)
    return Span(start, end, origin.clip(start, end))


def _fill(
    gaps: list[tuple[int, int]], cover: Iterable[tuple[int, int, Run | Flight | Piece]], found: list[Span]
) -> list[tuple[int, int]]:
    """Adds to `found` what the sorted, disjoint `cover` says about `gaps`; returns the gaps that are left."""
    left: list[tuple[int, int]] = []
    covers = list(cover)
    for start, end in gaps:
        at = start
        for first, last, origin in covers:
            if last <= at:
                continue
            if first >= end:
                break
            if first > at:
                left.append((at, first))
                at = first
            upto = min(last, end)
            found.append(_source(at, upto, origin))
            at = upto
        if at < end:
            left.append((at, end))
    return left
