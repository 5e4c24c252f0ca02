"""When `live` becomes a snapshot by itself. Pure.

Three rules, in words:

- What changed and then stayed quiet for `settle_s` is committed as an *implicit* snapshot, at most one per
  `interval_s`.
- Under writing that never pauses, a *provisional* one is made every `max_age_s`: not listed, replaced by the next.
- No change, no snapshot.

All times are seconds of one monotonic clock, so a wall clock that jumps moves nothing here.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

SETTLE_DEFAULT_S: Final = 5.0
INTERVAL_DEFAULT_S: Final = 60.0
MAX_AGE_DEFAULT_S: Final = 3600.0
RETRY_S: Final = 60.0
"""Pause after a commit that failed: long enough not to hammer a full disk, short enough to be there when it has
room."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What the user asked for with --settle, --interval and --max-age, in seconds."""

    settle_s: float = SETTLE_DEFAULT_S
    interval_s: float = INTERVAL_DEFAULT_S
    max_age_s: float = MAX_AGE_DEFAULT_S


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in `live` so far; None where it did not happen.

    `changed_since_s`: first change that no *listed* snapshot holds. `unsaved_since_s`: first change that no commit of
    any kind holds. `last_change_s`: the latest change. `last_listed_s`: the latest implicit or named commit.
    `failed_s`: the latest attempt, if it failed.
    """

    changed_since_s: float | None = None
    unsaved_since_s: float | None = None
    last_change_s: float | None = None
    last_listed_s: float | None = None
    failed_s: float | None = None


class Step(Enum):
    """What to do now."""

    SLEEP = "sleep"
    IMPLICIT = "implicit"
    PROVISIONAL = "provisional"


@dataclass(frozen=True, slots=True)
class Decision:
    """`step`, and for SLEEP the time to look again (None: not before something changes)."""

    step: Step
    until_s: float | None = None


IDLE: Final = Decision(Step.SLEEP)


def decide(now_s: float, activity: Activity, pace: Pace) -> Decision:
    """The next step of the committer at `now_s`."""
    if activity.changed_since_s is None:
        return IDLE
    if activity.failed_s is not None and now_s < activity.failed_s + RETRY_S:
        return Decision(Step.SLEEP, activity.failed_s + RETRY_S)
    quiet_s = _implicit_due(activity, activity.changed_since_s, pace)
    if now_s >= quiet_s:
        return Decision(Step.IMPLICIT)
    if activity.unsaved_since_s is None:
        return Decision(Step.SLEEP, quiet_s)
    provisional_s = activity.unsaved_since_s + pace.max_age_s
    if now_s >= provisional_s:
        return Decision(Step.PROVISIONAL)
    return Decision(Step.SLEEP, min(quiet_s, provisional_s))


def _implicit_due(activity: Activity, changed_since_s: float, pace: Pace) -> float:
    """The time at which an implicit snapshot is due if nothing changes any more."""
    last_change_s = changed_since_s if activity.last_change_s is None else activity.last_change_s
    due_s = last_change_s + pace.settle_s
    if activity.last_listed_s is not None:
        due_s = max(due_s, activity.last_listed_s + pace.interval_s)
    return due_s
