"""The writable half of a mount, without a kernel."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from fusefs.neighbours import Neighbours
from fusefs.readpath import ReadPath
from fusefs.session import LiveSession
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.format.inode import NodeKind
from repository.ids import ROOT_FILE_ID
from repository.live import names
from repository.live.node import Node
from repository.live.writing import write
from repository.repo import Repository
from repository.storage.calls import Calls
from tests.support.repositories import SetClock, make, open_for_writing


@asynccontextmanager
async def served(
    path: Path, nursery: trio.Nursery, *, calls: Calls | None = None, ends: bool = True
) -> AsyncIterator[tuple[LiveSession, Repository]]:
    """A new repository and its `live`. `ends` False: it cannot end well."""
    clock = SetClock()
    make(path / "repo", clock)
    with open_for_writing(path / "repo", clock, calls) as repository:
        workers = Workers()
        trees = Trees(repository.reader.cache.view(inline=False), workers)
        reads = ReadPath(repository.store, trees, workers, nursery)
        neighbours = Neighbours(repository.reader, trees, reads, workers, nursery)
        session = LiveSession(repository, reads, trees, neighbours, workers, nursery)
        yield session, repository
        if ends:
            await session.stop()


async def write_file(session: LiveSession, name: bytes, data: bytes) -> Node:
    """A new file in `live`, its bytes in memory."""
    await session.flusher.admit_change()
    node = names.create(session.tree, ROOT_FILE_ID, name, names.Wish(NodeKind.FILE, 0o644, 0, 0))
    admitted = await session.flusher.admit_write(len(data), 0)
    write(session.tree, node.file_id, 0, data)
    session.jobs.took_in(admitted)
    return node
