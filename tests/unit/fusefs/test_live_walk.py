"""A walk over `live` that nothing is in memory of, and reading its files: how often that waits for a worker."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import pyfuse3
import pytest
import trio

from fusefs.inodes import live_number
from fusefs.session import LiveSession
from fusefs.workers import Workers
from repository.format.catalog import SnapshotKind
from repository.format.inode import NodeKind
from repository.ids import ROOT_FILE_ID
from repository.live import names
from tests.support.sessions import served, write_file

DIRECTORIES: Final = 150
FILES: Final = 3
HOPS_MAX: Final = 15
"""Each directory had one of its own."""
SMALL_FILES: Final = 200
READ_HOPS_MAX: Final = 12
"""Each file had one of its own."""

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


async def walk(session: LiveSession, replies: list[tuple[bytes, pyfuse3.EntryAttributes]], number: int) -> list[bytes]:
    """All names below a directory, as `find` meets them."""
    handle = await session.ops.opendir(number)
    found: list[bytes] = []
    below: list[tuple[bytes, int]] = []
    at = 0
    while True:
        replies.clear()
        await session.ops.readdir(handle, at, pyfuse3.ReaddirToken())
        if not replies:
            break
        at += len(replies)
        found += [name for name, _ in replies]
        below += [(name, entry.st_ino) for name, entry in replies if stat.S_ISDIR(entry.st_mode)]
    session.ops.release(handle)
    for name, inside in below:
        found += [name + b"/" + one for one in await walk(session, replies, inside)]
    return found


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was asked of reading workers."""
    found: list[object] = []
    read = Workers.read

    async def counted(self: Workers, function: Callable[[*Ts], R], *args: *Ts) -> R:
        found.append(function)
        return await read(self, function, *args)

    monkeypatch.setattr(Workers, "read", counted)
    return found


async def test_directories_come_into_memory_with_their_neighbours(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, hops: list[object]
) -> None:
    replies: list[tuple[bytes, pyfuse3.EntryAttributes]] = []

    def reply(_: object, name: bytes, entry: pyfuse3.EntryAttributes, __: int) -> bool:
        replies.append((name, entry))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    async with served(tmp_path, nursery) as (session, _):
        expected: list[bytes] = []
        for number in range(DIRECTORIES):
            name = b"%03d" % number
            node = names.create(session.tree, ROOT_FILE_ID, name, names.Wish(NodeKind.DIRECTORY, 0o755, 0, 0))
            session.tree.remember(ROOT_FILE_ID, name, node.file_id, linked=False)
            for file in range(FILES):
                names.create(session.tree, node.file_id, b"%d" % file, names.Wish(NodeKind.FILE, 0o644, 0, 0))
            expected += [name, *(name + b"/%d" % file for file in range(FILES))]
        await session.commit(SnapshotKind.NAMED, "all")
        session.tree.reader.cache.clear()
        hops.clear()
        assert sorted(await walk(session, replies, live_number(ROOT_FILE_ID))) == sorted(expected)
        assert 0 < len(hops) <= HOPS_MAX, f"{len(hops)} hops"


async def test_small_files_come_into_memory_with_their_neighbours(
    tmp_path: Path, nursery: trio.Nursery, hops: list[object]
) -> None:
    async with served(tmp_path, nursery) as (session, _):
        for number in range(SMALL_FILES):
            node = await write_file(session, b"%03d" % number, b"the bytes of file %d" % number)
            session.tree.remember(ROOT_FILE_ID, b"%03d" % number, node.file_id, linked=False)
        await session.commit(SnapshotKind.NAMED, "all")
        hops.clear()
        for number in range(SMALL_FILES):
            entry = await session.ops.lookup(live_number(ROOT_FILE_ID), b"%03d" % number)
            handle = (await session.ops.open(entry.st_ino, 0)).fh
            assert bytes(await session.ops.read(handle, 0, 4096)) == b"the bytes of file %d" % number
            session.ops.release(handle)
        assert 0 < len(hops) <= READ_HOPS_MAX, f"{len(hops)} hops"
