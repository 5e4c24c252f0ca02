"""What can happen on the ladder of recovery, and what can be done: modes, steps, events and effects. Pure.

`ladder.py` says what follows from what.
"""

from dataclasses import dataclass
from enum import StrEnum

from repository.policy.room import Sight


class Mode(StrEnum):
    """What a repository open for writing may do.

    `NORMAL`: everything. `EMERGENCY`: the reserve is lent or missing, and recovery may still help. `READ_ONLY`:
    nothing more can be freed; growth is refused at once. `FAILED`: a sync failed; only a new opening leaves that.
    """

    NORMAL = "normal"
    EMERGENCY = "emergency"
    READ_ONLY = "read-only"
    FAILED = "failed"


class Step(StrEnum):
    """The effect that is under way."""

    IDLE = "idle"
    RELEASE = "release"
    COLLECT = "collect"
    LOOK_CLOSER = "look closer"
    THIN = "thin"
    TRY = "try"
    GIVE_BACK = "give back"


class Purpose(StrEnum):
    """Whom it is done for. `CLIMB`: an allocation that failed, and somebody waits. `TIDY`: something was deleted or
    given up. `REST`: the margin, after a climb. `WATCH`: the monitor."""

    CLIMB = "climb"
    TIDY = "tidy"
    REST = "rest"
    WATCH = "watch"


# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """An allocation of `failed_bytes` met a full volume. `waiting_bytes`: what others wait for beside it. `grown`:
    whether anything was allocated for growth since the last climb ended."""

    failed_bytes: int
    sight: Sight
    waiting_bytes: int = 0
    grown: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """A part of the reserve, or all of it, was given up."""

    sight: Sight


@dataclass(frozen=True, slots=True)
class Collected:
    """A collection ended. `starved`: it could not free what it had found, for want of room. `gave_way`: it ended early
    because somebody waits."""

    freed_bytes: int
    sight: Sight
    starved: bool = False
    gave_way: bool = False


@dataclass(frozen=True, slots=True)
class Looked:
    """Reachability is known exactly now. `uncovered`: that showed garbage that was not known."""

    uncovered: bool
    sight: Sight


@dataclass(frozen=True, slots=True)
class Thinned:
    """So many snapshots were given up; 0: all that may be would not be enough, and none was."""

    snapshots: int
    sight: Sight


@dataclass(frozen=True, slots=True)
class GaveBack:
    """The reserve was given what it lacks, or that did not fit."""

    sight: Sight


@dataclass(frozen=True, slots=True)
class Tried:
    """What seemed to be there could really be allocated, or not."""

    fits: bool
    sight: Sight


@dataclass(frozen=True, slots=True)
class Seen:
    """The monitor looked, or somebody else collected."""

    sight: Sight


@dataclass(frozen=True, slots=True)
class Tidy:
    """Snapshots were deleted (`trash`), or a job that did not fit left what it had stored (not `trash`)."""

    sight: Sight
    trash: bool


@dataclass(frozen=True, slots=True)
class Rest:
    """There is time for what the last climb left undone."""

    sight: Sight


@dataclass(frozen=True, slots=True)
class Changed:
    """Something may have come free."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The effect under way was not finished, for a reason that is not about room."""

    sight: Sight


@dataclass(frozen=True, slots=True)
class Broke:
    """A sync or write failed: nothing is written any more."""


Event = (
    Refused
    | Released
    | Collected
    | Looked
    | Thinned
    | Tried
    | GaveBack
    | Seen
    | Tidy
    | Rest
    | Changed
    | Interrupted
    | Broke
)


# --- effects -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Release:
    """Give up this much of the reserve; None: all of it."""

    nbytes: int | None


@dataclass(frozen=True, slots=True)
class Collect:
    """Free `enough_bytes` (None: all garbage), whatever its age; deleted snapshots only with `trash`. `more_bytes` on
    top where that is quick: where nothing has to be copied first."""

    enough_bytes: int | None
    trash: bool = True
    more_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LookCloser:
    """Find out exactly what is reachable, writing nothing."""


@dataclass(frozen=True, slots=True)
class Thin:
    """Give up whole snapshots until `enough_bytes` are garbage, or `least_bytes` where that is out of reach."""

    enough_bytes: int
    least_bytes: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Make the reserve whole, or leave it as it is."""


@dataclass(frozen=True, slots=True)
class TryRoom:
    """Allocate so much for a moment: what a volume says is there may be kept for others."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Who waits may try its allocation again."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Who waits gets its error."""


Effect = Release | Collect | LookCloser | Thin | GiveBack | TryRoom | Retry | Refuse


class IllegalEventError(ValueError):
    """The event cannot happen in this state."""
