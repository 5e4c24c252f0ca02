"""The golden repository of format 1 stays readable: everything in it, its journal, and without its caches."""

import hashlib
import shutil
from pathlib import Path

from repository.policy.collect import Safety
from repository.repo import Repository
from tests.format.golden import Expected, differences
from tests.format.ours import live_rows, snapshot_rows
from tests.support.sync_live import SyncLive


def fingerprint(root: Path) -> dict[str, str]:
    """Every file's bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def agree(repository: Repository, expected: Expected) -> None:
    """Every snapshot of the golden repository is there and reads back."""
    slots = {slot.snapshot_id: slot for slot in (*repository.listed(), *repository.trash())}
    wanted = [one for one in expected["snapshots"] if one["kind"] != "provisional"]
    assert {one["id"] for one in wanted} <= set(slots)
    for one in wanted:
        slot = next(slot for number, slot in slots.items() if number == one["id"])
        assert (slot.name, slot.source, slot.pinned) == (one["name"], one["source"], one["pinned"])
        assert not differences(snapshot_rows(repository, slot), one["rows"])


def test_reading_it_finds_everything_and_changes_nothing(own_copy: Path, expected: Expected) -> None:
    before = fingerprint(own_copy)
    with Repository.open(own_copy, writable=False) as repository:
        agree(repository, expected)
        assert repository.check(read_data=True).findings == ()
    assert fingerprint(own_copy) == before


def test_its_journal_is_replayed(own_copy: Path, expected: Expected) -> None:
    live = SyncLive(own_copy)
    assert not live.recovery.was_clean
    assert not differences(live_rows(live), expected["live"])
    agree(live.repository, expected)
    live.close()
    with Repository.open(own_copy, writable=True) as repository:
        repository.gc(safety=Safety.FULL)
        agree(repository, expected)
        assert repository.check(read_data=True).is_sound


def test_it_is_whole_without_its_caches(own_copy: Path, expected: Expected) -> None:
    shutil.rmtree(own_copy / "index")
    (own_copy / "index").mkdir(mode=0o700)
    with Repository.open(own_copy, writable=False) as repository:
        agree(repository, expected)
