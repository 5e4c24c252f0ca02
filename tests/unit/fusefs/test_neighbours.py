"""Reading ahead among the small files of directories: how many hops to a worker a copy of many of them takes."""

from collections.abc import Sequence

import pytest
import trio

from fusefs.inodes import InodeNumber
from fusefs.neighbours import GUESSES_MAX, MISSED_MIN, Neighbours
from fusefs.places import Place, Row
from fusefs.readpath import ReadPath, Stream
from fusefs.trees import Trees
from fusefs.workers import Workers
from repository.format.inode import DirRef, Entry, Extent, Inode, NodeKind
from repository.ids import FileId, RecordId
from repository.trees.reader import RecordCache, TreeReader
from repository.trees.writer import TreeWriter
from tests.support.memory_store import CountingStore

DIRECTORIES = 30
FILES = 12
SIZE = 1000


class Plain:
    def __init__(self, payload: bytes) -> None:
        self.payload = payload


class Chunks:
    """Every chunk there could be; each call is a hop."""

    def __init__(self) -> None:
        self.hops: list[int] = []

    def read_many(self, ids: Sequence[RecordId]) -> list[Plain]:
        self.hops.append(len(ids))
        return [Plain(one * (SIZE // len(one)) + one[: SIZE % len(one)]) for one in ids]


class Mount:
    """A directory of directories of small files, whose numbers run against their names."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.store = CountingStore()
        writer = TreeWriter(self.store, TreeReader(RecordCache(self.store, 1 << 24, inline=True)), self.store.lease())
        self.refs = [writer.write_directory(self._files(directory))[0] for directory in range(DIRECTORIES)]
        self.top = writer.write_directory(
            [
                Entry(b"%02d" % number, Inode(NodeKind.DIRECTORY, FileId(number + 2), directory=ref))
                for number, ref in enumerate(self.refs)
            ]
        )[0]
        workers = Workers()
        cache = RecordCache(self.store, 1 << 20, inline=True)
        trees = Trees(cache.view(inline=False), workers)
        self.chunks = Chunks()
        self.reads = ReadPath(self.chunks, trees, workers, nursery)
        self.neighbours = Neighbours(TreeReader(cache), trees, self.reads, workers, nursery)
        self.trees = trees
        self.waited = 0

    @staticmethod
    def _files(directory: int) -> list[Entry]:
        found: list[Entry] = []
        for number in range(FILES):
            file_id = 10_000 + directory * 100 + FILES - number
            extents = (Extent(0, SIZE, RecordId(file_id.to_bytes(32, "big")), 0),)
            inode = Inode(NodeKind.FILE, FileId(file_id), size=SIZE, extents=extents, allocated_bytes=SIZE)
            found.append(Entry(b"%02d" % number, inode))
        return found

    async def enter(self, directory: int) -> None:
        """As `opendir` does."""
        assert self.top.content is not None and self.top.attrs is not None
        place = Place(Row(InodeNumber(1), self.top.content, self.top.attrs), directory)
        await self.trees.ask(self.trees.reader.page, self.top, 0)
        await self.neighbours.listed(place)
        self.neighbours.entered(self.refs[directory], place)
        await self.trees.ask(self.trees.reader.page, self.refs[directory], 0)

    async def read(self, directory: int, position: int) -> None:
        """As `open` and `read` do."""
        ref: DirRef = self.refs[directory]
        assert ref.content is not None and ref.attrs is not None
        file = await self.trees.ask(self.trees.reader.file_at, ref.content, position)
        assert file is not None
        data = self.reads.at_hand(file, 0, 4096)
        if data is None:
            self.waited += 1
            self.neighbours.missed(Place(Row(InodeNumber(2), ref.content, ref.attrs), position), file.size)
            data = await self.reads.read(file, Stream(), 0, 4096)
        assert isinstance(file.extents, tuple)
        assert bytes(data) == self.chunks.read_many([file.extents[0].chunk])[0].payload
        self.chunks.hops.pop()


@pytest.mark.parametrize("by_name", [False, True])
async def test_copying_many_small_files_takes_about_two_hops_a_directory(nursery: trio.Nursery, by_name: bool) -> None:
    """It was one for nearly every other file, half of what a copy cost the server beyond its requests."""
    mount = Mount(nursery)
    for directory in range(DIRECTORIES):
        await mount.enter(directory)
        for position in range(FILES) if by_name else reversed(range(FILES)):
            await mount.read(directory, position)
            await trio.sleep(0)
    assert sum(mount.chunks.hops) == DIRECTORIES * FILES, "each chunk once"
    assert len(mount.chunks.hops) <= 2 * DIRECTORIES + MISSED_MIN
    assert mount.waited <= 2 * DIRECTORIES + MISSED_MIN


async def test_the_first_files_of_the_next_directory_are_there_when_it_is_entered(nursery: trio.Nursery) -> None:
    mount = Mount(nursery)
    for directory in range(5):
        await mount.enter(directory)
        for position in range(FILES):
            await mount.read(directory, position)
        while mount.neighbours._fetching:
            await trio.sleep(0.001)
    mount.waited = 0
    await mount.enter(5)
    for position in range(FILES):
        await mount.read(5, position)
    assert mount.waited == 0


async def test_a_file_here_and_there_brings_no_other(nursery: trio.Nursery) -> None:
    mount = Mount(nursery)
    for position in (5, 9):
        for directory in range(DIRECTORIES):
            await mount.enter(directory)
            await mount.read(directory, position)
    assert mount.chunks.hops == [1] * (2 * DIRECTORIES)


async def test_wrong_guesses_end(nursery: trio.Nursery) -> None:
    """After a copy, a walk that reads nothing: what it fetches in vain is bounded."""
    mount = Mount(nursery)
    for position in range(FILES):
        await mount.read(0, position)
    while mount.neighbours._fetching:
        await trio.sleep(0.001)
    before = len(mount.chunks.hops)
    for directory in range(1, DIRECTORIES):
        await mount.enter(directory)
        while mount.neighbours._fetching:
            await trio.sleep(0.001)
    assert before < len(mount.chunks.hops) <= before + 2 * (GUESSES_MAX + 1)
