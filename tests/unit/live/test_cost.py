"""What storing and committing what was written costs: in calls for a file, in bytes that are looked at."""

import random
from pathlib import Path
from typing import Final

import pytest

from repository.chunker import Chunker
from repository.format.catalog import SnapshotKind
from repository.format.inode import NodeKind
from repository.format.record import Buffer
from repository.ids import ROOT_FILE_ID
from repository.live import names, writing
from repository.repo import Repository
from repository.units import MIB
from tests.support.counting import python_calls
from tests.support.sync_live import SyncLive

FILES: Final = 400
FLUSH_CALLS: Final = 17
COMMIT_CALLS: Final = 35
STREAM_BYTES: Final = 24 * MIB


def test_a_new_file_is_committed_in_few_calls(tmp_path: Path) -> None:
    Repository.init(tmp_path / "repo", reserve_bytes=0)
    live = SyncLive(tmp_path / "repo")
    try:
        for number in range(FILES):
            wish = names.Wish(NodeKind.FILE, 0o644, 0, 0)
            node = names.create(live.tree, ROOT_FILE_ID, b"file-%04d" % number, wish)
            writing.write(live.tree, node.file_id, 0, b"the bytes of file %d" % number)
        live.store_runs()
        with python_calls() as flushing:
            live.flush()
        assert flushing.total() / FILES <= FLUSH_CALLS, flushing.most_common()
        with python_calls() as committing:
            assert live.commit(SnapshotKind.NAMED, "all") is not None
        assert committing.total() / FILES <= COMMIT_CALLS, committing.most_common()
    finally:
        live.kill()


def test_a_stream_is_cut_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tree's thread, which keeps the tail for what follows. The worker cut it all again."""
    scanned: list[int] = []

    class Counting(Chunker):
        def lengths(self, buffer: Buffer, *, final: bool) -> list[int]:
            scanned.append(len(buffer))
            return super().lengths(buffer, final=final)

    Repository.init(tmp_path / "repo", reserve_bytes=0)
    live = SyncLive(tmp_path / "repo")
    live.chunker = Counting(live.repository.config.chunker)
    try:
        node = names.create(live.tree, ROOT_FILE_ID, b"stream", names.Wish(NodeKind.FILE, 0o644, 0, 0))
        data = random.Random(7).randbytes(STREAM_BYTES)
        for start in range(0, STREAM_BYTES, MIB):
            writing.write(live.tree, node.file_id, start, data[start : start + MIB])
        live.store_runs()
        assert STREAM_BYTES <= sum(scanned) <= STREAM_BYTES * 5 // 4, "a tail of at most a chunk a job, twice"
        assert live.content(live.tree.resolve(node.file_id)) == data
    finally:
        live.kill()
