"""Room on volumes that cannot allocate: written, made durable, looked for; all of it or nothing."""

import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from repository.errors import NoSpaceError, SyncFailedError, VolumeError
from repository.format.record import Buffer, RecordKind
from repository.policy.volumes import NO_PERMISSIONS, described, not_promised
from repository.storage.calls import Calls
from repository.storage.probe import probe_volume
from repository.storage.reserving import allocate_reserve
from repository.storage.volume import ZERO_PIECE_BYTES, Volume
from repository.units import KIB, MIB
from tests.support.bare import BareCalls, BareSmallCalls
from tests.support.calls import Fault, FaultyCalls
from tests.support.repositories import SetClock, make, open_for_writing
from tests.support.stores import new_volume, open_store


class CountingCalls(BareCalls):
    """Notes the lengths of writes, and syncs."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []
        self.syncs = 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.writes.append(sum(map(len, buffers)))
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self.syncs += 1
        super().fdatasync(fd)


def test_room_is_written_in_pieces_and_synced_once(tmp_path: Path) -> None:
    calls = CountingCalls()
    with Volume(tmp_path, calls).create("file") as handle:
        handle.allocate(0, 4 * MIB + 5)
        assert calls.writes == [ZERO_PIECE_BYTES] * 4 + [5]
        assert calls.syncs == 1
        assert handle.size() == 4 * MIB + 5
        assert handle.stat().st_blocks * 512 >= 4 * MIB + 5
        handle.allocate(4 * MIB, 1 * MIB)
        assert calls.refused == 1, "the volume was asked again, though it had said that it cannot"


def test_what_the_file_holds_is_left_alone(tmp_path: Path) -> None:
    with Volume(tmp_path, BareCalls()).create("file") as handle:
        handle.pwrite(b"x" * 3000, 0)
        handle.allocate(1000, 1 * MIB)
        assert handle.pread(3001, 0) == b"x" * 3000 + b"\0"
        assert handle.size() == 1000 + 1 * MIB
        handle.allocate(0, 1000)
        assert handle.size() == 1000 + 1 * MIB


def test_a_volume_that_is_full_midway_gets_everything_back(tmp_path: Path) -> None:
    calls = BareSmallCalls(3 * MIB + 100)
    with Volume(tmp_path, calls).create("file") as handle:
        handle.pwrite(b"x" * KIB, 0)
        with pytest.raises(NoSpaceError):
            handle.allocate(KIB, 4 * MIB)
        assert handle.size() == KIB
        assert handle.pread(KIB, 0) == b"x" * KIB
        assert calls.used_bytes() == KIB
        handle.allocate(KIB, 2 * MIB)


class HalfwayCalls(Calls):
    """As ext4: an fallocate that fails keeps what it got."""

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        super().fallocate(fd, offset, length // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_allocation_that_fails_keeps_nothing_either(tmp_path: Path) -> None:
    with Volume(tmp_path, HalfwayCalls()).create("file") as handle:
        handle.pwrite(b"x" * 4096, 0)
        with pytest.raises(NoSpaceError):
            handle.allocate(4096, 8 * MIB)
        assert handle.size() == 4096
        assert handle.stat().st_blocks * 512 < 64 * KIB


class LateCalls(BareCalls):
    """A volume that says only at the sync that it is full (NFS)."""

    full = False

    def fdatasync(self, fd: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().fdatasync(fd)


def test_a_sync_that_meets_a_full_volume_is_told_apart(tmp_path: Path) -> None:
    """For a new file it is lack of room. For one that holds records it may be about them: writing is over."""
    calls = LateCalls()
    volume = Volume(tmp_path, calls)
    with volume.create("old") as old, volume.create("new") as new:
        old.allocate(0, MIB)
        calls.full = True
        with pytest.raises(NoSpaceError):
            new.allocate(0, MIB)
        assert new.size() == 0
        with pytest.raises(SyncFailedError):
            old.allocate(MIB, MIB)


@pytest.mark.logs("store.failed")
def test_a_sync_that_fails_while_a_pack_grows_ends_writing(tmp_path: Path) -> None:
    calls = LateCalls()
    store = open_store(new_volume(tmp_path / "r", calls))
    with store.lease() as lease:
        store.put(RecordKind.CHUNK, [os.urandom(500_000)], lease)
        calls.full = True
        with pytest.raises(SyncFailedError):
            for _ in range(20):
                store.put(RecordKind.CHUNK, [os.urandom(500_000)], lease)
    assert store.failed
    calls.full = False
    store.close()


class LyingCalls(BareCalls):
    """Says that blocks are fewer than were written: they are shared, or zeros are not kept."""

    def fstat(self, fd: int) -> os.stat_result:
        found = list(super().fstat(fd))
        return os.stat_result(found, {"st_blocks": 8, "st_blksize": 4096})


def test_room_that_does_not_show_is_an_error(tmp_path: Path) -> None:
    with Volume(tmp_path, LyingCalls()).create("file") as handle, pytest.raises(VolumeError, match="does not keep"):
        handle.allocate(0, MIB)


# --- the reserve -------------------------------------------------------------------------------------------------


def test_the_reserve_is_noise_that_nothing_makes_smaller(tmp_path: Path) -> None:
    with Volume(tmp_path, BareCalls()).create("reserve") as handle:
        allocate_reserve(handle, 3 * MIB)
        data = handle.pread(3 * MIB, 0)
        assert len(zlib.compress(data)) > len(data)
        assert len({data[at : at + 4096] for at in range(0, len(data), 4096)}) == 3 * MIB // 4096
        handle.truncate(1 * MIB)
        allocate_reserve(handle, 3 * MIB)
        assert handle.pread(1 * MIB, 0) == data[: 1 * MIB]
        assert handle.size() == 3 * MIB


def test_a_reserve_that_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    calls = BareSmallCalls(4 * MIB)
    with Volume(tmp_path, calls).create("reserve") as handle:
        allocate_reserve(handle, 1 * MIB)
        with pytest.raises(NoSpaceError):
            allocate_reserve(handle, 5 * MIB)
        assert handle.size() == 1 * MIB
        assert calls.used_bytes() == 1 * MIB


def test_a_size_without_blocks_is_no_reserve(tmp_path: Path) -> None:
    """A crash may leave the size of what was never written."""
    with Volume(tmp_path, BareCalls()).create("reserve") as handle:
        handle.truncate(2 * MIB)
        allocate_reserve(handle, 2 * MIB)
        assert handle.stat().st_blocks * 512 >= 2 * MIB


# --- classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocates", "punches", "volume_class"),
    [(True, True, "A"), (True, False, "B"), (False, True, "C"), (False, False, "BC")],
)
def test_init_takes_every_class(tmp_path: Path, allocates: bool, punches: bool, volume_class: str) -> None:
    calls = BareCalls(allocates=allocates, punches=punches)
    clock = SetClock()
    make(tmp_path / "r", clock, calls=calls)
    with open_for_writing(tmp_path / "r", clock, calls) as repository:
        assert repository.config.volume_class == volume_class
        assert repository.volume.punches() == punches
        assert repository.status().reserve.whole
    assert ("class " + volume_class) in described(volume_class)


def test_what_a_volume_lacks_is_one_sentence() -> None:
    assert not_promised("A", private=True) is None
    sentence = not_promised("BC", private=False)
    assert sentence is not None
    assert sentence.count(".") == 1
    assert NO_PERMISSIONS in sentence
    assert "whole packs" in sentence


class CompressingCalls(BareCalls):
    """st_blocks as if everything were there, while nothing is taken: btrfs with compression tells that of zeros."""

    def statvfs(self, path: str) -> os.statvfs_result:
        found = list(super().statvfs(path))
        found[3] = 1_000_000
        return os.statvfs_result(found)


def test_a_volume_that_compresses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="compresses"):
        probe_volume(Volume(tmp_path, CompressingCalls()))
    assert not list(tmp_path.iterdir())


def test_a_repository_that_was_copied_to_such_a_volume_works(tmp_path: Path) -> None:
    """Its configuration says class A; the volume is asked again, and the answer remembered."""
    clock = SetClock()
    make(tmp_path / "r", clock)
    calls = BareCalls()
    with open_for_writing(tmp_path / "r", clock, calls) as repository:
        assert repository.config.volume_class == "A"
        assert not repository.volume.punches("lock")
        assert repository.volume.punches("lock") == repository.volume.punches()
        with repository.store.lease() as lease:
            repository.store.put(RecordKind.CHUNK, [os.urandom(100_000)], lease)
        refused = calls.refused
        repository.store.seal_open()
    assert calls.refused == refused


def test_faults_of_asking_are_not_taken_for_an_answer(tmp_path: Path) -> None:
    calls = FaultyCalls([Fault("punch", errno.EIO)])
    volume = Volume(tmp_path, calls)
    volume.create("lock").close()
    with pytest.raises(VolumeError):
        volume.punches("lock")
    assert volume.punches("lock")
    calls.check()
