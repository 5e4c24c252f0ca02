"""When live is committed by itself: example by example, then by a simulated day of work."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from repository.policy.schedule import RETRY_S, Activity, Decision, Pace, Step, decide

PACE = Pace(settle_s=5, interval_s=60, max_age_s=3600)


def test_without_a_change_it_sleeps_until_there_is_one() -> None:
    assert decide(1000, Activity(last_listed_s=10), PACE) == Decision(Step.SLEEP, None)


def test_a_change_is_left_to_settle() -> None:
    fresh = Activity(changed_since_s=100, unsaved_since_s=100, last_change_s=102)
    assert decide(103, fresh, PACE) == Decision(Step.SLEEP, 107)
    assert decide(107, fresh, PACE) == Decision(Step.IMPLICIT)


def test_at_most_one_an_interval() -> None:
    soon = Activity(changed_since_s=100, unsaved_since_s=100, last_change_s=100, last_listed_s=95)
    assert decide(106, soon, PACE) == Decision(Step.SLEEP, 155)
    assert decide(155, soon, PACE) == Decision(Step.IMPLICIT)


def test_writing_without_a_pause_gives_a_provisional_one_every_max_age() -> None:
    steady = Activity(changed_since_s=100, unsaved_since_s=100, last_change_s=3700)
    assert decide(3700, steady, PACE) == Decision(Step.PROVISIONAL)
    saved = replace(steady, unsaved_since_s=3701, last_change_s=3702)
    assert decide(3702, saved, PACE) == Decision(Step.SLEEP, 3707)


def test_quiet_after_a_provisional_one_makes_it_a_listed_one() -> None:
    quiet = Activity(changed_since_s=100, unsaved_since_s=None, last_change_s=3700)
    assert decide(3705, quiet, PACE) == Decision(Step.IMPLICIT)


def test_a_failed_commit_is_tried_again_later() -> None:
    failed = Activity(changed_since_s=100, unsaved_since_s=100, last_change_s=100, failed_s=110)
    assert decide(111, failed, PACE) == Decision(Step.SLEEP, 110 + RETRY_S)
    assert decide(110 + RETRY_S, failed, PACE) == Decision(Step.IMPLICIT)


@given(st.lists(st.integers(0, 7200), max_size=60), st.integers(0, 30), st.integers(1, 300), st.integers(60, 2000))
def test_every_change_ends_in_a_listed_snapshot_and_none_come_too_often(
    changes: list[int], settle: int, interval: int, max_age: int
) -> None:
    """Second by second: listed snapshots keep their distance, and all is listed soon after the last change."""
    pace = Pace(settle, interval, max_age)
    activity = Activity()
    listed: list[int] = []
    pending = sorted(changes)
    for now in range(7200 + settle + interval + 2):
        while pending and pending[0] <= now:
            at = pending.pop(0)
            activity = replace(
                activity,
                changed_since_s=at if activity.changed_since_s is None else activity.changed_since_s,
                unsaved_since_s=at if activity.unsaved_since_s is None else activity.unsaved_since_s,
                last_change_s=at,
            )
        decision = decide(now, activity, pace)
        if decision.step is Step.IMPLICIT:
            listed.append(now)
            activity = Activity(last_listed_s=now)
        elif decision.step is Step.PROVISIONAL:
            assert activity.unsaved_since_s is not None
            activity = replace(activity, unsaved_since_s=None)
        elif decision.until_s is not None:
            assert decision.until_s > now
    assert activity.changed_since_s is None
    assert bool(listed) == bool(changes)
    assert all(later - earlier >= interval for earlier, later in pairwise(listed))
