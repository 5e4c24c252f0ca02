"""Rebuilding: the index from packs alone, and snapshots whose slots are gone."""

import shutil
from pathlib import Path

import pytest

from repository.errors import DamagedError, LockedError
from repository.format.catalog import COPY_BYTES, HEAD_SLOT, copy_offset
from repository.policy.collect import Safety
from repository.rebuild import rebuild
from repository.storage.volume import Volume
from repository.units import KIB
from tests.support.repositories import SetClock, open_for_reading, open_for_writing, publish, read_files
from tests.support.stores import noise

A = {f"a{number}": noise(number, 40 * KIB) for number in range(5)}
B = A | {f"b{number}": noise(10 + number, 40 * KIB) for number in range(5)}


@pytest.fixture
def path(path: Path, clock: SetClock) -> Path:
    """The repository, with two snapshots."""
    with open_for_writing(path, clock) as repository:
        publish(repository, A, "a")
        publish(repository, B, "b")
    return path


def lose_slot(path: Path, index: int) -> None:
    with (path / "catalog").open("r+b") as file:
        for copy in (0, 1):
            file.seek(copy_offset(index, copy))
            file.write(b"\xaa" * COPY_BYTES)


def test_the_index_comes_back(path: Path, clock: SetClock) -> None:
    shutil.rmtree(path / "index")
    (path / "index").mkdir()
    report = rebuild(Volume(path), clock)
    assert report.found == ()
    assert report.records > 10
    assert list((path / "index").iterdir())
    with open_for_reading(path, clock) as repository:
        assert read_files(repository, repository.find("b")) == B


def test_a_lost_slot_is_found_in_the_packs_and_put_into_the_trash(path: Path, clock: SetClock) -> None:
    with open_for_reading(path, clock) as repository:
        index = repository.catalog.place(repository.find("a").snapshot_id)
    lose_slot(path, index)
    report = rebuild(Volume(path), clock)
    assert report.found == ("a",)
    assert not report.head_lost
    with open_for_writing(path, clock) as repository:
        assert repository.catalog.faults == ()
        back = repository.undelete(repository.snapshots.find_trash("a"))
        assert read_files(repository, back) == A
        repository.gc(safety=Safety.NONE)
        assert read_files(repository, repository.find("a")) == A
        assert repository.check(read_data=True).findings == ()


def test_a_lost_catalog_loses_no_snapshot(path: Path, clock: SetClock) -> None:
    (path / "catalog").unlink()
    report = rebuild(Volume(path), clock)
    assert sorted(report.found) == ["a", "b"]
    assert report.head_lost
    with open_for_writing(path, clock) as repository:
        for name, files in (("a", A), ("b", B)):
            assert read_files(repository, repository.undelete(repository.snapshots.find_trash(name))) == files


def test_a_lost_head_goes_back_to_the_last_commit(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, A, "of live", source="live")
    lose_slot(path, HEAD_SLOT)
    with pytest.raises(DamagedError):
        open_for_reading(path, clock)
    report = rebuild(Volume(path), clock)
    assert report.head_lost
    with open_for_reading(path, clock) as repository:
        assert [slot.name for slot in repository.listed()] == ["a", "b", "of live"]
        head = repository.catalog.head()
        assert head.manifest == repository.find("of live").manifest
        assert not head.clean


def test_what_was_collected_does_not_come_back(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        repository.delete(repository.find("b"))
        assert repository.gc(safety=Safety.NONE).freed_bytes
        index = repository.catalog.place(repository.find("a").snapshot_id)
    lose_slot(path, index)
    assert rebuild(Volume(path), clock).found == ("a",)


def test_not_while_somebody_writes(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock), pytest.raises(LockedError, match="Process"):
        rebuild(Volume(path), clock)
