"""The writable half of a mount, without a kernel: jobs, rounds and commits, and what failures leave behind."""

import errno
import os
import threading
from pathlib import Path
from typing import Final

import pytest
import trio

from fusefs import jobs
from repository.chunker import Chunker
from repository.errors import NoSpaceError, VolumeError
from repository.format.catalog import SnapshotKind
from repository.ids import ROOT_FILE_ID
from repository.leases import Lease
from repository.ledger import Claim
from repository.live.filedata import Piece
from repository.live.tree import LiveTree
from repository.live.writing import Job, land, run_job
from repository.storage.calls import Calls
from repository.store import RecordStore
from tests.support.sessions import served, write_file
from tests.support.sync_live import picture_of

PATIENCE_S: Final = 60.0


class BlindCalls(Calls):
    """Nobody can look at a pack while `blind`: a disk that does not answer."""

    blind = False

    def stat(self, path: str) -> os.stat_result:
        if self.blind and path.endswith(".pack"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().stat(path)


async def test_a_commit_that_cannot_look_at_the_disk_leaves_nothing_frozen(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The journal's floor is asked of the disk. Asked after the freeze, an I/O error there left a frozen generation
    that nobody remembered: every later commit failed, and the files were in no snapshot."""
    calls = BlindCalls()
    async with served(tmp_path, nursery, calls=calls) as (session, repository):
        await write_file(session, b"first", b"1" * 100)
        calls.blind = True
        with pytest.raises(VolumeError):
            await session.commit(SnapshotKind.NAMED, "failed")
        calls.blind = False
        assert session.tree.frozen == {} and list(session.tree.overlay)
        await write_file(session, b"second", b"2" * 100)
        slot = await session.commit(SnapshotKind.NAMED, "whole")
        assert slot is not None
        files = {path: seen[-1] for path, seen in picture_of(repository, slot).items()}
        assert files == {(b"first",): b"1" * 100, (b"second",): b"2" * 100}
        assert [one.name for one in repository.listed()] == ["whole"]


async def test_jobs_land_in_the_order_in_which_they_were_taken(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is stored first: its bytes wait for those before them."""
    began: list[Job] = []
    landed: list[Job] = []
    first_runs, second_done = threading.Event(), threading.Event()

    def store_second_first(
        job: Job, store: RecordStore, chunker: Chunker, lease: Lease, claim: Claim | None
    ) -> list[tuple[Piece, ...]]:
        began.append(job)
        is_first = len(began) == 1
        first_runs.set()
        if is_first:
            assert second_done.wait(PATIENCE_S), "the second job did not run beside the first"
        answers = run_job(job, store, chunker, lease, claim)
        second_done.set()
        return answers

    def note(tree: LiveTree, job: Job, answers: list[tuple[Piece, ...]]) -> None:
        landed.append(job)
        land(tree, job, answers)

    monkeypatch.setattr(jobs, "run_job", store_second_first)
    monkeypatch.setattr(jobs, "land", note)
    async with served(tmp_path, nursery) as (session, _):
        await write_file(session, b"first", b"1" * 100)
        session.jobs.pump(force=True)
        await trio.to_thread.run_sync(first_runs.wait, PATIENCE_S)
        await write_file(session, b"second", b"2" * 100)
        session.jobs.pump(force=True)
        await session.flusher.sync()
        assert len(landed) == 2 and landed == began


@pytest.mark.logs("job.no_space")
async def test_a_job_that_finds_no_room_keeps_its_bytes_and_is_tried_again(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[NoSpaceError] = []

    def refuse_once(
        job: Job, store: RecordStore, chunker: Chunker, lease: Lease, claim: Claim | None
    ) -> list[tuple[Piece, ...]]:
        if not refused:
            raise NoSpaceError("full")
        return run_job(job, store, chunker, lease, claim)

    async def relief(error: NoSpaceError) -> None:
        refused.append(error)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(jobs, "run_job", refuse_once)
    async with served(tmp_path, nursery) as (session, _):
        monkeypatch.setattr(session.guard, "relief", relief)
        await write_file(session, b"file", b"1" * 100)
        await session.flusher.sync()
        assert len(refused) == 1
        slot = await session.commit(SnapshotKind.NAMED, "whole")
        assert slot is not None and slot.totals.content_bytes == 100


@pytest.mark.logs("session.failed", "store.failed")
async def test_after_a_failed_write_nothing_is_acknowledged_any_more(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[tuple[Piece, ...]]:
        raise VolumeError("gone", errno.EIO)

    async with served(tmp_path, nursery, ends=False) as (session, _):
        await write_file(session, b"kept", b"0" * 100)
        await session.flusher.sync()
        monkeypatch.setattr(jobs, "run_job", fail)
        await write_file(session, b"lost", b"1" * 100)
        for refused in (session.flusher.sync, session.flusher.admit_change, session.checkpoint):
            with pytest.raises(VolumeError) as caught:
                await refused()
            assert caught.value.errno == errno.EIO
        found = session.tree.find(ROOT_FILE_ID, b"lost")
        assert found is not None and found[0].size == 100
