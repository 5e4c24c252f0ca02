"""The headroom and the spare pack: room for what shrinks and for commits when nothing can be allocated or created."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroaring import BitMap64

from repository.errors import NoSpaceError
from repository.format.pack import PACK_HEADER_BYTES, PUNCHED_OFFSET, SPARE_MARK, pack_path
from repository.format.record import RecordKind
from repository.ids import PackIndex, RecordId, pack_of
from repository.journal import journal_floor
from repository.ledger import Claim
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import KIB, MIB
from tests.support.calls import RecordingCalls
from tests.support.stores import new_volume, noise, open_store, put_noise
from tests.support.tinydisk import TinyDisk

pytestmark = pytest.mark.logs("index.not_written")  # on a full disk the index waits


def _disk(root: Path) -> TinyDisk:
    """An empty repository with its spare pack, on a disk that is still large."""
    disk = TinyDisk(root)
    open_store(new_volume(root, disk)).close()
    return disk


def _fill(disk: TinyDisk) -> None:
    """Neither a block nor an inode is left."""
    disk.leave(0)
    disk.inodes_left = 0
    disk.created.clear()


def _open(root: Path, disk: TinyDisk) -> RecordStore:
    return open_store(Volume(root, disk))


def _packs(root: Path) -> dict[int, tuple[int, int]]:
    """Size and mark of each pack file."""
    found = {}
    for path in (root / "packs").rglob("*.pack"):
        data = path.read_bytes()[:PACK_HEADER_BYTES]
        found[int(path.stem, 16)] = (path.stat().st_size, data[PUNCHED_OFFSET])
    return found


def _put_in_headroom(store: RecordStore, seed: int, length: int) -> RecordId:
    claim = store.headroom.take(length + 64, 1)
    assert claim is not None
    (stored,) = store.put(RecordKind.JOURNAL, [noise(seed, length)], store.lease(), claim)
    store.forfeit(claim)
    return stored.id


# --- across processes -----------------------------------------------------------------------------------------------


def test_opening_and_closing_change_nothing(tmp_path: Path) -> None:
    open_store(new_volume(tmp_path)).close()
    before = _packs(tmp_path)
    assert before == {0: (4 * MIB, SPARE_MARK), 1: (PACK_HEADER_BYTES, SPARE_MARK)}
    calls = RecordingCalls()
    for _ in range(3):
        store = open_store(Volume(tmp_path, calls))
        assert store.headroom.whole
        store.close()
    assert not calls.log
    assert _packs(tmp_path) == before


def test_on_a_full_disk_opening_and_closing_change_nothing(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    _fill(disk)
    store = _open(tmp_path, disk)
    assert store.headroom.whole
    store.close()
    assert disk.refused == 0
    assert not disk.created


def test_what_is_stored_in_the_headroom_survives_and_the_next_process_has_one(tmp_path: Path) -> None:
    """Neither a block nor an inode is free; the first process ends well, the second is killed, the third goes on."""
    disk = _disk(tmp_path)
    _fill(disk)
    store = _open(tmp_path, disk)
    ids = {1: _put_in_headroom(store, 1, 200 * KIB)}
    store.sync()
    store.close()
    again = _open(tmp_path, disk)
    assert again.headroom.left_bytes() > again.headroom.wanted_bytes * 3 // 4, "made of the stub"
    ids[2] = _put_in_headroom(again, 2, 200 * KIB)
    again.sync()
    third = _open(tmp_path, disk)  # the second was killed
    assert not disk.created
    for seed, record_id in ids.items():
        assert third.read(record_id).payload == noise(seed, 200 * KIB)
    disk.inodes_left = 9
    third.close()
    last = _open(tmp_path, disk)
    assert last.headroom.left_bytes() > last.headroom.wanted_bytes // 2, "what was given back by sealing"
    disk.leave(20 * MIB)
    assert last.headroom.refill(allocate=True)


def test_a_thief_takes_it_and_the_repository_opens_all_the_same(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    _fill(disk)
    store = _open(tmp_path, disk)
    kept = _put_in_headroom(store, 1, 200 * KIB)
    store.sync()
    disk.thief = True
    store.close()
    disk.thief = False
    again = _open(tmp_path, disk)
    assert again.headroom.left_bytes() == 0
    assert again.headroom.take(100, 1) is None
    assert not again.headroom.refill(allocate=True)
    assert again.read(kept).payload == noise(1, 200 * KIB)
    with pytest.raises(NoSpaceError):
        put_noise(again, range(1), 1000)
    again.close()
    disk.leave(20 * MIB)
    disk.inodes_left = 9
    assert _open(tmp_path, disk).headroom.whole


def test_without_a_byte_no_name_is_made_for_a_spare_pack(tmp_path: Path) -> None:
    """A name would fit where a block does not; but what opens in order to free must not take even that."""
    disk = _disk(tmp_path)
    for pack in (tmp_path / "packs").rglob("*.pack"):
        pack.unlink()
    disk = TinyDisk(tmp_path)
    disk.adopt()
    disk.leave(0)
    store = _open(tmp_path, disk)
    assert store.headroom.left_bytes() == 0
    assert not store.headroom.refill(allocate=True)
    store.close()
    assert (disk.created, disk.refused) == ([], 0)
    disk.leave(2 * MIB)
    store = _open(tmp_path, disk)
    assert 0 < store.headroom.left_bytes() < store.headroom.wanted_bytes
    assert disk.refused == 0, "as large as fits, without trying"
    store.close()


def test_a_spare_pack_as_large_as_fits_grows_later(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    for path in (tmp_path / "packs").rglob("*.pack"):
        disk.unlink(str(path))
    disk.leave(3 * MIB)
    store = _open(tmp_path, disk)
    assert 2 * MIB < store.headroom.left_bytes() < store.headroom.wanted_bytes
    store.close()
    disk.leave(20 * MIB)
    again = _open(tmp_path, disk)
    assert again.headroom.whole
    again.close()
    assert sorted(size for size, mark in _packs(tmp_path).values() if mark == SPARE_MARK)[-1] == 4 * MIB


def _tear(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"torn")


def _make_sparse(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, PACK_HEADER_BYTES)
    os.truncate(path, size)


@pytest.mark.parametrize("harm", [_tear, _make_sparse])
def test_a_spare_pack_that_is_not_as_it_was_made_is_made_again(tmp_path: Path, harm: object) -> None:
    open_store(new_volume(tmp_path)).close()
    assert callable(harm)
    harm(tmp_path / pack_path(PackIndex(0)))
    store = open_store(Volume(tmp_path))
    assert store.headroom.whole
    ids = put_noise(store, range(50), 5_000)
    store.close()
    for path in (tmp_path / "packs").rglob("*.pack"):
        stat = path.stat()
        assert stat.st_blocks * 512 >= stat.st_size
    again = open_store(Volume(tmp_path), writable=False)
    assert [again.read(ids[seed]).payload for seed in range(50)] == [noise(seed, 5_000) for seed in range(50)]


def test_the_index_of_a_pack_that_was_cut_is_not_given_again(tmp_path: Path) -> None:
    """A pack that began as the spare one, and was dropped while it was the newest."""
    disk = _disk(tmp_path)
    disk.inodes_left = 0
    disk.leave(0)
    (tmp_path / pack_path(PackIndex(1))).unlink()  # no stub: the spare pack is the newest
    store = _open(tmp_path, disk)
    _put_in_headroom(store, 1, 2_000)
    store.close()
    assert _packs(tmp_path)[0][1] == 0, "not a spare one any more"
    store = _open(tmp_path, disk)
    assert store.condemn(BitMap64([0])) == BitMap64([0])
    store.drop_pack(PackIndex(0))
    store.close()
    assert _packs(tmp_path) == {0: (PACK_HEADER_BYTES, 0)}
    disk.inodes_left = 9
    disk.leave(20 * MIB)
    again = _open(tmp_path, disk)
    again.put(RecordKind.JOURNAL, [b"x"], again.lease())
    assert {info.index for info in again.packs()} == {1}


def test_the_spare_pack_is_the_newest_while_there_is_room(tmp_path: Path) -> None:
    store = open_store(new_volume(tmp_path))
    spare = PackIndex(0)
    for first in range(0, 300, 30):
        put_noise(store, range(first, first + 30), 60 * KIB)
        found = store.spare_pack()
        assert found is not None
        spare = found
        assert all(info.index < spare for info in store.packs())
        assert journal_floor(store) <= min(info.index for info in store.packs() if not info.sealed)
        assert store.headroom.whole
    assert max(_packs(tmp_path)) == spare + 1, "the stub"
    store.close()
    sizes = _packs(tmp_path)
    assert [index for index, (_, mark) in sorted(sizes.items()) if mark == SPARE_MARK] == [spare, spare + 1]


def test_a_record_in_the_spare_pack_is_above_the_journals_floor(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    store = _open(tmp_path, disk)
    put_noise(store, range(3), 1_000)
    floor = journal_floor(store)
    _fill(disk)
    while store.try_claim(100 * KIB, 1) is not None:
        pass
    (stored,) = store.put(
        RecordKind.JOURNAL, [noise(5, 60 * KIB)], store.lease(), store.headroom.take(60 * KIB + 64, 1)
    )
    assert pack_of(stored.number) >= floor


# --- in one process -------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[RecordStore]:
    """A store on a disk that cannot give another block; all that was free in it is claimed."""
    disk = _disk(tmp_path)
    store = _open(tmp_path, disk)
    put_noise(store, range(900, 903), 60 * KIB)
    disk.leave(0)
    while store.try_claim(1_000, 1) is not None:
        pass
    yield store
    store.close()


def test_data_never_touches_it_and_what_is_claimed_has_a_place_elsewhere(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    disk.leave(20 * MIB)
    store = _open(tmp_path, disk)
    claims: list[Claim] = []
    with pytest.raises(NoSpaceError):
        while True:
            claims.append(store.claim(64 * KIB, 2))
    disk.leave(0)
    assert store.headroom.whole
    spare = store.spare_pack()
    for number, claim in enumerate(claims):
        data = [noise(2 * number + part, 30 * KIB) for part in range(2)]
        for item in store.put(RecordKind.CHUNK, data, store.lease(), claim):
            assert pack_of(item.number) != spare
        store.forfeit(claim)
    assert store.headroom.whole
    assert store.spare_pack() == spare


def test_a_part_is_kept_for_commits(full: RecordStore) -> None:
    headroom = full.headroom
    taken = []
    while (claim := headroom.take(60_000, 1)) is not None:
        taken.append(claim)
    left = headroom.left_bytes()
    assert headroom.kept_bytes <= left < headroom.kept_bytes + 70_000
    with pytest.raises(NoSpaceError):
        full.put(RecordKind.DIR_CONTENT, [noise(1, 60_000)], full.lease())
    with full.closing():
        (stored,) = full.put(RecordKind.DIR_CONTENT, [noise(1, 60_000)], full.lease())
    assert full.read(stored.id).payload == noise(1, 60_000)
    assert headroom.left_bytes() < left
    for claim in taken:
        full.forfeit(claim)
    assert headroom.left_bytes() > headroom.wanted_bytes - 70_000


def test_removing_80000_files_fits(full: RecordStore) -> None:
    """Each claims for the worst case and writes a fraction of it; flushes give the rest back."""
    worst_bytes, written_bytes, done = 2_045, 40, 0
    flushes = 0
    while done < 80_000:
        claims = []
        while done < 80_000 and (claim := full.headroom.take(worst_bytes, 0)) is not None:
            claims.append(claim)
            done += 1
        assert len(claims) > 200 or done == 80_000, f"the headroom is used up after {done}"
        for claim in claims[1:]:
            full.merge(claims[0], claim)
        payload = noise(done, written_bytes * len(claims) // 4)
        full.put(RecordKind.JOURNAL, [payload], full.lease(), claims[0])
        full.forfeit(claims[0])
        flushes += 1
    assert flushes < 200


def test_room_that_comes_free_goes_there_first(full: RecordStore) -> None:
    claim = full.headroom.take(500_000, 1)
    assert claim is not None
    assert not full.headroom.refill()
    full.forfeit(claim)
    assert full.headroom.refill()
    assert full.try_claim(1_000, 1) is None, "nothing was left over"


# --- climbing -------------------------------------------------------------------------------------------------------


def test_the_hook_makes_room_and_is_called_under_no_lock(tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    store = _open(tmp_path, disk)
    disk.leave(0)
    met: list[NoSpaceError] = []

    def hook(error: NoSpaceError) -> None:
        met.append(error)
        other = threading.Thread(target=store.seal_open)
        other.start()
        other.join()
        with store.without_climbing(), pytest.raises(NoSpaceError):
            store.claim(30 * MIB, 1)
        disk.leave(len(met) * 8 * MIB)

    store.on_no_space(hook)
    store.forfeit(store.claim(1_000, 1))
    assert met[0].needed_bytes >= MIB
    disk.leave(0)
    store.put(RecordKind.CHUNK, [noise(seed, 60 * KIB) for seed in range(80)], store.lease())
    assert len(met) == 2


def test_who_may_not_climb_is_refused_at_once(full: RecordStore) -> None:
    asked: list[NoSpaceError] = []

    def refuse(error: NoSpaceError) -> None:
        asked.append(error)
        raise NoSpaceError("there is no way")

    full.on_no_space(refuse)
    with pytest.raises(NoSpaceError):
        full.claim(1_000, 1, climb=False)
    with full.without_climbing(), pytest.raises(NoSpaceError):
        full.put(RecordKind.CHUNK, [noise(1, 1000)], full.lease())
    with full.closing():
        full.put(RecordKind.CHUNK, [noise(2, 1000)], full.lease())
    assert not asked
    with full.closing(climb=True):
        full.put(RecordKind.CHUNK, [noise(3, 1000)], full.lease())
    assert len(asked) == 1, "room was asked for, and the headroom served where there was none"
    with pytest.raises(NoSpaceError, match="no way"):
        full.claim(1_000, 1)
    with pytest.raises(NoSpaceError, match="no way"):
        full.put(RecordKind.CHUNK, [noise(4, 1000)], full.lease())
