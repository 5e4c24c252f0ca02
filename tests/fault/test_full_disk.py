"""A disk without a byte and without an inode: what shrinks goes on, and so does whoever comes after a kill."""

from pathlib import Path

import pytest

from repository.errors import NoSpaceError
from repository.format.catalog import SnapshotKind
from repository.format.inode import NodeKind
from repository.live import attributes, names, writing
from repository.policy.collect import Safety
from repository.repo import Repository
from tests.crash.workload import found
from tests.support.repositories import SetClock
from tests.support.stores import noise
from tests.support.sync_live import SyncLive
from tests.support.tinydisk import TinyDisk

FILES = 1_500
FLUSH_EVERY = 250
JOURNAL_BYTES = 2_045
"""What the mount claims for one removal."""

pytestmark = pytest.mark.logs("index.not_written", "pack.not_sealed")


@pytest.fixture
def disk(memory_folder: Path) -> TinyDisk:
    """A repository with a tree of many files, on a disk that is full since."""
    path = memory_folder / "r"
    clock = SetClock()
    found(path, clock)
    disk = TinyDisk(path)
    disk.adopt()
    live = SyncLive(path, calls=disk, clock=clock)
    root = live.resolve(())
    for number in range(FILES):
        node = names.create(live.tree, root, b"f%d" % number, names.Wish(NodeKind.FILE, 0o640, 0, 0, 0))
        live.tree.remember(root, b"f%d" % number, node.file_id, linked=False)
        writing.write(live.tree, node.file_id, 0, noise(number, 200))
    live.commit(SnapshotKind.NAMED, "before")
    live.close()
    disk.leave(0)
    disk.inodes_left = 0
    disk.created.clear()
    return disk


def _open(disk: TinyDisk) -> SyncLive:
    return SyncLive(Path(disk.root), calls=disk, clock=SetClock())


def _remove(live: SyncLive, numbers: range) -> None:
    """As the mount does: each removal under a claim for its worst case, and a flush now and then."""
    root = live.resolve(())
    for first in range(numbers.start, numbers.stop, FLUSH_EVERY):
        claims = []
        for number in range(first, min(first + FLUSH_EVERY, numbers.stop)):
            claim = live.store.headroom.take(JOURNAL_BYTES, 0)
            assert claim is not None
            claims.append(claim)
            names.unlink(live.tree, root, b"f%d" % number)
        for claim in claims:
            live.store.forfeit(claim)
        live.flush()


def _names(live: SyncLive) -> set[bytes]:
    return {path[0] for path in live.picture()}


def test_everything_can_be_removed_and_committed(disk: TinyDisk) -> None:
    live = _open(disk)
    with pytest.raises(NoSpaceError):
        live.store.claim(1_000, 1)
    _remove(live, range(FILES))
    live.commit(None)
    live.close()
    again = _open(disk)
    assert _names(again) == set()
    assert again.repository.check(read_data=True).is_sound
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_who_comes_after_a_kill_recovers_what_was_acknowledged(disk: TinyDisk, kills: int) -> None:
    """Each opening has to seal the pack of the one before and to commit its journal, with nothing to allocate from but
    what sealing gives back."""
    for turn in range(kills):
        live = _open(disk)
        assert len(_names(live)) == FILES - 300 * turn
        _remove(live, range(300 * turn, 300 * (turn + 1)))
        live.kill()
    live = _open(disk)
    assert live.recovery.changes >= 300
    assert _names(live) == {b"f%d" % number for number in range(300 * kills, FILES)}
    attributes.set_attributes(live.tree, live.resolve((b"f1400",)), attributes.Wanted(size=0))
    live.flush()
    live.close()
    with Repository.open(Path(disk.root), writable=False) as reading:
        assert not reading.check(read_data=True).findings


def test_deleting_and_collecting_need_nothing(disk: TinyDisk) -> None:
    """No headroom either: somebody took it."""
    for pack in (Path(disk.root) / "packs").rglob("*.pack"):
        if pack.read_bytes()[240] == 2:
            disk.unlink(str(pack))
    disk.leave(0)
    disk.inodes_left = 0
    with Repository.open(Path(disk.root), writable=True, calls=disk) as repository:
        assert repository.store.headroom.left_bytes() == 0
        repository.delete(repository.find("before"))
        assert not disk.created
    live = _open(disk)
    root = live.resolve(())
    names.unlink(live.tree, root, b"f7")
    with pytest.raises(NoSpaceError):
        live.flush()
    live.repository.gc(safety=Safety.NONE)
    live.kill()


def test_a_catalog_without_a_free_slot_does_not_stop_the_last_commit(disk: TinyDisk) -> None:
    live = _open(disk)
    disk.leave(1 << 20)
    with pytest.raises(NoSpaceError):
        while True:
            disk.leave(0 if not live.repository.catalog.free_slots else 1 << 20)
            live.commit(SnapshotKind.NAMED, f"s{len(live.repository.listed())}")
    _remove(live, range(10))
    live.close()
    again = _open(disk)
    assert len(_names(again)) == FILES - 10
    assert again.recovery.was_clean
    again.close()
