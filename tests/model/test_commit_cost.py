"""What a commit costs follows what changed, not what there is: counted in system calls and bytes, not in seconds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from repository.format.inode import NodeKind
from repository.format.record import Buffer
from repository.ids import ROOT_FILE_ID
from repository.live import names, writing
from repository.repo import Repository
from repository.storage.calls import Calls
from tests.support.sync_live import SyncLive

pytestmark = pytest.mark.slow

FILES_A_DIRECTORY = 40
CHANGED = 10


class Counting(Calls):
    """Counts the bytes of each kind of call."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        found = super().pread(fd, length, offset)
        self._count("pread", len(found))
        return found

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        written = super().pwrite(fd, buffer, offset)
        self._count("pwrite", written)
        return written

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        written = super().pwritev(fd, buffers, offset)
        self._count("pwrite", written)
        return written

    def _count(self, kind: str, nbytes: int) -> None:
        self.calls[kind] += 1
        self.nbytes[kind] += nbytes


def populate(live: SyncLive, files: int) -> None:
    """`files` small files, in directories two levels deep."""
    directory = names.Wish(NodeKind.DIRECTORY, 0o755, 0, 0)
    file = names.Wish(NodeKind.FILE, 0o644, 0, 0)
    for number in range(files // FILES_A_DIRECTORY):
        top = b"top-%02d" % (number % 20)
        if live.tree.lookup(ROOT_FILE_ID, top) is None:
            names.create(live.tree, ROOT_FILE_ID, top, directory)
        below = names.create(live.tree, live.resolve((top,)), b"dir-%05d" % number, directory)
        for index in range(FILES_A_DIRECTORY):
            node = names.create(live.tree, below.file_id, b"file-%03d" % index, file)
            writing.write(live.tree, node.file_id, 0, b"%d of %d" % (index, number))
    live.commit()


def cost_of_ten_changes(folder: Path, files: int) -> Counting:
    """A mount that finds `files` files, changes ten in ten directories, and commits."""
    Repository.init(folder, reserve_bytes=0)
    live = SyncLive(folder)
    populate(live, files)
    live.close()
    counting = Counting()
    live = SyncLive(folder, calls=counting)
    step = files // FILES_A_DIRECTORY // CHANGED
    counting.calls.clear()
    counting.nbytes.clear()
    for number in range(0, step * CHANGED, step):
        path = (b"top-%02d" % (number % 20), b"dir-%05d" % number, b"file-007")
        writing.write(live.tree, live.resolve(path), 0, b"changed")
    assert live.commit() is not None
    live.kill()
    return counting


def test_a_commit_costs_what_changed(tmp_path: Path) -> None:
    small = cost_of_ten_changes(tmp_path / "small", 4_000)
    large = cost_of_ten_changes(tmp_path / "large", 80_000)
    print(small.calls, small.nbytes, large.calls, large.nbytes)
    assert large.calls["pwrite"] <= small.calls["pwrite"] * 1.25 + 4
    assert large.calls["pread"] <= small.calls["pread"] * 1.5 + 8
    assert large.nbytes["pwrite"] <= small.nbytes["pwrite"] * 2
    assert large.nbytes["pread"] <= small.nbytes["pread"] * 2
