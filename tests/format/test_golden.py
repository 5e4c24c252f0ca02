"""The golden repository is read, recovered, collected and rebuilt by the present code, as by all that come after it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from repository.format.catalog import Slot, SlotState
from repository.format.record import RecordKind
from repository.ids import SnapshotId
from repository.policy.collect import Safety
from repository.rebuild import rebuild
from repository.repo import Repository
from repository.storage.volume import Volume
from repository.units import NS_PER_S
from tests.format.conftest import Members
from tests.format.golden import ARCHIVE, EXPECTED, Expected, ExpectedSnapshot, differences, lay_out
from tests.format.ours import live_rows, snapshot_rows
from tests.support.repositories import SetClock, open_for_reading, open_for_writing
from tests.support.sync_live import SyncLive, read_inode

State = dict[str, tuple[int, int, bytes]]
SIZE_MAX = 300_000


@pytest.fixture
def clock() -> SetClock:
    """An hour behind the maker's end."""
    return SetClock((1_800_000_000 + 2 * 86_400 + 3_600) * NS_PER_S)


def state(root: Path) -> State:
    """Mode, modification time and bytes of everything."""
    found: State = {}
    for path in sorted(root.rglob("*")):
        here = path.stat()
        found[str(path.relative_to(root))] = here.st_mode, here.st_mtime_ns, b"" if path.is_dir() else path.read_bytes()
    return found


def told(slot: Slot) -> dict[str, object]:
    return {
        "id": slot.snapshot_id, "name": slot.name, "source": slot.source,
        "state": "trash" if slot.state is SlotState.TRASH else "live", "kind": slot.kind.name.lower(),
        "pinned": slot.pinned, "time_ns": slot.time_ns, "deleted_ns": slot.deleted_ns, "files": slot.totals.files,
        "content_bytes": slot.totals.content_bytes, "next_file_id": slot.next_file_id,
    }  # fmt: skip


def verify(repository: Repository, wanted: Sequence[ExpectedSnapshot]) -> None:
    """These snapshots are there, and everything in them is."""
    slots = {slot.snapshot_id: slot for slot in (*repository.listed(), *repository.trash())}
    for snapshot in wanted:
        slot = slots[SnapshotId(snapshot["id"])]
        assert told(slot) == {key: value for key, value in snapshot.items() if key != "rows"}
        assert not differences(snapshot_rows(repository, slot), snapshot["rows"]), slot.name


def verify_all(path: Path, clock: SetClock, expected: Expected) -> None:
    with open_for_reading(path, clock) as repository:
        listed = [one["id"] for one in expected["snapshots"] if one["state"] == "live"]
        assert sorted(slot.snapshot_id for slot in repository.listed()) == listed
        assert len(repository.trash()) == len(expected["snapshots"]) - len(listed) == 1
        verify(repository, expected["snapshots"])
        report = repository.check(read_data=True)
        assert not report.findings, report.text()
        assert report.snapshots >= len(expected["snapshots"])
        assert repository.status().snapshots == len(listed)
        assert [event.name for event in repository.events.events()] == expected["events"]


@pytest.mark.parametrize(
    "as_it_was",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["with its holes", "copied without holes and times"],
)
def test_reading_finds_everything_and_changes_nothing(
    members: Members, expected: Expected, tmp_path: Path, clock: SetClock, as_it_was: bool
) -> None:
    path = tmp_path / "repository"
    lay_out(members, path, as_it_was=as_it_was)
    before = state(path)
    verify_all(path, clock, expected)
    assert state(path) == before


@pytest.mark.slow
def test_recovering_finds_live(own_copy: Path, expected: Expected, clock: SetClock) -> None:
    live = SyncLive(own_copy, clock=clock)
    assert (live.recovery.was_clean, live.recovery.stopped) == (False, None)
    assert live.recovery.changes == sum(expected["changes"].values())
    assert not differences(live_rows(live), expected["live"])
    live.close()
    with open_for_reading(own_copy, clock) as repository:
        verify(repository, expected["snapshots"])
        last = repository.latest()
        assert last is not None
        assert not differences(snapshot_rows(repository, last), expected["live"])
        report = repository.check(read_data=True)
        assert not report.findings, report.text()


@pytest.mark.slow
@pytest.mark.parametrize("safety", list(Safety))
def test_collecting_takes_nothing_that_is_needed(
    own_copy: Path, expected: Expected, clock: SetClock, safety: Safety
) -> None:
    """Before the journal is replayed: what it names is a root as well."""
    with open_for_writing(own_copy, clock) as repository:
        clock.pass_days(0.1)
        report = repository.gc(safety=safety)
        trash = repository.trash()
    assert [len(report.expired), len(trash)] == ([1, 0] if safety is Safety.NONE else [0, 1])
    left = [one for one in expected["snapshots"] if one["state"] == "live" or safety is Safety.FULL]
    live = SyncLive(own_copy, clock=clock)
    assert not differences(live_rows(live), expected["live"])
    verify(live.repository, left)
    live.close()
    with open_for_writing(own_copy, clock) as repository:
        clock.pass_days(2)
        assert report.freed_bytes + repository.gc(safety=safety).freed_bytes > 0
    with open_for_reading(own_copy, clock) as repository:
        verify(repository, [one for one in left if one["state"] == "live"])
        checked = repository.check(read_data=True)
        assert not checked.findings, checked.text()


def test_undeleting(own_copy: Path, expected: Expected, clock: SetClock) -> None:
    wanted = next(one for one in expected["snapshots"] if one["state"] == "trash")
    with open_for_writing(own_copy, clock) as repository:
        slot = repository.undelete(repository.trash()[0])
        assert not differences(snapshot_rows(repository, slot), wanted["rows"])


@pytest.mark.slow
def test_the_index_is_a_cache(own_copy: Path, expected: Expected, clock: SetClock) -> None:
    for path in own_copy.glob("index/*"):
        path.unlink()
    verify_all(own_copy, clock, expected)
    assert not list(own_copy.glob("index/*"))
    report = rebuild(Volume(own_copy), clock)
    assert (report.found, report.head_lost) == ((), False)
    assert list(own_copy.glob("index/*.seg"))
    verify_all(own_copy, clock, expected)


def test_what_it_holds_is_not_stored_again(own_copy: Path, clock: SetClock) -> None:
    with open_for_writing(own_copy, clock) as repository, repository.store.lease() as lease:
        noise = repository.reader.lookup(repository.root(repository.find("before the move")).directory, b"noise")
        assert noise is not None
        data = read_inode(repository, noise)
        again, changed = repository.store.put(RecordKind.CHUNK, [data, data[1:]], lease)
        assert (again.new, changed.new) == (False, True)


def test_the_files_stay_small() -> None:
    assert ARCHIVE.stat().st_size + EXPECTED.stat().st_size < SIZE_MAX
