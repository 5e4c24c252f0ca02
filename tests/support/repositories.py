"""Small repositories for tests, and trees written straight into them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from repository import founding
from repository.format.catalog import Slot, SnapshotKind
from repository.format.inode import Entry, Extent, Inode, NodeKind
from repository.ids import ROOT_FILE_ID, FileId
from repository.leases import Lease
from repository.repo import Repository, Tree
from repository.storage.calls import Calls
from repository.trees.writer import TreeWriter
from repository.units import KIB, MIB, NS_PER_S

QUOTA_BYTES: Final = 200 * MIB
"""Small enough for packs of 4 MiB in segments of 1 MiB."""
RESERVE_BYTES: Final = 256 * KIB
SLOTS: Final = 64
DAY_NS: Final = 24 * 3600 * NS_PER_S


class SetClock:
    """Wall-clock time as the test says; every look is a microsecond later."""

    def __init__(self, now_ns: int = 1_800_000_000 * NS_PER_S) -> None:
        self.ns = now_ns

    def now_ns(self) -> int:
        self.ns += 1000
        return self.ns

    def pass_days(self, days: float) -> None:
        self.ns += int(days * DAY_NS)


@contextmanager
def small_catalog() -> Iterator[None]:
    """What `init` makes in here has a catalog of 128 KiB, not 8 MiB that each opening would read; it grows as any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(founding, "SLOTS_AT_INIT", SLOTS)
        yield


def make(
    path: Path,
    clock: SetClock,
    *,
    reserve_bytes: int = RESERVE_BYTES,
    quota_bytes: int = QUOTA_BYTES,
    calls: Calls | None = None,
) -> None:
    """A new repository with small packs and a small catalog."""
    with small_catalog():
        Repository.init(
            path, reserve_bytes=reserve_bytes, headspace_bytes=0, quota_bytes=quota_bytes, clock=clock, calls=calls
        )


def open_for_writing(path: Path, clock: SetClock, calls: Calls | None = None) -> Repository:
    return Repository.open(path, writable=True, clock=clock, calls=calls)


def open_for_reading(path: Path, clock: SetClock) -> Repository:
    return Repository.open(path, writable=False, clock=clock)


def write_tree(repository: Repository, files: Mapping[str, bytes], lease: Lease, *, source: str = "host:/home") -> Tree:
    """A flat directory of `files`, under `lease`."""
    entries: list[Entry] = []
    for number, (name, data) in enumerate(sorted(files.items())):
        refs, _ = repository.store.put_bytes(data, final=True, lease=lease)
        extents: list[Extent] = []
        offset = 0
        for ref in refs:
            if ref.id is not None:
                extents.append(Extent(offset, ref.raw_length, ref.id, 0))
            offset += ref.raw_length
        inode = Inode(
            NodeKind.FILE,
            FileId(2 + number),
            mode=0o644,
            size=len(data),
            extents=tuple(extents),
            allocated_bytes=sum(extent.length for extent in extents),
        )
        entries.append(Entry(name.encode(), inode))
    writer = TreeWriter(repository.store, repository.reader, lease)
    listing, totals = writer.write_directory(entries)
    root = Inode(NodeKind.DIRECTORY, ROOT_FILE_ID, mode=0o755, directory=listing, totals=totals)
    return Tree(root, None, FileId(2 + len(entries)), repository.clock.now_ns(), source)


def publish(
    repository: Repository,
    files: Mapping[str, bytes],
    name: str | None = None,
    *,
    parent: Slot | None = None,
    source: str = "host:/home",
) -> Slot:
    """A snapshot of a flat directory of `files`."""
    with repository.store.lease() as lease:
        tree = write_tree(repository, files, lease, source=source)
        return repository.publish(tree, lease, name=name, kind=SnapshotKind.NAMED, parent=parent)


def pack_blocks_bytes(path: Path) -> int:
    """What all packs take on the volume, the spare one included."""
    return sum(file.stat().st_blocks * 512 for file in (path / "packs").rglob("*.pack"))


def read_files(repository: Repository, slot: Slot) -> dict[str, bytes]:
    """All files of a flat snapshot, read back through its tree."""
    found: dict[str, bytes] = {}
    for entry in repository.reader.scan(repository.root(slot).directory):
        data = bytearray(entry.inode.size)
        for extent in repository.reader.extents(entry.inode, 0, entry.inode.size):
            payload = repository.store.read(extent.chunk).payload
            data[extent.offset : extent.offset + extent.length] = payload[
                extent.chunk_offset : extent.chunk_offset + extent.length
            ]
        found[entry.name.decode()] = bytes(data)
    return found
