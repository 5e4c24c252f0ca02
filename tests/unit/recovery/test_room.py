"""How much is enough, the way back, levels that are watched, the quota's account."""

import pytest

from repository.policy.levels import SAID_EVERY_NS, Level, LevelWatch, Room
from repository.policy.room import Needs, Sight, least_bytes, margin_bytes, may_return
from repository.quota import MEASURED_EVERY_GRANTS, QuotaAccount
from repository.units import GB, MB, NS_PER_S

NEEDS = Needs(segment_bytes=16, margin_bytes=0)


@pytest.mark.parametrize(
    ("capacity", "margin"), [(0, 0), (2 * GB, 100 * MB), (19 * GB, 950 * MB), (20 * GB, GB), (4000 * GB, GB)]
)
def test_the_margin_is_a_gigabyte_and_at_most_five_percent(capacity: int, margin: int) -> None:
    assert margin_bytes(capacity) == margin


@pytest.mark.parametrize(
    ("sight", "phantom", "least"),
    [
        (Sight(0, 0), 0, 10),
        (Sight(0, 64), 0, 74),
        (Sight(64, 64), 0, 10),
        (Sight(74, 64), 0, 0),
        (Sight(100, 64), 0, -26),
        (Sight(100, 0), 100, 10),
        (Sight(50, 0), 100, 10),
        (Sight(1000, 0, inodes=False), 0, 10),
        (Sight(0, 64, inodes=False), 0, 74),
        (Sight(-30, 0), 0, 40),
        (Sight(-30, 64, kept_bytes=500), 0, 104),
        (Sight(-30, 0), 100, 40),
    ],
)
def test_what_must_come_free_is_the_allocation_and_the_reserve(sight: Sight, phantom: int, least: int) -> None:
    assert least_bytes(10, sight, phantom) == least


@pytest.mark.parametrize(
    ("sight", "phantom", "may"),
    [
        (Sight(42, 0), 0, True),
        (Sight(41, 0), 0, False),
        (Sight(42, 1), 0, False),
        (Sight(10_000, 1), 0, False),
        (Sight(42, 0), 1, False),
        (Sight(42, 0, inodes=False), 0, False),
    ],
)
def test_the_way_back_takes_two_segments_and_the_refused_claim(sight: Sight, phantom: int, may: bool) -> None:
    assert may_return(NEEDS, 10, sight, phantom) is may


def _room(part: float) -> Room:
    return Room(10 * GB, round(10 * GB * part))


def test_each_level_is_told_once_a_day() -> None:
    watch, told = LevelWatch(), []
    for second in range(0, 4 * 3600, 600):  # around the border of critical and of warning, again and again
        for part in (0.04, 0.08, 0.5):
            watch, tell = watch.look(_room(part), second * NS_PER_S)
            if tell:
                told.append(watch.level)
    assert told == [Level.CRITICAL, Level.WARNING, Level.HEALTHY]
    watch, tell = watch.look(_room(0.04), SAID_EVERY_NS)
    assert (watch.level, tell) == (Level.CRITICAL, True)


def test_without_a_change_nothing_is_told() -> None:
    watch = LevelWatch()
    for day in range(5):
        watch, tell = watch.look(_room(0.5), day * SAID_EVERY_NS)
        assert not tell


def test_the_last_level_stands_for_half_a_minute_when_the_probe_fails() -> None:
    watch, _ = LevelWatch().look(_room(0.08), 100 * NS_PER_S)
    watch, tell = watch.look(None, 130 * NS_PER_S)
    assert (watch.level, tell) == (Level.WARNING, False)
    watch, tell = watch.look(None, 131 * NS_PER_S)
    assert (watch.level, tell) == (Level.UNKNOWN, True)
    watch, tell = watch.look(_room(0.08), 132 * NS_PER_S)
    assert watch.level is Level.WARNING
    watch, _ = LevelWatch().look(None, 0)
    assert watch.level is Level.UNKNOWN, "never seen"


def test_a_clock_that_goes_back_tells_no_more_than_once() -> None:
    watch, tell = LevelWatch().look(_room(0.08), 1000 * NS_PER_S)
    assert tell
    watch, tell = watch.look(None, 10 * NS_PER_S)
    assert watch.level is Level.WARNING


class _Disk:
    def __init__(self, used_bytes: int) -> None:
        self.used_bytes = used_bytes
        self.looks = 0

    def measure(self) -> int:
        self.looks += 1
        return self.used_bytes


def test_the_account_is_kept_by_addition() -> None:
    disk = _Disk(100)
    account = QuotaAccount(1000, disk.measure)
    for _ in range(10):
        assert account.grant(20)
    account.moved(-50)
    assert account.left_bytes() == 1000 - 100 - 200 + 50
    assert disk.looks == 1


def test_the_account_is_measured_before_it_refuses() -> None:
    disk = _Disk(900)
    account = QuotaAccount(1000, disk.measure)
    assert not account.grant(101)
    assert account.grant(100)
    disk.used_bytes = 950  # sealing gave half of it back
    assert account.grant(50)
    disk.used_bytes = 1000
    assert not account.grant(1)


def test_the_account_is_measured_now_and_then() -> None:
    disk = _Disk(0)
    account = QuotaAccount(1_000_000, disk.measure)
    assert account.left_bytes() == 1_000_000
    disk.used_bytes = 500_000  # caches grew without asking
    for _ in range(MEASURED_EVERY_GRANTS):
        assert account.grant(1)
    assert account.left_bytes() < 500_000
