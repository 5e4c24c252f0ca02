"""Makes the golden repository: python -m tests.format.make_golden, as root, from the top of the checkout.

Done once for each format. What it writes is what the tests of this directory hold all later releases to, so it refuses
to write over what is there unless it is told --again; that is right only before a format's first release.

Expectations come from what is put in: the live tree's rows are taken from memory before a commit writes them, bytes are
compared with those that were written, and the straight snapshot with what the kernel says of its files.
"""

import os
import random
import secrets
import shutil
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple
from unittest import mock

from repository import lock
from repository.format.catalog import Slot, SlotState, SnapshotKind
from repository.format.inode import NodeKind
from repository.format.intent import INTENT_BYTES
from repository.ids import SnapshotId
from repository.journal import pending
from repository.live import attributes
from repository.policy.collect import Safety
from repository.repo import Repository
from tests.format import golden
from tests.format.golden import Expected, ExpectedSnapshot, Row
from tests.format.golden_mount import Mount
from tests.format.golden_source import NAMED_USER, agrees, make_source
from tests.format.ours import snapshot_rows
from tests.support.calls import RecordingCalls
from tests.support.repositories import SetClock
from tests.support.sources import store
from tests.support.world import Path_

SEED: Final = 20261
QUOTA_BYTES: Final = 200 * 1024 * 1024
RESERVE_BYTES: Final = 64 * 1024
BIG_DIRECTORY: Final = 1_600
TIED: Final = 400
SPRINKLES: Final = 2_200
"""Extents of one file: more than an EXTENT_SEGMENT can hold."""
EMPTY_INTENT_BYTES: Final = 32
SOURCE: Final = Path("/tmp/ballast-golden-source")


class Intents(NamedTuple):
    """The bytes of all rounds, and what was punched (pack, offset, length) and unlinked when they were carried out."""

    data: bytes
    punched: list[tuple[int, int, int]]
    unlinked: list[int]


class Maker:
    """The repository's life, in four mounts and one hour without."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = SetClock()
        self.chance = random.Random(SEED)
        self.written: dict[Path_, bytearray] = {}
        self.rows: dict[SnapshotId, list[Row]] = {}

    def mount(self) -> Mount:
        return Mount(self.path, self.clock, self.written)

    def keep(self, made: tuple[Slot, list[Row]]) -> Slot:
        self.rows[made[0].snapshot_id] = made[1]
        return made[0]

    def first(self) -> None:
        """Everything that a tree can hold; ends in a crash behind a flush."""
        mount = self.mount()
        for name in (b"big", b"docs", b"docs/deep", b"docs/deep/er", b"tied", b"again", b"nodes", b"weighty"):
            mount.make(tuple(name.split(b"/")), NodeKind.DIRECTORY, 0o755)
        for number in range(BIG_DIRECTORY):
            mount.file((b"big", b"entry %04d" % number), b"" if number % 50 else b"I am number %d.\n" % number)
        mount.live.flush()
        for number in range(TIED):
            mount.file((b"tied", b"%03d" % number), b"" if number % 100 else b"a file with two names")
            mount.link((b"tied", b"%03d" % number), (b"again", b"%03d" % (TIED - number)))
        mount.file((b"sprinkled",), b"")
        for number in range(SPRINKLES):
            mount.write((b"sprinkled",), number * 100 + 7, b"the same")
        mount.file((b"patched",), b"")
        for number in range(100):
            mount.write((b"patched",), number * 64, b"patch %d" % number)
        for number in range(200):
            mount.make((b"weighty", b"%d" % number), NodeKind.SYMLINK, 0o777, target=b"%d/" % number * 90)
            mount.file((b"weighty", b"pieces %d" % number), b"")
            for piece in range(9 if number < 60 else 1):
                mount.write((b"weighty", b"pieces %d" % number), piece * 100, b"the same")
        mount.make((b"tied", b"symlink"), NodeKind.SYMLINK, 0o777, target=b"where all names lead")
        mount.link((b"tied", b"symlink"), (b"again", b"symlink"))
        mount.file((b"noise",), self.chance.randbytes(20_000))
        mount.live.flush()
        mount.file((b"doomed",), self.chance.randbytes(500_000))
        mount.file((b"docs", b"letter"), b"Dear reader,\n" * 2_000)
        mount.file((b"docs", b"deep", b"er", b"hole"), b"")
        mount.truncate((b"docs", b"deep", b"er", b"hole"), 5_000_000)
        mount.make((b"docs", b"pointer"), NodeKind.SYMLINK, 0o777, target=b"letter")
        mount.make((b"nodes", b"fifo"), NodeKind.FIFO)
        mount.make((b"nodes", b"socket"), NodeKind.SOCKET)
        mount.make((b"nodes", b"tty"), NodeKind.CHARACTER, 0o620, rdev=os.makedev(4, 64))
        mount.make((b"nodes", b"disk"), NodeKind.BLOCK, 0o660, rdev=os.makedev(8, 1))
        for name in (b"\xff\xfe", "Übergröße".encode(), b"\x01\n", b"y" * 255):
            mount.file((b"docs", name), name)
        mount.xattr((b"docs", b"letter"), b"user.author", b"somebody")
        mount.xattr((b"docs", b"letter"), b"system.posix_acl_access", NAMED_USER)
        mount.xattr((b"docs",), b"user.long", bytes(range(256)) * 3)
        self.keep(mount.snapshot())
        mount.unlink((b"doomed",))
        mount.write((b"docs", b"letter"), 5, b"writer")
        self.keep(mount.snapshot(SnapshotKind.NAMED, "before the move"))
        mount.file((b"docs", b"survivor"), b"flushed before the crash")
        mount.rename((b"docs", b"deep"), (b"shallow",))
        mount.live.flush()
        mount.file((b"docs", b"victim"), b"never flushed")
        del self.written[b"docs", b"victim"]
        mount.live.kill()

    def second(self) -> None:
        """Small changes of large things; ends well."""
        mount = self.mount()
        assert mount.live.recovery.changes
        mount.unlink((b"tied", b"007"))
        mount.unlink((b"again", b"%03d" % (TIED - 7)))
        mount.unlink((b"again", b"001"))
        mount.write((b"sprinkled",), 150_000, b"an overwrite in the middle of it all")
        wanted = attributes.Wanted(mode=0o600, uid=0, mtime_ns=-5)
        attributes.set_attributes(mount.live.tree, mount.live.resolve((b"big", b"entry 0800")), wanted)
        self.keep(mount.snapshot())
        mount.file((b"brief",), self.chance.randbytes(30_000))
        self.keep(mount.snapshot())
        mount.unlink((b"brief",))
        self.keep(mount.snapshot())
        mount.live.close()

    def third(self) -> None:
        """Snapshots pinned, renamed, deleted."""
        mount = self.mount()
        repository = mount.live.repository
        repository.pin(repository.find("before the move"))
        mount.truncate((b"patched",), 3_001)
        self.keep(mount.snapshot(SnapshotKind.NAMED, "wrongly named"))
        repository.rename(repository.find("wrongly named"), "naïve ☃")
        mount.file((b"short-lived",), self.chance.randbytes(24_000))
        self.keep(mount.snapshot())
        mount.unlink((b"short-lived",))
        self.keep(mount.snapshot())
        for path in ("/doomed", "/brief"):
            repository.delete(next(slot for slot in repository.listed() if self.has(slot, path)))
        mount.live.close()

    def between(self) -> Intents:
        """A collection that punches, a snapshot straight from a path, one in the trash."""
        self.clock.pass_days(2)
        calls = RecordingCalls()
        with Repository.open(self.path, writable=True, clock=self.clock, calls=calls) as repository:
            report = repository.gc(safety=Safety.FULL)
            assert report.freed_bytes, report
            slot = store(repository, SOURCE, name="straight in")[0].slot
            rows = snapshot_rows(repository, slot)
            for row in rows:
                path = os.fsencode(row.path)
                inside = path.startswith(os.fsencode(SOURCE))
                assert not inside or agrees(row, os.lstat(path), path), row
            self.keep((slot, rows))
            trash = next(slot for slot in repository.listed() if self.has(slot, "/short-lived"))
            repository.delete(trash)
        writes = [one.content for one in calls.log if one.name == "pwritev" and one.path.endswith("/intent")]
        freed = [one for one in calls.log if one.path.endswith(".pack")]
        punched = sorted((_pack(one.path), one.offset, one.length) for one in freed if one.name == "punch")
        unlinked = sorted(_pack(one.path) for one in freed if one.name == "unlink")
        rounds = [data for data in writes if len(data) > EMPTY_INTENT_BYTES]
        return Intents(b"".join(data.ljust(INTENT_BYTES, b"\0") for data in rounds), punched, unlinked)

    def has(self, slot: Slot, path: str) -> bool:
        return any(row.path == path for row in self.of(slot))

    def of(self, slot: Slot) -> list[Row]:
        return self.rows[slot.snapshot_id]

    def last(self) -> list[Row]:
        """A mount that is killed: three flushes count, what came after them is lost."""
        mount = self.mount()
        mount.file((b"docs", b"postscript"), b"P.S.: I forgot.")
        self.keep(mount.snapshot())
        mount.make((b"new",), NodeKind.DIRECTORY, 0o2775)
        mount.rename((b"shallow",), (b"new", b"deep again"))
        mount.write((b"sprinkled",), 40_000, b"over some of what was committed" * 9)
        mount.truncate((b"docs", b"letter"), 20_000)
        mount.write((b"docs", b"letter"), 20_010, b"behind a hole")
        mount.live.flush()
        for number in range(24):
            mount.file((b"new", b"%d" % number), b"attributed %d" % number)
            mount.xattr((b"new", b"%d" % number), b"user.wide", b"%d " % number * 20_000)
        mount.unlink((b"big", b"entry 0001"))
        mount.link((b"docs", b"postscript"), (b"new", b"second name"))
        mount.live.flush()
        mount.unlink((b"docs", b"postscript"))
        mount.rename((b"new", b"3"), (b"new", b"4"))
        mount.truncate((b"sprinkled",), 180_000)
        mount.live.flush()
        rows = mount.rows()
        mount.file((b"lost",), b"written, never flushed")
        mount.live.store_runs()
        mount.live.kill()
        return rows


def _pack(path: str) -> int:
    return int(Path(path).stem, 16)


def make(path: Path) -> tuple[bytes, bytes]:
    """The archive, and what is expected of it."""
    maker = Maker(path)
    Repository.init(path, reserve_bytes=RESERVE_BYTES, headspace_bytes=0, quota_bytes=QUOTA_BYTES, clock=maker.clock)
    maker.first()
    maker.second()
    maker.third()
    intent = maker.between()
    live = maker.last()
    with Repository.open(path, writable=False, clock=maker.clock) as repository:
        found = pending(repository.store, repository.catalog.head())
        changes = Counter(type(change).__name__ for flush in found.flushes for change in flush.changes)
        expected: Expected = {
            "snapshots": _snapshots(maker, repository),
            "live": live,
            "changes": dict(changes),
            "flushes": len(found.flushes),
            "events": [event.name for event in repository.events.events()],
            "punched": intent.punched,
            "unlinked": intent.unlinked,
        }
    return golden.pack(path, intent.data, golden.layout_of(path)), golden.dump(expected)


def _snapshots(maker: Maker, repository: Repository) -> list[ExpectedSnapshot]:
    found: list[ExpectedSnapshot] = []
    for slot in sorted([*repository.listed(), *repository.trash()], key=lambda slot: slot.snapshot_id):
        found.append(
            {
                "id": slot.snapshot_id,
                "name": slot.name,
                "source": slot.source,
                "state": "trash" if slot.state is SlotState.TRASH else "live",
                "kind": slot.kind.name.lower(),
                "pinned": slot.pinned,
                "time_ns": slot.time_ns,
                "deleted_ns": slot.deleted_ns,
                "files": slot.totals.files,
                "content_bytes": slot.totals.content_bytes,
                "next_file_id": slot.next_file_id,
                "rows": maker.of(slot),
            }
        )
    return found


def main() -> None:
    """Makes both files of the golden repository."""
    if golden.ARCHIVE.exists() and sys.argv[1:] != ["--again"]:
        raise SystemExit(f"{golden.ARCHIVE} is there, and is never made again.")
    os.umask(0o022)
    chance = random.Random(SEED)
    SOURCE.mkdir()
    SOURCE.rmdir()
    make_source(SOURCE, SEED)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="ballast-golden-", dir="/var/tmp") as folder,
            mock.patch.object(secrets, "token_bytes", chance.randbytes),
            mock.patch.object(secrets, "randbits", chance.getrandbits),
            mock.patch.object(socket, "gethostname", lambda: "golden"),
            mock.patch.object(lock, "_BOOT_ID", Path("/dev/null")),
        ):
            archive, expected = make(Path(folder) / "repository")
    finally:
        shutil.rmtree(SOURCE)
    golden.GOLDEN.mkdir(exist_ok=True)
    golden.ARCHIVE.write_bytes(archive)
    golden.EXPECTED.write_bytes(expected)
    print(f"{golden.ARCHIVE}: {len(archive):,} bytes; {golden.EXPECTED}: {len(expected):,} bytes")


if __name__ == "__main__":
    main()
