"""Which implicit snapshots go: tiers by example, then what must hold for any set of them."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from repository.ids import SnapshotId
from repository.policy.condense import DAY_NS, HOUR_NS, WEEK_NS, Candidate, condense

NOW = datetime(2026, 11, 20, 14, 39, 5, tzinfo=UTC)


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000


def ago(**age: float) -> int:
    return ns(NOW - timedelta(**age))


def made(*times_ns: int) -> list[Candidate]:
    return [Candidate(SnapshotId(index), time_ns) for index, time_ns in enumerate(times_ns)]


def test_within_a_day_all_stay() -> None:
    assert condense(made(*(ago(minutes=minute) for minute in range(0, 1439, 7))), ns(NOW)) == []


def test_after_a_day_the_last_of_each_hour_stays() -> None:
    base = datetime(2026, 11, 18, 9, 0, tzinfo=UTC)
    times = [ns(base + timedelta(minutes=minute)) for minute in (0, 20, 59, 60, 119)]
    assert condense(made(*times), ns(NOW)) == [0, 1, 3]


def test_after_a_week_the_last_of_each_day_stays() -> None:
    times = [ns(datetime(2026, 11, day, hour, tzinfo=UTC)) for day in (1, 2) for hour in (1, 12, 23)]
    assert condense(made(*times), ns(NOW)) == [0, 1, 3, 4]


def test_after_ninety_days_the_last_of_each_week_stays() -> None:
    monday = datetime(2026, 6, 1, 8, tzinfo=UTC)
    assert monday.weekday() == 0
    times = [ns(monday + timedelta(days=day)) for day in range(14)]
    assert condense(made(*times), ns(NOW)) == [*range(6), *range(7, 13)]


def test_an_hour_that_is_half_old_keeps_no_second_one_for_the_way() -> None:
    """10:10 and 10:30 are older than a day, 10:50 isn't yet: it already stands for the hour."""
    now = datetime(2026, 11, 20, 10, 40, tzinfo=UTC)
    times = [ns(datetime(2026, 11, 19, 10, minute, tzinfo=UTC)) for minute in (10, 30, 50)]
    assert condense(made(*times), ns(now)) == [0, 1]


def test_a_pinned_one_stays_and_stands_for_its_period() -> None:
    hour = ns(datetime(2026, 11, 18, 9, tzinfo=UTC))
    candidates = [Candidate(SnapshotId(number), hour + number, keep=number == 1) for number in (1, 2, 3)]
    assert condense(candidates, ns(NOW)) == [2]


def test_a_clock_that_was_ahead_deletes_nothing() -> None:
    assert condense(made(ago(days=-400), ago(days=-400) + 1, ago(days=-3)), ns(NOW)) == []


times = st.lists(st.integers(ns(NOW) - 400 * DAY_NS, ns(NOW) + DAY_NS), max_size=80)


@given(times, st.sets(st.integers(0, 79)))
def test_the_rest_is_stable_and_has_one_a_period(moments: list[int], pinned: set[int]) -> None:
    candidates = [Candidate(SnapshotId(index), time_ns, index in pinned) for index, time_ns in enumerate(moments)]
    gone = set(condense(candidates, ns(NOW)))
    rest = [one for one in candidates if one.snapshot not in gone]
    assert condense(rest, ns(NOW)) == []
    assert not gone & pinned
    if candidates:
        assert max(candidates, key=lambda one: (one.time_ns, one.snapshot)) in rest
    for first_day, last_day, period in ((1, 7, HOUR_NS), (7, 90, DAY_NS), (90, 999, WEEK_NS)):
        ages = range(first_day * DAY_NS, last_day * DAY_NS)
        free = [one for one in rest if not one.keep and ns(NOW) - one.time_ns in ages]
        periods = [(one.time_ns + 3 * DAY_NS) // period for one in free]
        assert len(periods) == len(set(periods))


@given(times, st.integers(0, 200 * DAY_NS))
def test_what_goes_today_is_not_missed_by_a_later_run(moments: list[int], later: int) -> None:
    """Condensing on the way never keeps something else than condensing once, later."""
    candidates = made(*moments)
    once = set(condense(candidates, ns(NOW) + later))
    first = set(condense(candidates, ns(NOW)))
    second = set(condense([one for one in candidates if one.snapshot not in first], ns(NOW) + later))
    assert first | second == once
