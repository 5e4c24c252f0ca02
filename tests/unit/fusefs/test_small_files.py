"""What a small file that is copied into `live` costs the server: in calls, look-ups and hand-overs, not in time.

The requests are those that `cp -a` was seen to cause. For a new file: `getattr` of its directory, `lookup`, `create`,
`getxattr`, `write`, `setattr`, `setxattr`, `release`. Over an old one: `getattr`, `open`, `getattr`, `getxattr`,
`write`, `setattr`, `setxattr`, `release`. The bounds leave a tenth of what the oldest supported Python needs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, TypeVarTuple, cast

import pyfuse3
import pytest
import trio

from fusefs.answers import Answers
from fusefs.browse import Browse
from fusefs.flusher import CHANGE_COST
from fusefs.inodes import live_number
from fusefs.jobs import JOB_TRIGGER_FILES
from fusefs.operations import Operations, StatFs
from fusefs.session import LiveSession
from fusefs.workers import Workers
from repository.format.inode import DirRef, Inode
from repository.format.record import Buffer
from repository.ids import ROOT_FILE_ID
from repository.live.journaling import CHUNK_CLAIM_BYTES
from repository.storage.calls import Calls
from repository.trees.reader import TreeReader
from tests.support.counting import python_calls
from tests.support.sessions import served

FILES: Final = 1_100
SOME: Final = 50
ACCESS_ACL: Final = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
"""What `cp -a` sets for mode 0644."""
NEW_FLAGS: Final = pyfuse3.FlagT(0o100301)
OVER_FLAGS: Final = pyfuse3.FlagT(0o101001)
CALLS_NEW: Final = 170
CALLS_OVER: Final = 205

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Caller(NamedTuple):
    """What handlers ask of a RequestContext, which only pyfuse3 can make."""

    uid: int = 0
    gid: int = 0
    pid: int = 1
    umask: int = 0o022


class Times(NamedTuple):
    """The SetattrFields of futimens."""

    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    update_atime: bool = True
    update_mtime: bool = True
    update_ctime: bool = False


CALLER: Final = cast(pyfuse3.RequestContext, Caller())
TIMES: Final = cast(pyfuse3.SetattrFields, Times())
CAPABILITY: Final = pyfuse3.XAttrNameT(b"security.capability")
ACL_NAME: Final = pyfuse3.XAttrNameT(b"system.posix_acl_access")


class Kernel:
    """Asks for what the kernel asks for while `cp -a` copies small files into one directory."""

    def __init__(self, session: LiveSession) -> None:
        self.ask: Final = Operations(cast(Browse, None), session.ops, cast(StatFs, None), Answers(lambda: False))
        self._times: Final = pyfuse3.EntryAttributes()
        self._times.st_atime_ns = self._times.st_mtime_ns = 1_700_000_000_123_456_789
        self._directory = pyfuse3.InodeT(live_number(ROOT_FILE_ID))

    async def make_directory(self) -> None:
        mode = pyfuse3.ModeT(0o40755)
        made = await self.ask.mkdir(self._directory, pyfuse3.FileNameT(b"directory"), mode, CALLER)
        self._directory = made.st_ino

    async def copy_new(self, number: int) -> pyfuse3.InodeT:
        name, mode = pyfuse3.FileNameT(b"file-%06d" % number), pyfuse3.ModeT(0o100600)
        await self.ask.getattr(self._directory, CALLER)
        await self.ask.lookup(self._directory, name, CALLER)
        opened, made = await self.ask.create(self._directory, name, mode, NEW_FLAGS, CALLER)
        await self._fill(opened.fh, made.st_ino, number)
        return made.st_ino

    async def copy_over(self, inode: pyfuse3.InodeT, number: int) -> None:
        await self.ask.getattr(inode, CALLER)
        opened = await self.ask.open(inode, OVER_FLAGS, CALLER)
        await self.ask.getattr(inode, CALLER)
        await self._fill(opened.fh, inode, number)

    async def _fill(self, handle: pyfuse3.FileHandleT, inode: pyfuse3.InodeT, number: int) -> None:
        with pytest.raises(pyfuse3.FUSEError):
            await self.ask.getxattr(inode, CAPABILITY, CALLER)
        await self.ask.write(handle, 0, b"the bytes of file %d" % number)
        await self.ask.setattr(inode, self._times, TIMES, None, CALLER)
        await self.ask.setxattr(inode, ACL_NAME, ACCESS_ACL, CALLER)
        await self.ask.release(handle)


class Counting(Calls):
    """Counts writes and syncs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def pwrite(self, fd: int, buffer: Buffer, offset: int) -> int:
        self.seen["write"] += 1
        return super().pwrite(fd, buffer, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.seen["write"] += 1
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self.seen["sync"] += 1
        super().fdatasync(fd)


async def test_a_new_file_takes_few_calls(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with served(tmp_path, nursery) as (session, _):
        kernel = Kernel(session)
        await kernel.make_directory()
        await kernel.copy_new(0)
        with python_calls() as calls:
            inodes = [await kernel.copy_new(number) for number in range(1, SOME + 1)]
        assert calls.total() / SOME <= CALLS_NEW, calls.most_common()
        shown = await kernel.ask.getattr(inodes[-1], CALLER)
        assert (shown.st_mode, shown.st_size, shown.st_blocks) == (0o100644, len("the bytes of file 50"), 8)


async def test_a_file_that_is_written_again_is_looked_up_once(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was four times: for its attributes, for their room, for truncating it, and to own it."""
    looked_up: list[bytes] = []

    def lookup(
        self: TreeReader,
        ref: DirRef,
        name: bytes,
        original: Callable[[TreeReader, DirRef, bytes], Inode | None] = TreeReader.lookup,
    ) -> Inode | None:
        looked_up.append(name)
        return original(self, ref, name)

    async with served(tmp_path, nursery) as (session, _):
        kernel = Kernel(session)
        await kernel.make_directory()
        inodes = [await kernel.copy_new(number) for number in range(SOME + 1)]
        await session.checkpoint()
        await kernel.copy_over(inodes[0], 0)  # loads what the checkpoint wrote
        monkeypatch.setattr(TreeReader, "lookup", lookup)
        with python_calls() as calls:
            for number, inode in enumerate(inodes[1:], 1):
                await kernel.copy_over(inode, number)
        assert looked_up == [b"file-%06d" % number for number in range(1, SOME + 1)]
        assert calls.total() / SOME <= CALLS_OVER, calls.most_common()
        await session.checkpoint()
        assert (await kernel.ask.getattr(inodes[-1], CALLER)).st_size == len("the bytes of file 50")


async def test_small_files_are_handed_over_by_the_hundred(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops: list[str] = []
    for kind in ("read", "write", "allocate"):
        _note_hops(monkeypatch, hops, kind)
    counting = Counting()
    async with served(tmp_path, nursery, calls=counting) as (session, _):
        kernel = Kernel(session)
        await kernel.make_directory()
        counting.seen.clear()
        for number in range(FILES):
            await kernel.copy_new(number)
        await session.flusher.sync()
        jobs = -(-FILES // JOB_TRIGGER_FILES)
        assert hops.count("write") <= jobs + 1, "one for each job, and one for the flush"
        assert hops.count("read") == 0 and hops.count("allocate") <= 3
        assert counting.seen["write"] <= 3 * jobs + 5 and counting.seen["sync"] <= 4, counting.seen


async def test_what_changes_again_before_a_flush_claims_nothing_more(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A file is told of once in a flush, however many requests made it what it is. When each of them claimed for
    itself, a round began after 2,000 files."""
    async with served(tmp_path, nursery) as (session, _):
        kernel = Kernel(session)
        await kernel.make_directory()
        taken = session.flusher.taken_bytes
        for number in range(SOME):
            await kernel.copy_new(number)
        each = (session.flusher.taken_bytes - taken) / SOME
        xattr = len(ACL_NAME) + len(ACCESS_ACL) + 8
        assert CHANGE_COST + CHUNK_CLAIM_BYTES <= each <= CHANGE_COST + CHUNK_CLAIM_BYTES + xattr


def _note_hops(monkeypatch: pytest.MonkeyPatch, hops: list[str], kind: str) -> None:
    """Notes each call of `Workers.kind` in `hops`."""
    original = getattr(Workers, kind)

    async def noted(self: Workers, function: Callable[[*Ts], R], *args: *Ts) -> R:
        hops.append(kind)
        answer: R = await original(self, function, *args)
        return answer

    monkeypatch.setattr(Workers, kind, noted)
