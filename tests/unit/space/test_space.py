"""The reserve, the quota, the guard, and what init refuses."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from repository.errors import NoRepositoryError, NoSpaceError, UsageError
from repository.policy.collect import Safety
from repository.policy.levels import Level, Room, level_of
from repository.repo import Repository
from repository.storage.calls import Calls
from repository.storage.room import KEPT_FROM_ALL_BLOCKS, RoomProbe
from repository.storage.volume import Volume
from repository.units import GB, GIB, KIB, MIB
from tests.support.calls import Fault, FaultyCalls
from tests.support.repositories import SetClock, make, open_for_reading, open_for_writing, publish
from tests.support.stores import noise

RESERVE = 2 * MIB


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def test_init_makes_everything_that_is_overwritten_later(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE)
    names = sorted(entry.name for entry in path.iterdir())
    assert names == ["ballast.reserve", "catalog", "events", "index", "intent", "lock", "packs", "repository.json"]
    assert len(list((path / "packs").iterdir())) == 256
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in path.rglob("*") if file.is_file())
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in [path, *path.rglob("packs/*")])
    assert (path / "ballast.reserve").stat().st_blocks * 512 >= RESERVE
    with pytest.raises(UsageError, match="holds a repository already"):
        make(path, clock)


def test_init_refuses_a_directory_that_is_in_use(tmp_path: Path, clock: SetClock) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        make(tmp_path, clock)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_init_without_room_says_the_figures_and_leaves_nothing(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    with pytest.raises(NoSpaceError, match=r"needed \(reserve 400.0 MB.*--reserve 0") as caught:
        Repository.init(path, reserve_bytes=400_000_000, quota_bytes=100_000_000, clock=clock)
    assert caught.value.exit_code == 28
    assert not path.exists()


def test_init_that_meets_a_full_disk_leaves_nothing(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    calls = FaultyCalls(faults=[Fault("fallocate", errno.ENOSPC, path="ballast.reserve")])
    with pytest.raises(NoSpaceError):
        make(path, clock, calls=calls)
    calls.check()
    assert not path.exists()


def test_no_repository(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NoRepositoryError, match="ballast init"):
            Repository.open(path, writable=False)


def test_a_lent_reserve_comes_back_when_it_fits(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE)
    with open_for_writing(path, clock) as repository:
        assert repository.space.release(1 * MIB) >= 1 * MIB
        assert not repository.space.reserve().whole
        assert repository.space.reserve().missing_bytes == 1 * MIB
    with open_for_reading(path, clock) as repository:
        assert repository.status().to_json()["reserve"] == {
            "whole": False,
            "bytes": RESERVE - 1 * MIB,
            "wanted_bytes": RESERVE,
        }
    with open_for_writing(path, clock) as repository:
        assert repository.space.reserve().whole


@pytest.mark.parametrize("gone", [False, True])
def test_while_the_reserve_is_missing_nothing_grows_but_deleting_works(
    tmp_path: Path, clock: SetClock, gone: bool
) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE)
    with open_for_writing(path, clock) as repository:
        publish(repository, {f"f{number}": noise(number, 200 * KIB) for number in range(8)}, "a")
    if gone:
        (path / "ballast.reserve").unlink()
    else:
        os.truncate(path / "ballast.reserve", 0)
    calls = FaultyCalls(
        faults=[
            Fault("fallocate", errno.ENOSPC, path="ballast.reserve", times=9),
            Fault("create", errno.ENOSPC, path="ballast.reserve", times=9),
        ]
    )
    with open_for_writing(path, clock, calls) as repository:
        with pytest.raises(
            NoSpaceError, match=r"^The reserve \(2.1 MB\) is missing and does not fit: .* free\. Delete"
        ):
            publish(repository, {"g": noise(99, 200 * KIB)}, "b")
        assert [slot.name for slot in repository.listed()] == ["a"]
        repository.delete(repository.find("a"))
        assert repository.gc(safety=Safety.NONE).freed_bytes > 1 * MIB
        calls.faults.clear()
        publish(repository, {"g": noise(99, 200 * KIB)}, "b")
        assert repository.space.reserve().whole


def test_the_quota_counts_all_blocks(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE, quota_bytes=40 * MIB)
    with open_for_writing(path, clock) as repository:
        room = repository.space.room()
        assert room.capacity_bytes == 40 * MIB
        used = sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
        assert repository.space.used_bytes() == used
        with pytest.raises(NoSpaceError, match=r"quota of 41\.9 MB"):
            publish(repository, {f"f{number}": noise(number, 900 * KIB) for number in range(40)}, "a")
        assert repository.space.used_bytes() <= 40 * MIB
        publish(repository, {"small": b"x"}, "b")


@pytest.mark.parametrize(
    ("available", "previous", "expected"),
    [
        (0.50, Level.HEALTHY, Level.HEALTHY),
        (0.199, Level.HEALTHY, Level.INFO),
        (0.21, Level.INFO, Level.INFO),
        (0.22, Level.INFO, Level.HEALTHY),
        (0.099, Level.INFO, Level.WARNING),
        (0.11, Level.WARNING, Level.WARNING),
        (0.12, Level.WARNING, Level.INFO),
        (0.049, Level.HEALTHY, Level.CRITICAL),
        (0.06, Level.CRITICAL, Level.CRITICAL),
        (0.07, Level.CRITICAL, Level.WARNING),
        (0.5, Level.CRITICAL, Level.HEALTHY),
        (0.049, Level.UNKNOWN, Level.CRITICAL),
    ],
)
def test_levels_are_left_two_points_above(available: float, previous: Level, expected: Level) -> None:
    capacity = 10 * GB
    assert level_of(Room(capacity, round(capacity * available)), previous) is expected


def test_one_gigabyte_is_critical_from_twenty_on() -> None:
    assert level_of(Room(20 * GB, GB - 1)) is Level.CRITICAL
    assert level_of(Room(4000 * GB, GB - 1)) is Level.CRITICAL
    assert level_of(Room(19 * GB, GB - 1)) is Level.WARNING


def test_inodes_count_too() -> None:
    assert level_of(Room(100 * GIB, 90 * GIB, 1000, 40)) is Level.CRITICAL
    assert level_of(Room(100 * GIB, 90 * GIB, 0, 0)) is Level.HEALTHY


class _Counting(Calls):
    """Counts looks at files."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()

    def stat(self, path: str) -> os.stat_result:
        self.looks[os.path.basename(path)] += 1
        return super().stat(path)


def test_the_guard_looks_at_the_reserve_once_a_second(tmp_path: Path, clock: SetClock) -> None:
    path, calls = tmp_path / "r", _Counting()
    make(path, clock, reserve_bytes=RESERVE, quota_bytes=0)
    with open_for_writing(path, clock, calls) as repository:
        repository.space.require_growth(1 * MIB)
        calls.looks.clear()
        for _ in range(1000):
            repository.space.require_growth(1 * MIB)
        assert calls.looks["ballast.reserve"] <= 1
        os.truncate(path / "ballast.reserve", 0)  # by somebody else
        clock.pass_days(1)
        with pytest.raises(NoSpaceError, match="reserve"):
            repository.space.require_growth(1 * MIB)


def test_the_guard_of_a_quota_looks_at_the_packs_now_and_then(tmp_path: Path, clock: SetClock) -> None:
    path, calls = tmp_path / "r", _Counting()
    make(path, clock, reserve_bytes=RESERVE)
    with open_for_writing(path, clock, calls) as repository:
        publish(repository, {"f": noise(1, 200 * KIB)}, "a")
        calls.looks.clear()
        for _ in range(60):
            repository.space.require_growth(1 * MIB)
        assert sum(looks for name, looks in calls.looks.items() if name.endswith(".pack")) <= 10


def test_whether_room_is_really_there_is_tried_and_taken_back(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE)
    calls = FaultyCalls()
    with open_for_writing(path, clock, calls) as repository:
        before = (path / "ballast.reserve").stat()
        assert repository.space.fits(1 * MIB)
        calls.faults.append(Fault("fallocate", errno.EDQUOT, path="ballast.reserve"))
        assert not repository.space.fits(1 * MIB)
        calls.check()
        after = (path / "ballast.reserve").stat()
        assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
        assert not repository.space.fits(1 << 60)


def test_a_quota_that_is_used_up_climbs_and_the_trash_pays(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE, quota_bytes=60 * MIB)
    with open_for_writing(path, clock) as repository:
        for round_ in range(4):
            files = {f"f{number}": noise(100 * round_ + number, 900 * KIB) for number in range(20)}
            repository.delete(publish(repository, files, f"s{round_}"))
        assert repository.space.used_bytes() <= 60 * MIB
        assert repository.space.reserve().whole
        told = [event for event in repository.events.events() if event.name == "recovery.done"]
        assert told
        assert {event.fields["outcome"] for event in told} == {"recovered"}


class _Steady:
    """A volume of 100 GB with 1 GB free."""

    def capacity_bytes(self) -> int:
        return 100 * GB

    def available_bytes(self) -> int:
        return GB

    def growth_bytes(self) -> int:
        return GB

    def allocatable_bytes(self) -> int:
        return GB

    def capacity_inodes(self) -> int:
        return 0

    def available_inodes(self) -> int:
        return 0


def test_on_a_copy_on_write_volume_growth_leaves_a_cushion(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r"
    make(path, clock, reserve_bytes=RESERVE, quota_bytes=0)
    with Repository.open(path, writable=True, clock=clock, probe=_Steady()) as repository:
        assert repository.space.sight().available_bytes == GB
        monkeypatch.setattr(Volume, "frees_late", True)
        assert repository.space.sight().available_bytes == GB - 64 * MIB
        with pytest.raises(NoSpaceError, match="disk is full"):
            repository.space.require_growth(GB - 63 * MIB)
        repository.space.require_growth(GB - 64 * MIB)


class _KeptForRoot(Calls):
    """A volume that keeps blocks for root, of which others may have taken: ext4 as root sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.available_blocks = 1 << 20
        self.free_blocks = self.available_blocks + 10_000

    def statvfs(self, path: str) -> os.statvfs_result:
        total = 1 << 24
        return os.statvfs_result(
            (4096, 4096, total, self.free_blocks, self.available_blocks, 1 << 20, 1 << 19, 1 << 19, 0, 255)
        )


def test_what_is_kept_for_root_is_not_for_data_but_for_the_reserve(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path, calls = tmp_path / "r", _KeptForRoot()
    make(path, clock, reserve_bytes=RESERVE, quota_bytes=0)
    with open_for_writing(path, clock, calls) as repository:
        calls.available_blocks, calls.free_blocks = 256, 10_256
        repository.space.require_growth(1 * MIB)
        with pytest.raises(NoSpaceError, match="disk is full"):
            repository.space.require_growth(1 * MIB + 1)
        calls.available_blocks, calls.free_blocks = 0, 9_000  # somebody took root's part
        sight = repository.space.sight()
        assert sight.available_bytes == -1000 * 4096
        assert sight.available_bytes + sight.kept_bytes == (9_000 - KEPT_FROM_ALL_BLOCKS) * 4096
        with pytest.raises(NoSpaceError, match="0 B free"):
            repository.space.require_growth(64 * KIB)
        repository.space.release(1 * MIB)
        assert repository.space.restore().whole, "it takes back what it had, whoever has the room now"
        calls.free_blocks = KEPT_FROM_ALL_BLOCKS
        repository.space.release(1 * MIB)
        assert not repository.space.restore().whole


def test_an_ordinary_user_has_nothing_of_what_is_kept_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    calls = _KeptForRoot()
    probe = RoomProbe(Volume(tmp_path, calls))
    assert probe.growth_bytes() == probe.allocatable_bytes() == calls.available_blocks * 4096
    calls.available_blocks = 0
    assert (probe.growth_bytes(), probe.allocatable_bytes()) == (0, 0)


def test_a_volume_that_cannot_allocate_keeps_nothing_from_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext2 says what ext4 says, and has no extents to keep blocks for: a spare pack was not made where it would fit."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    calls = _KeptForRoot()
    volume = Volume(tmp_path, calls)
    probe = RoomProbe(volume)
    kept = KEPT_FROM_ALL_BLOCKS * 4096
    calls.available_blocks = 0
    assert probe.allocatable_bytes() == calls.free_blocks * 4096 - kept
    volume.believe("BC")
    assert probe.allocatable_bytes() == calls.free_blocks * 4096
