"""How long a writer waits on a full disk with a large repository: the real ladder on a real file system.

Makes a repository of a million chunks on a sparse image (packs of 64 MiB, allocated and never written, with real
directories; 500 snapshots with real bitmaps; one in twenty is deleted), has another program fill the disk, and
allocates segments until the ladder was climbed a few times. Prints each pause and how it splits. Root; 2 GB below
$TMPDIR.
"""

import argparse
import errno
import fcntl
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.decision import DAY_NS, PACK_BYTES, TRASH_PART, Shape, lives_of, packs_of
from repository.bitmaps import SnapshotBitmap, store_bitmap
from repository.codec import Codec
from repository.format.catalog import FREE_SLOT, SlotState, SnapshotKind
from repository.format.inode import Inode, NodeKind, Totals
from repository.format.manifest import Manifest, encode_manifest
from repository.format.pack import PackDirectory, Stream, encode_pack_header, pack_path
from repository.format.record import RecordKind
from repository.ids import ROOT_FILE_ID, FileId, PackIndex, RecordId
from repository.packs.seal import seal_file
from repository.policy.columns import as_numbers
from repository.policy.rungs import Mode
from repository.repo import Repository
from repository.storage.calls import Calls
from repository.units import GIB, KIB, MIB, format_size
from tests.support.fulldisk import stage
from tests.support.fulldisk.disks import new_disk

FIRST_PACK: Final = 16
"""Behind the packs that an empty repository has."""
LEFT_BYTES: Final = 3 * MIB
"""What the other program leaves: less than a segment."""
CLIMBS: Final = 4
MODULE: Final = "bench.pause"
FS_IOC_FIEMAP: Final = 0xC020660B
FIEMAP: Final = struct.Struct("=QQIIII")
EXTENT: Final = struct.Struct("=5Q4I")

_P = ParamSpec("_P")
_R = TypeVar("_R")


def fill_packs(repository: Repository, packs: dict[PackIndex, PackDirectory]) -> None:
    """Sealed packs without content: what is decided and freed rests on directories alone."""
    config, volume = repository.config, repository.volume
    codec = Codec(config.id_key, config.seed)
    for pack, directory in packs.items():
        end = int(directory.offset[-1] + directory.stored[-1])
        with volume.create(pack_path(pack)) as handle:
            handle.allocate(0, end + 64 * KIB)
            handle.pwrite(encode_pack_header(config, pack, Stream.BULK, directory.written_ns), 0)
            seal_file(handle, codec, directory, end, config.seed)


def make_snapshots(repository: Repository, shape: Shape, numbers: NDArray[np.uint64], rng: np.random.Generator) -> None:
    """Slots, manifests and bitmaps as publishing writes them, of trees that nobody looks at."""
    born, died = lives_of(shape, len(numbers), rng)
    store, catalog = repository.store, repository.catalog
    parent: tuple[RecordId, SnapshotBitmap] | None = None
    with store.lease() as lease:
        for at in range(shape.snapshots):
            root = Inode(NodeKind.DIRECTORY, ROOT_FILE_ID, mode=0o755, mtime_ns=at)
            time_ns = (at + 1) * DAY_NS
            manifest = Manifest(
                time_ns, "live", "", SnapshotKind.IMPLICIT, root, None, Totals(0, 0), FileId(ROOT_FILE_ID + 1)
            )
            stored = store.put(RecordKind.MANIFEST, [encode_manifest(manifest)], lease)[0]
            needed = as_numbers(numbers[(born <= at) & (died > at)])
            needed.add(stored.number)
            head, bitmap = store_bitmap(store, lease, stored.id, needed, exact=True, parent=parent)
            parent = head.id, bitmap
            store.sync()
            deleted = at % TRASH_PART == TRASH_PART // 2
            slot = replace(
                FREE_SLOT,
                state=SlotState.TRASH if deleted else SlotState.LIVE,
                name=f"s{at}",
                time_ns=time_ns,
                deleted_ns=time_ns if deleted else 0,
                source="live",
                manifest=stored.id,
                bitmap=head.id,
                exact=True,
            )
            catalog.add(slot)


@contextmanager
def timed(what: str) -> Iterator[None]:
    began_s = time.monotonic()
    yield
    print(f"{what:52}{time.monotonic() - began_s:9.3f} s", flush=True)


class AllocatedCalls(Calls):
    """The volume's calls, but what is allocated and was never written is no hole: by FIEMAP."""

    def lseek(self, fd: int, position: int, whence: int) -> int:
        if whence not in (os.SEEK_HOLE, os.SEEK_DATA):
            return super().lseek(fd, position, whence)
        at, end = position, os.fstat(fd).st_size
        while at < end:
            found = _next_extent(fd, at, end)
            if whence == os.SEEK_DATA and found is not None:
                return max(at, found[0])
            if whence == os.SEEK_DATA:
                break
            if found is None or found[0] > at:
                return at
            at = found[1]
        if whence == os.SEEK_HOLE:
            return end
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


def _next_extent(fd: int, start: int, end: int) -> tuple[int, int] | None:
    """The first extent, written or not, that ends behind `start`: where it begins and ends."""
    buffer = bytearray(FIEMAP.pack(start, end - start, 0, 0, 1, 0).ljust(FIEMAP.size + EXTENT.size, b"\0"))
    fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer)
    if not FIEMAP.unpack_from(buffer)[3]:
        return None
    logical, _, length = EXTENT.unpack_from(buffer, FIEMAP.size)[:3]
    return logical, logical + length


class Decisions:
    """Time that the planner takes, in seconds since `clear`."""

    def __init__(self, repository: Repository) -> None:
        self.seconds = 0.0
        planner = repository.collector.planner
        planner.plan = self._timed(planner.plan)  # type: ignore[method-assign]
        planner.fewest = self._timed(planner.fewest)  # type: ignore[method-assign]

    def _timed(self, work: Callable[_P, _R]) -> Callable[_P, _R]:
        def instead(*words: _P.args, **named: _P.kwargs) -> _R:
            began_s = time.monotonic()
            try:
                return work(*words, **named)
            finally:
                self.seconds += time.monotonic() - began_s

        return instead


def climb(repository: Repository, *, cold: bool) -> None:
    """Allocates segments, as a writer does, until the ladder was climbed."""
    told = len(repository.status().recoveries)
    decisions = Decisions(repository)
    if cold:
        repository.collector.planner.forget()
    longest_s, allocated = 0.0, 0
    while len(repository.status().recoveries) == told:
        began_s = time.monotonic()
        repository.store.claim(repository.config.segment_bytes // 2, 1)
        longest_s = max(longest_s, time.monotonic() - began_s)
        allocated += repository.config.segment_bytes // 2
    steps = repository.status().recoveries[-1].fields["steps"]
    assert isinstance(steps, list)
    how = "nothing in memory" if cold else "as a mount keeps it"
    print(
        f"climb, {how}: after {format_size(allocated)} the writer waited {longest_s:.3f} s, of it deciding "
        f"{decisions.seconds:.3f} s: {'; '.join(steps)}",
        flush=True,
    )
    assert repository.recovery.mode is Mode.NORMAL, "not recovered"


def measure(path: Path, shape: Shape) -> None:
    with timed("opening"):
        repository = Repository.open(path, writable=True, calls=AllocatedCalls())
    try:
        with timed("looking (the census is taken)"):
            repository.recovery.look()
        for number in range(CLIMBS):
            climb(repository, cold=number == 0)
            if number == CLIMBS - 2:
                with timed("the margin, in the background"):
                    repository.recovery.finish()
    finally:
        repository.close()


def make(folder: Path, shape: Shape, seed: int) -> Path:
    path = folder / "repository"
    Repository.init(path, headspace_bytes=0)
    rng = np.random.default_rng(seed)
    packs, numbers = packs_of(shape, rng, FIRST_PACK)
    with timed(f"{shape.packs:,} packs of {shape.chunks:,} chunks"), Repository.open(path, writable=False) as reader:
        fill_packs(reader, packs)
    with timed(f"{shape.snapshots} snapshots"), Repository.open(path, writable=True) as repository:
        make_snapshots(repository, shape, numbers, rng)
    return path


def play(shape: Shape, kind: str, seed: int) -> int:
    place = stage.set_up()
    try:
        with new_disk(place, kind, shape.packs * PACK_BYTES * 9 // 8 + 4 * GIB) as disk:
            path = make(disk.path, shape, seed)
            with (disk.path / "other-program").open("wb") as other:
                os.posix_fallocate(other.fileno(), 0, disk.available_bytes() - LEFT_BYTES)
            print(f"{kind}, {format_size(disk.capacity_bytes())}: {format_size(disk.available_bytes())} available")
            measure(path, shape)
    finally:
        for left in place.work.iterdir():
            stage.remove(left)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/pause", description=__doc__)
    parser.add_argument("--chunks", type=int, default=Shape().chunks)
    parser.add_argument("--snapshots", type=int, default=Shape().snapshots)
    parser.add_argument("--packs", type=int, default=Shape().packs)
    parser.add_argument("--fs", default="ext4", help="ext4, ext4-0 or xfs")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not stage.inside():
        return stage.enter(MODULE, sys.argv[1:])
    return stage.as_first_process(
        lambda: play(Shape(arguments.chunks, arguments.snapshots, arguments.packs), arguments.fs, arguments.seed)
    )


if __name__ == "__main__":
    raise SystemExit(main())
