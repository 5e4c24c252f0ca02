"""Publishing trees and committing heads: one durable step, the bitmap never too small."""

from pathlib import Path

import pytest

from repository.errors import NameTakenError, NoSuchSnapshotError
from repository.format.catalog import Slot, SnapshotKind
from repository.format.journal import JournalMark
from repository.ids import NO_ID, PackIndex
from repository.policy.collect import Safety
from repository.reach import walk
from repository.repo import Repository, SnapshotWish
from repository.snapshots import LIVE_SOURCE
from repository.units import KIB
from tests.support.calls import RecordingCalls
from tests.support.repositories import (
    SetClock,
    open_for_reading,
    open_for_writing,
    publish,
    read_files,
    write_tree,
)
from tests.support.stores import noise


def commit(repository: Repository, seed: int, wish: SnapshotWish | None, *, clean: bool = False) -> Slot | None:
    with repository.store.lease() as lease:
        tree = write_tree(repository, {"f": noise(seed, 20 * KIB)}, lease, source=LIVE_SOURCE)
        return repository.commit(
            tree, lease, journal=JournalMark(seed, seed + 1), journal_floor=PackIndex(seed), wish=wish, clean=clean
        )


def test_a_commit_moves_the_head_and_makes_its_snapshot(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        assert repository.manifest(repository.catalog.head()) is None
        assert repository.root(repository.catalog.head()).totals.files == 0
        slot = commit(repository, 3, SnapshotWish(SnapshotKind.IMPLICIT))
        assert slot is not None
    with open_for_reading(path, clock) as repository:
        head = repository.catalog.head()
        assert (head.commit_serial, head.journal, head.journal_floor) == (1, (3, 4), 3)
        assert head.manifest == slot.manifest
        assert head.bitmap == slot.bitmap != NO_ID
        assert repository.latest() == repository.find("latest") == slot
        assert repository.root(head).totals.content_bytes == 20 * KIB
        assert read_files(repository, slot) == {"f": noise(3, 20 * KIB)}


def test_a_commit_without_a_snapshot_only_moves_the_head(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        assert commit(repository, 1, None) is None
        assert repository.catalog.slots() == []
        repository.gc(safety=Safety.NONE)
        assert repository.catalog.head().exact
        assert len(walk(repository.store, [repository.catalog.head().manifest])) == 4
        assert repository.check(read_data=True).findings == ()


def test_a_provisional_snapshot_is_hidden_and_gives_its_slot_to_the_next(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        first = commit(repository, 1, SnapshotWish(SnapshotKind.PROVISIONAL))
        assert first is not None
        assert repository.listed() == []
        assert repository.latest() is None
        with pytest.raises(NoSuchSnapshotError):
            repository.find(first.name)
        with pytest.raises(NoSuchSnapshotError):
            repository.delete(first)
        place = repository.catalog.place(first.snapshot_id)
        other = publish(repository, {"x": b"x"}, "of another source")
        assert repository.catalog.place(other.snapshot_id) != place
        second = commit(repository, 2, SnapshotWish(SnapshotKind.PROVISIONAL))
        third = commit(repository, 3, SnapshotWish(SnapshotKind.NAMED, "before-upgrade"))
        assert second is not None
        assert third is not None
        assert repository.catalog.place(third.snapshot_id) == place
        assert [slot.name for slot in repository.catalog.slots() if slot.source == LIVE_SOURCE] == ["before-upgrade"]
        assert first.snapshot_id < second.snapshot_id < third.snapshot_id


def test_names_are_refused_before_anything_is_written(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, {"x": b"x"}, "a")
        records = [info.records for info in repository.store.packs()]
        with repository.store.lease() as lease:
            tree = write_tree(repository, {"x": b"x"}, lease)
            with pytest.raises(NameTakenError):
                repository.publish(tree, lease, name="a")
        assert [info.records for info in repository.store.packs()] == records


def test_bitmaps_err_only_towards_keeping(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        for seed in range(70):
            commit(repository, seed, SnapshotWish(SnapshotKind.IMPLICIT))
        for slot in repository.catalog.slots():
            assert walk(repository.store, [slot.manifest]) <= repository.publisher.numbers_of(slot)
        assert repository.check().findings == ()
        repository.gc()
        for slot in repository.catalog.slots():
            assert walk(repository.store, [slot.manifest]) == repository.publisher.numbers_of(slot)
        assert repository.check(read_data=True).findings == ()


def test_a_parent_that_is_gone_cannot_be_built_on(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        parent = publish(repository, {"x": noise(1, 50 * KIB)}, "a")
        repository.delete(parent)
        repository.gc(safety=Safety.NONE)
        with pytest.raises(NoSuchSnapshotError):
            publish(repository, {"x": b"x"}, "b", parent=parent)
        with pytest.raises(NoSuchSnapshotError), repository.using(parent):
            pass


@pytest.mark.logs("record.damaged")
def test_a_parent_whose_bitmap_rots_is_walked(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        parent = publish(repository, {"x": noise(1, 50 * KIB)}, "a")
        place = repository.store.locate([parent.bitmap])[0]
        assert place is not None
    pack = next(file for file in path.rglob(f"{place.number >> 16:08x}.pack"))
    with pack.open("r+b") as file:
        file.seek(place.offset + 70)
        file.write(b"rot")
    with open_for_writing(path, clock) as repository:
        slot = publish(repository, {"y": noise(2, 50 * KIB)}, "b", parent=parent)
        assert walk(repository.store, [parent.manifest]) <= repository.publisher.numbers_of(slot)
        repository.gc(safety=Safety.NONE)
        assert read_files(repository, repository.find("a")) == {"x": noise(1, 50 * KIB)}


def test_mounting_and_unmounting_leave_their_marks(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        assert repository.marks.mounted("/mnt").clean
        mark = repository.marks.restart_journal()
        assert repository.catalog.head().journal == mark
        commit(repository, 1, None)
        assert not repository.catalog.head().clean
    with open_for_writing(path, clock) as repository:
        before = repository.marks.mounted("/mnt")
        assert not before.clean
        assert 0 < before.mounted_ns < clock.ns
        commit(repository, 2, None, clean=True)
        repository.marks.unmounted()
    with open_for_writing(path, clock) as repository:
        assert repository.marks.mounted(None).clean


def test_what_publishing_costs(path: Path, clock: SetClock) -> None:
    """A small snapshot onto a parent: records in one write a stream, one sync of each pack, one slot."""
    calls = RecordingCalls()
    with open_for_writing(path, clock, calls) as repository:
        parent = publish(repository, {"x": noise(1, 30 * KIB)}, "a")
        repository.store.sync()
        calls.counts.clear()
        publish(repository, {"x": noise(1, 30 * KIB), "y": noise(2, 30 * KIB)}, "b", parent=parent)
        assert (
            calls.counts["fdatasync"] <= 5
        )  # two packs, the slot; the mirror of the slot before, which shares its page
        assert calls.counts["open"] == 0
        assert calls.counts["pwrite"] + calls.counts["pwritev"] <= 8
        assert calls.counts["fallocate"] == 0
