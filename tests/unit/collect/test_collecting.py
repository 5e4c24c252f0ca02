"""Collections in real repositories: what is freed, what stays, what the figures say."""

import os
from pathlib import Path

import pytest

from repository.errors import BusyError, DamagedError, NameTakenError, NoSuchSnapshotError, UsageError
from repository.format.catalog import copy_offset
from repository.format.pack import pack_path
from repository.ids import pack_of
from repository.policy.collect import Safety
from repository.reach import walk
from repository.repo import Repository
from repository.units import KIB
from tests.support.repositories import (
    SetClock,
    open_for_reading,
    open_for_writing,
    pack_blocks_bytes,
    publish,
    read_files,
)
from tests.support.stores import noise


def many(seed: int, count: int = 12, length: int = 150 * KIB) -> dict[str, bytes]:
    return {f"f{number:02}": noise(seed * 1000 + number, length) for number in range(count)}


def test_deleting_and_collecting_gives_back_what_was_said_before(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        kept = many(1)
        first = publish(repository, kept, "first")
        publish(repository, kept | many(2), "second", parent=first)
    with open_for_writing(path, clock) as repository:
        doomed = repository.find("second")
        promised = repository.reclaimable_bytes([doomed])
        repository.gc()
        assert repository.unique_bytes([doomed]) == [repository.reclaimable_bytes([doomed])]
        promised = repository.reclaimable_bytes([doomed])
        before = pack_blocks_bytes(path)
        repository.delete(doomed)
        assert repository.reclaimable_bytes() == promised
        report = repository.gc(safety=Safety.NONE)
        assert report.freed_bytes == promised > 12 * 140 * KIB
        assert before - pack_blocks_bytes(path) == promised
        assert report.expired == ("second",)
        assert read_files(repository, repository.find("first")) == kept
    with open_for_reading(path, clock) as repository:
        assert read_files(repository, repository.find("first")) == kept
        assert repository.check(read_data=True).findings == ()
        assert repository.reclaimable_bytes() == 0


def test_the_window_keeps_deleted_snapshots_and_young_records(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "a")
        publish(repository, many(2), "b")
        deleted = repository.delete(repository.find("b"))
        assert repository.gc().freed_bytes == 0
        clock.pass_days(0.9)
        assert repository.gc().freed_bytes == 0
        assert repository.undelete(deleted).name == "b"
        deleted = repository.delete(repository.find("b"))
        clock.pass_days(0.5)
        assert repository.gc().expired == ()
        clock.pass_days(0.6)
        report = repository.gc()
        assert report.expired == ("b",)
        assert report.freed_bytes > 12 * 140 * KIB
        with pytest.raises(NoSuchSnapshotError):
            repository.undelete(deleted)
        assert read_files(repository, repository.find("a")) == many(1)


def test_a_clock_that_goes_back_makes_nothing_older(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "a")
        repository.delete(repository.find("a"))
        clock.pass_days(-400)
        assert repository.gc().expired == ()
        assert len(repository.trash()) == 1


def test_a_dry_run_changes_nothing_and_says_the_same(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "a")
        publish(repository, many(2), "b")
        repository.gc()
        repository.delete(repository.find("b"))
    image = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with open_for_reading(path, clock) as repository:
        planned = repository.gc(safety=Safety.NONE, dry_run=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == image
    with open_for_writing(path, clock) as repository:
        assert repository.gc(safety=Safety.NONE).freed_bytes == planned.plan.reclaimable_bytes > 0


def test_shared_chunks_stay_and_freed_ones_are_stored_anew(path: Path, clock: SetClock) -> None:
    shared, alone = many(1), many(2)
    with open_for_writing(path, clock) as repository:
        publish(repository, shared | alone, "a")
        publish(repository, shared, "b")
    with open_for_writing(path, clock) as repository:
        repository.delete(repository.find("a"))
        assert repository.gc(safety=Safety.NONE).freed_bytes > 0
        # The bytes that were just freed come again: a look-up that still answered would refer to a hole.
        again = publish(repository, shared | alone, "c")
        assert read_files(repository, again) == shared | alone
    with open_for_writing(path, clock) as repository:
        publish(repository, alone, "d")
        assert read_files(repository, repository.find("c")) == shared | alone
        assert repository.check(read_data=True).findings == ()


def test_what_is_leased_is_spared(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "a")
        with repository.store.lease() as lease:
            repository.delete(repository.find("a"))
            stored = repository.store.put_bytes(many(1)["f00"], final=True, lease=lease)[0]
            repository.gc(safety=Safety.NONE)
            first = stored[0].id
            assert first is not None
            assert repository.store.read(first).payload
        assert repository.gc(safety=Safety.NONE).freed_bytes > 0


def test_wholly_dead_packs_are_unlinked_and_their_numbers_never_come_again(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1, count=40), "a")
        repository.store.seal_open()
        highest = max(info.index for info in repository.store.packs())
    with open_for_writing(path, clock) as repository:
        repository.delete(repository.find("a"))
        assert repository.gc(safety=Safety.NONE).plan.drops
    with open_for_writing(path, clock) as repository:
        publish(repository, many(2), "b")
        assert min(info.index for info in repository.store.packs()) > highest
        assert read_files(repository, repository.find("b")) == many(2)


@pytest.mark.logs("record.damaged")
def test_a_damaged_tree_stops_the_collection(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        kept = publish(repository, many(1), "a")
        publish(repository, many(2), "b")
        repository.delete(repository.find("b"))
        listing = repository.root(kept).directory.content
        assert listing is not None
        place = repository.store.locate([listing])[0]
    assert place is not None
    with (path / pack_path(pack_of(place.number))).open("r+b") as file:
        file.seek(place.offset + 80)
        file.write(os.urandom(16))
    with open_for_writing(path, clock) as repository:
        before = pack_blocks_bytes(path)
        with pytest.raises(DamagedError):
            repository.gc(safety=Safety.NONE)
        assert pack_blocks_bytes(path) == before
        report = repository.check()
        assert not report.is_sound
        assert any("snapshot 'a'" in finding.place for finding in report.findings)


def test_exact_bitmaps_are_what_walking_finds(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        parent = publish(repository, many(1), "a")
        for number in range(5):
            parent = publish(repository, many(1) | many(2 + number, count=2), f"s{number}", parent=parent)
        repository.gc()
        slots = repository.catalog.slots()
        assert all(slot.exact for slot in slots)
        for slot in slots:
            numbers = repository.publisher.numbers_of(slot)
            assert numbers == walk(repository.store, [slot.manifest])
        assert repository.check().findings == ()


def test_what_is_collected_at_once_is_not_made_exact_before(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        parent = publish(repository, many(1), "a")
        for number in range(5):
            parent = publish(repository, many(1) | many(2 + number, count=2), f"s{number}", parent=parent)
        for name in ("s1", "s2", "s4"):
            repository.delete(repository.find(name))
        report = repository.gc(safety=Safety.NONE)
        slots = repository.catalog.slots()
        assert (report.made_exact, len(report.expired)) == (len(slots), 3)
        assert all(slot.exact for slot in slots)
        for slot in slots:
            assert repository.publisher.numbers_of(slot) == walk(repository.store, [slot.manifest])
        assert repository.check().findings == ()
        assert repository.reclaimable_bytes() == 0


def test_names_pins_and_errors(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        slot = publish(repository, {"f": b"x"}, "a")
        other = publish(repository, {"f": b"y"})
        assert other.name == "2027-01-15T08-00-00Z"
        assert publish(repository, {"f": b"z"}).name == "2027-01-15T08-00-00Z-2"
        with pytest.raises(NameTakenError):
            repository.rename(other, "a")
        for bad in ("", ".", "..", "latest", "a/b", "a\0b", "\udcff", "ä" * 128):
            with pytest.raises(UsageError):
                repository.rename(other, bad)
        repository.pin(slot)
        with pytest.raises(BusyError):
            repository.delete(slot)
        repository.unpin(slot)
        gone = repository.delete(slot)
        with pytest.raises(NoSuchSnapshotError):
            repository.find("a")
        publish(repository, {"f": b"w"}, "a")
        with pytest.raises(NameTakenError):
            repository.undelete(gone)
        assert repository.undelete(gone, "a again").name == "a again"
        assert repository.find("a again").snapshot_id == slot.snapshot_id
        assert repository.find(f"{slot.snapshot_id:016x}").name == "a again"


def test_a_snapshot_that_is_needed_or_open_outlives_its_deletion(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        needed, held = publish(repository, many(1), "a"), publish(repository, many(2), "b")
        with repository.using(needed), repository.holding(held):
            repository.delete(needed)
            repository.delete(held)
            clock.pass_days(2)
            assert repository.gc().expired == ()
            assert repository.gc(safety=Safety.NONE).expired == ("b",)
            assert read_files(repository, needed) == many(1)
        assert repository.gc().expired == ("a",)


def test_no_collection_while_a_slot_is_unreadable(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        slot = publish(repository, many(1), "a")
        index = repository.catalog.place(slot.snapshot_id)
    damage_slot(path, index)
    with open_for_writing(path, clock) as repository:
        assert repository.listed() == []
        with pytest.raises(DamagedError, match="rebuild"):
            repository.gc(safety=Safety.NONE)


def damage_slot(path: Path, index: int) -> None:
    with (path / "catalog").open("r+b") as file:
        for copy in (0, 1):
            file.seek(copy_offset(index, copy))
            file.write(b"\xaa" * 1024)


def test_events_are_kept(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "a")
        repository.delete(repository.find("a"))
        repository.gc(safety=Safety.NONE)
    with Repository.open(path, writable=False, clock=clock) as repository:
        names = [event.name for event in repository.events.events()]
    assert names == ["snapshot.deleted", "collect.done"]


@pytest.mark.logs("record.damaged")
def test_the_copy_that_healed_a_snapshot_outlives_its_own(path: Path, clock: SetClock) -> None:
    """'old' names a chunk whose bytes rot; 'new' stores them again and is deleted: the good copy has to stay."""
    files = {"f": noise(5, 40 * KIB)}
    with open_for_writing(path, clock) as repository:
        old = publish(repository, files, "old")
        publish(repository, many(1), "other")
        repository.gc()
        inode = next(iter(repository.reader.scan(repository.root(old).directory))).inode
        assert isinstance(inode.extents, tuple)
        chunk = inode.extents[0].chunk
        place = repository.store.locate([chunk])[0]
        assert place is not None
    with (path / pack_path(pack_of(place.number))).open("r+b") as file:
        file.seek(place.offset + 5000)
        file.write(b"rot")
    with open_for_writing(path, clock) as repository:
        with pytest.raises(DamagedError):
            read_files(repository, old)
        publish(repository, files | many(2, count=2), "new")
        assert read_files(repository, old) == files
        assert len(repository.store.copies(chunk)) == 2
        repository.delete(repository.find("new"))
        assert repository.gc(safety=Safety.NONE).freed_bytes > 200 * KIB
        assert read_files(repository, old) == files
        assert repository.check().findings == ()
    with open_for_writing(path, clock) as repository:
        repository.gc(safety=Safety.NONE)
        assert read_files(repository, old) == files
