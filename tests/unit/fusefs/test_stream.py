"""What a large file that is copied into `live`, and a commit of many, cost the loop thread: in copies, hand-overs and
calls, not in time."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import pytest
import trio

from fusefs import workers
from fusefs.inodes import live_number
from fusefs.jobs import JOB_TRIGGER_BYTES
from fusefs.live_ops import WRITE_BYTES
from fusefs.workers import Workers
from repository.format.journal import NodeChange
from repository.format.record import Buffer
from repository.live import attributes as change
from repository.live import journaling
from repository.live.filedata import Run
from repository.storage.calls import Calls
from repository.units import MIB
from tests.support.counting import python_calls
from tests.support.sessions import served, write_file

STREAM_BYTES: Final = 32 * MIB
CALLS_A_MIB: Final = 160
"""Of a write of 1 MiB and its part of a job, on the loop thread; 75 of them seen."""
FILES: Final = 300

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Counting(Calls):
    """Counts writes of chunks; what a pack's header needs is small."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.seen["write"] += sum(map(len, buffers)) > 4096
        return super().pwritev(fd, buffers, offset)


async def test_a_stream_is_copied_once_and_handed_over_in_large_pieces(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()

    def gather(self: Run, buffer: bytearray, original: Callable[[Run, bytearray], memoryview] = Run.gather) -> Buffer:
        seen["gathered"] += self.end - self.start
        return original(self, buffer)

    async def hop(self: Workers, function: Callable[[*Ts], R], *args: *Ts) -> R:
        seen["hops"] += 1
        answer: R = await original(self, function, *args)
        return answer

    original = Workers.write
    monkeypatch.setattr(Run, "gather", gather)
    monkeypatch.setattr(Workers, "write", hop)
    # Of two writers one may get room in the middle of what the other places, which is a write more now and then.
    monkeypatch.setattr(workers, "WRITE_THREADS", 1)
    counting = Counting()
    data = random.Random(5).randbytes(STREAM_BYTES)
    async with served(tmp_path, nursery, calls=counting) as (session, _):
        node = await write_file(session, b"stream", b"")
        handle = (await session.ops.open(live_number(node.file_id), 1)).fh
        counting.seen.clear()
        with python_calls() as calls:
            for start in range(0, STREAM_BYTES, WRITE_BYTES):
                await session.ops.write(handle, start, data[start : start + WRITE_BYTES])
        session.ops.release(handle)
        await session.flusher.sync()
        jobs = STREAM_BYTES // JOB_TRIGGER_BYTES
        assert seen["hops"] <= jobs + 2, "one for each job, the tail, and the flush"
        assert seen["gathered"] <= STREAM_BYTES * 5 // 4, "a tail of at most a chunk a job, twice"
        assert counting.seen["write"] <= 2 * jobs + 4, "one for each job and pack"
        assert calls.total() / (STREAM_BYTES // MIB) <= CALLS_A_MIB, calls.most_common(20)
        assert (await session.ops.read((await session.ops.open(live_number(node.file_id), 0)).fh, 0, 4096)) == data[
            :4096
        ]


async def test_cp_is_told_to_write_in_large_pieces(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with served(tmp_path, nursery) as (session, _):
        node = await write_file(session, b"file", b"x")
        assert (await session.ops.getattr(live_number(node.file_id))).st_blksize == WRITE_BYTES


async def test_the_moment_of_a_flush_only_copies(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is served in it. When it made the journal's values of 7,000 files, that took 60 to 120 ms."""
    async with served(tmp_path, nursery) as (session, _):
        for number in range(FILES):
            await write_file(session, b"file-%04d" % number, b"the bytes of file %d" % number)
        event = session.jobs.take_all()
        await session.jobs.wait_for(event)
        with python_calls() as calls, monkeypatch.context() as patch:
            for made in ("Inode", "NodeChange", "NameChange", "ExtentDelta", "Extent"):
                patch.setattr(journaling, made, _not_now)
            captured = journaling.capture(session.tree)
        assert len(captured.nodes) >= FILES and len(captured.bindings) == FILES
        assert calls.total() <= 2 * (FILES + 1) + 10, calls.most_common()
        for node in list(session.tree.overlay.values()):
            change.set_attributes(session.tree, node.file_id, change.Wanted(mode=0o777))
        told = [one.inode.mode for one in journaling.changes_of(captured) if isinstance(one, NodeChange)]
        assert len(told) >= FILES and 0o777 not in told, "it tells what was then"


def _not_now(*_: object, **__: object) -> None:
    raise AssertionError("this can be made afterwards")
