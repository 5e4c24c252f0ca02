"""Writing into files of the live tree, and handing what was written to the store in batches.

The tree takes written bytes into memory (runs); a *job* moves many of them, from many files, into flights; a worker
thread chunks and stores them (`run_job`, the only function here that may be called off the tree's thread); `land`
puts the answers into the files. Jobs land in the order in which they were taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from repository.chunker import Chunker, is_zero
from repository.format.record import RecordKind, Stored
from repository.ids import FileId
from repository.leases import Lease
from repository.ledger import Claim
from repository.live.attributes import drop_privileges
from repository.live.filedata import Bytes, Flight, Piece, Run
from repository.live.node import Node
from repository.live.tree import LiveTree
from repository.units import MIB

STREAM_RUN_BYTES: Final = 2 * MIB
"""A run at least this long is taken for a stream: it is cut at content-defined borders, and its tail stays for the
bytes that follow. Twice the largest chunk, so that at least one border lies in it."""
JOB_BYTES_MAX: Final = 4 * MIB
"""Bytes in one job, or little more: a hand-over to a thread costs nothing beside it, and several are under way."""
JOB_RUNS_MAX: Final = 2_048
"""Runs in one job: bounds the work that happens at once on the event loop when it lands."""


class ChunkStore(Protocol):
    """Where chunks go."""

    def put(
        self, kind: RecordKind, payloads: Sequence[Bytes], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]: ...


GATHER_MIN_BYTES: Final = 1 * MIB
"""Runs from this length on are copied into a buffer that is used again; smaller ones into fresh memory."""
BUFFER_BYTES: Final = JOB_BYTES_MAX + 1 * MIB
"""A run is taken in whole writes, of at most 1 MiB each."""
BUFFERS_MAX: Final = 8
"""Buffers kept: as many as jobs are usually under way, with their successors."""


@dataclass(slots=True)
class Job:
    """Flights on their way into the store, oldest first; `data_bytes` and `runs` are what their claims were for.

    `buffers` hold the bytes of long runs until the job has landed.
    """

    flights: list[tuple[Node, Flight]] = field(default_factory=list)
    buffers: list[bytearray] = field(default_factory=list)
    data_bytes: int = 0
    runs: int = 0


def write(tree: LiveTree, file_id: FileId, offset: int, part: bytes) -> Node:
    """Takes `part` as the bytes from `offset` on of an open file. The caller holds a claim for it."""
    node = tree.change(file_id)
    data = node.data
    assert data is not None
    tree.run_bytes += data.write(offset, part)
    tree.with_runs[file_id] = node
    end = offset + len(part)
    node.size = max(node.size, end)
    if node.mode & 0o6000 or node.xattrs:
        drop_privileges(node)
    node.mtime_ns = node.ctime_ns = tree.clock.now_ns()
    return node


def take(tree: LiveTree, chunker: Chunker, *, final: bool, closed: set[FileId] | None = None) -> Job | None:
    """Moves written bytes into a job; None when there is nothing to do now.

    `final`: everything, up to the job's bound. Otherwise streams are cut and keep their tails, and only files in
    `closed` are taken whole; when that finds nothing, whatever is longest in memory.
    """
    job = Job()
    chosen = list(tree.with_runs.items())
    for file_id, node in chosen:
        if _is_full(job):
            break
        whole = final or (closed is not None and file_id in closed)
        _take_from(tree, job, node, chunker, whole=whole)
    if not job.flights and not final and chosen:
        _, node = max(chosen, key=_run_bytes)
        _take_from(tree, job, node, chunker, whole=True)
    return job if job.flights else None


def _is_full(job: Job) -> bool:
    return job.data_bytes >= JOB_BYTES_MAX or job.runs >= JOB_RUNS_MAX


def _run_bytes(item: tuple[FileId, Node]) -> int:
    data = item[1].data
    return 0 if data is None else sum(run.end - run.start for run in data.runs)


def _take_from(tree: LiveTree, job: Job, node: Node, chunker: Chunker, *, whole: bool) -> None:
    data = node.data
    assert data is not None
    left: list[Run] = []
    for run in data.runs:
        if _is_full(job) or (not whole and run.end - run.start < STREAM_RUN_BYTES):
            left.append(run)
            continue
        rest = run.split(JOB_BYTES_MAX)
        buffer = _gathered(tree, job, run)
        lengths: list[int] = []
        if not whole or rest is not None:
            lengths = chunker.lengths(buffer, final=False)
            length = sum(lengths)
            tail = memoryview(buffer)[length:]
            if len(tail):
                rest = _in_front(Run(run.start + length, bytes(tail)), rest)
            buffer = memoryview(buffer)[:length]
        if rest is not None:
            left.append(rest)
        if len(buffer):
            job.flights.append((node, data.launch(run.start, buffer, lengths)))
            job.data_bytes += len(buffer)
            job.runs += 1
    data.runs = left
    if not left:
        tree.with_runs.pop(node.file_id, None)


def _gathered(tree: LiveTree, job: Job, run: Run) -> Bytes:
    length = run.end - run.start
    if len(run.parts) == 1 or not GATHER_MIN_BYTES <= length <= BUFFER_BYTES:
        return run.joined()
    buffer = tree.buffers.pop() if tree.buffers else bytearray(BUFFER_BYTES)
    job.buffers.append(buffer)
    return run.gather(buffer)


def _in_front(run: Run, rest: Run | None) -> Run:
    """`run`, continued by the parts of `rest`."""
    for part in () if rest is None else rest.parts:
        run.append(part)
    return run


def run_job(
    job: Job, store: ChunkStore, chunker: Chunker, lease: Lease, claim: Claim | None = None
) -> list[tuple[Piece, ...]]:
    """Chunks and stores the bytes of a job; the pieces of each flight, in order. For a worker thread.

    Raises what the store raises; nothing of the tree has changed then.
    """
    wanted: list[tuple[int, int, int]] = []
    payloads: list[Bytes] = []
    answers: list[list[Piece]] = [[] for _ in job.flights]
    for index, (_, flight) in enumerate(job.flights):
        view = memoryview(flight.data)
        start = 0
        for length in flight.lengths or _lengths(flight.data, chunker):
            end = start + length
            part = view[start:end]
            first = flight.start + start
            if is_zero(part):
                answers[index].append(Piece(first, flight.start + end, None, 0))
            else:
                wanted.append((index, first, flight.start + end))
                payloads.append(part)
            start = end
    stored = store.put(RecordKind.CHUNK, payloads, lease, claim) if payloads else []
    for (index, first, last), answer in zip(wanted, stored, strict=True):
        answers[index].append(Piece(first, last, answer.id, 0))
    return [tuple(sorted(pieces)) if len(pieces) > 1 else tuple(pieces) for pieces in answers]


def _lengths(data: Bytes, chunker: Chunker) -> list[int]:
    return [len(data)] if len(data) <= chunker.parameters.min_bytes else chunker.lengths(data, final=True)


def land(tree: LiveTree, job: Job, answers: list[tuple[Piece, ...]]) -> None:
    """Puts the answers of the store into the files. In the order of taking, on the tree's thread."""
    for (node, flight), pieces in zip(job.flights, answers, strict=True):
        flight.pieces = pieces
        assert node.data is not None
        node.data.land(flight)
    tree.run_bytes -= job.data_bytes
    tree.buffers += job.buffers[: BUFFERS_MAX - len(tree.buffers)]
