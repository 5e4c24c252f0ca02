"""The ladder of recovery as a pure state machine: what has happened goes in, what to do next comes out.

Owner of two invariants: *normal mode is entered only with a whole reserve*, and *every way down the ladder ends*, in
`Retry` or `Refuse` for whoever waits. The driver (`recovery.py`) carries out one effect at a time and tells its result
as the next event; an event that cannot happen in a state is an error of the driver, and rejected.
"""

from dataclasses import dataclass, replace
from typing import Final, assert_never

from repository.policy.room import Needs, Sight, ahead_bytes, least_bytes, may_return, return_bytes
from repository.policy.rungs import (
    Broke,
    Changed,
    Collect,
    Collected,
    Effect,
    Event,
    GaveBack,
    GiveBack,
    IllegalEventError,
    Interrupted,
    LookCloser,
    Looked,
    Mode,
    Purpose,
    Refuse,
    Refused,
    Release,
    Released,
    Rest,
    Retry,
    Seen,
    Step,
    Thin,
    Thinned,
    Tidy,
    Tried,
    TryRoom,
)

__all__ = ["IDLE_RETRIES_MAX", "Mode", "State", "Stepped", "step"]

IDLE_RETRIES_MAX: Final = 8
"""Retries in a row for which nothing was freed, because there turned out to be room, and after which nothing grew. Then
it counts as not really there: somebody takes every byte, or what lacks is no byte at all."""


@dataclass(frozen=True, slots=True)
class State:
    """Where on the ladder a repository is. Bytes.

    Of the run under way: `failed_bytes`, `waiting_bytes` as in `Refused`; `round_bytes` freed since the reserve was
    last tried; `freed_bytes` in all; which steps are used up. `refused_bytes`: the largest claim refused since
    read-only mode began. `phantom_bytes`: see `least_bytes`. `worth`: whether something changed since the last climb
    began, so that in read-only mode the next refusal climbs. `owed`: a margin to free, of the last climb.
    """

    needs: Needs
    mode: Mode = Mode.NORMAL
    auto_delete: bool = False
    step: Step = Step.IDLE
    purpose: Purpose = Purpose.WATCH
    failed_bytes: int = 0
    waiting_bytes: int = 0
    round_bytes: int = 0
    freed_bytes: int = 0
    released: bool = False
    emptied: bool = False
    looked: bool = False
    thinned: bool = False
    refused_bytes: int = 0
    phantom_bytes: int = 0
    idle_retries: int = 0
    worth: bool = False
    owed: bool = False

    @property
    def refuses(self) -> bool:
        """Whether growth is refused without looking at anything."""
        return self.mode is Mode.FAILED or (self.mode is Mode.READ_ONLY and not self.worth)


Stepped = tuple[State, tuple[Effect, ...]]

_BUSY: Final = {
    Released: Step.RELEASE,
    Collected: Step.COLLECT,
    Looked: Step.LOOK_CLOSER,
    Thinned: Step.THIN,
    Tried: Step.TRY,
    GaveBack: Step.GIVE_BACK,
}
"""Results, and the step that they end."""


def step(state: State, event: Event) -> Stepped:
    """The next state and what to do. Raises IllegalEventError where `event` cannot happen in `state`."""
    _check(state, event)
    match event:
        case Broke():
            ends = (Refuse(),) if state.step is not Step.IDLE and state.purpose is Purpose.CLIMB else ()
            return replace(state, mode=Mode.FAILED, step=Step.IDLE, owed=False), ends
        case Changed():
            return replace(state, worth=True), ()
        case Refused():
            return _refused(state, event)
        case Released():
            return _collect(state, event.sight)
        case Collected():
            return _collected(state, event)
        case Looked() if state.purpose is Purpose.TIDY:
            return _tidied(state, event.sight) if event.uncovered else _give_back(state, event.sight)
        case Looked():
            return _collect(state, event.sight) if event.uncovered else _thin(state, event.sight)
        case Thinned():
            return _collect(state, event.sight) if event.snapshots else _give_back(state, event.sight)
        case Tried():
            return _tried(state, event)
        case GaveBack():
            return _gave_back(state, event.sight)
        case Seen():
            return _seen(replace(state, purpose=Purpose.WATCH), event.sight)
        case Tidy():
            return _tidy(state, event)
        case Rest():
            return _rest(state, event.sight)
        case Interrupted():
            return _interrupted(state, event.sight)
        case _:
            assert_never(event)


def _check(state: State, event: Event) -> None:
    """Results end the step that is under way; what begins something waits until nothing is. What is refused without
    looking at anything begins nothing."""
    if isinstance(event, Changed | Broke) or (isinstance(event, Refused) and state.refuses):
        return
    if state.mode is Mode.FAILED and not isinstance(event, Refused | Seen | Tidy | Rest):
        raise IllegalEventError(f"{type(event).__name__} cannot happen: writing has ended")
    wanted = _BUSY.get(type(event))
    if isinstance(event, Interrupted):
        legal = state.step is not Step.IDLE
    else:
        legal = state.step is (Step.IDLE if wanted is None else wanted)
    if not legal:
        raise IllegalEventError(f"{type(event).__name__} cannot happen while the step is '{state.step}'")


def _refused(state: State, event: Refused) -> Stepped:
    """Down the ladder, unless that is known to be useless, or there is room after all."""
    failed = event.failed_bytes or state.needs.segment_bytes
    if state.refuses:
        return replace(state, refused_bytes=max(state.refused_bytes, failed)), (Refuse(),)
    state = replace(
        state,
        mode=Mode.EMERGENCY,
        purpose=Purpose.CLIMB,
        failed_bytes=failed,
        waiting_bytes=event.waiting_bytes,
        round_bytes=0,
        freed_bytes=0,
        released=False,
        emptied=False,
        looked=False,
        thinned=False,
        worth=False,
        phantom_bytes=0,
        idle_retries=0 if event.grown else state.idle_retries,
    )
    if least_bytes(failed, event.sight) <= 0:  # somebody freed room meanwhile, or it is not there for us
        return _give_back(state, event.sight)
    return _release(state)


def _release(state: State) -> Stepped:
    return replace(state, step=Step.RELEASE, released=True), (Release(state.needs.slice_bytes),)


def _look_closer(state: State) -> Stepped:
    return replace(state, step=Step.LOOK_CLOSER, looked=True), (LookCloser(),)


def _collect(state: State, sight: Sight) -> Stepped:
    """At least what failed, however much room there seems to be: the volume said that there is none. And at least as
    much again as came free before: where that did not show, rounds are few.

    Who climbs while the margin of the last climb is owed writes faster than that is freed behind it: a part comes now.
    """
    least = max(least_bytes(state.failed_bytes, sight, state.phantom_bytes), state.failed_bytes, state.freed_bytes)
    more = ahead_bytes(state.needs) if state.owed else 0
    return replace(state, step=Step.COLLECT), (Collect(least + state.waiting_bytes, more_bytes=more),)


def _collected(state: State, event: Collected) -> Stepped:
    freed = state.freed_bytes + event.freed_bytes
    state = replace(
        state,
        round_bytes=state.round_bytes + event.freed_bytes,
        freed_bytes=freed,
        phantom_bytes=max(0, min(state.phantom_bytes, event.sight.available_bytes - freed)),
        worth=state.worth or (state.purpose is not Purpose.CLIMB and event.freed_bytes > 0),
    )
    if state.purpose is Purpose.TIDY and _wants_more(state, event.sight):
        return _look_closer(state)
    if state.purpose is not Purpose.CLIMB:
        done = state.purpose is Purpose.REST and not event.gave_way
        return _give_back(replace(state, owed=state.owed and not done), event.sight)
    if least_bytes(state.failed_bytes, event.sight, state.phantom_bytes) <= 0:
        return _give_back(state, event.sight)
    if event.starved and not state.emptied:
        return replace(state, step=Step.RELEASE, emptied=True), (Release(None),)
    if not state.looked:
        return _look_closer(state)
    return _thin(state, event.sight)


def _thin(state: State, sight: Sight) -> Stepped:
    """Snapshots are given up once in a climb, and for nobody but a failed allocation."""
    if not state.auto_delete or state.thinned:
        return _give_back(state, sight)
    least = max(least_bytes(state.failed_bytes, sight, state.phantom_bytes), state.failed_bytes)
    return replace(state, step=Step.THIN, thinned=True), (Thin(least + state.needs.margin_bytes, least),)


def _give_back(state: State, sight: Sight) -> Stepped:
    if sight.whole:
        return _gave_back(state, sight)
    return replace(state, step=Step.GIVE_BACK), (GiveBack(),)


def _gave_back(state: State, sight: Sight) -> Stepped:
    """Recovered; or another round, if the last freed something; or read-only."""
    if state.purpose is not Purpose.CLIMB:
        return _settled(state, sight)
    if sight.whole and least_bytes(state.failed_bytes, sight, state.phantom_bytes) <= 0:
        if state.freed_bytes:
            return _recovered(replace(state, idle_retries=0))
        return replace(state, step=Step.TRY), (TryRoom(state.failed_bytes),)
    return _next_round(state, sight)


def _tried(state: State, event: Tried) -> Stepped:
    """Whether what seemed to be there was."""
    if state.purpose is not Purpose.CLIMB:
        return _settled(replace(state, phantom_bytes=0) if event.fits else state, event.sight)
    if event.fits and event.sight.whole and state.idle_retries < IDLE_RETRIES_MAX:
        return _recovered(replace(state, idle_retries=state.idle_retries + 1))
    return _next_round(replace(state, phantom_bytes=event.sight.available_bytes), event.sight)


def _recovered(state: State) -> Stepped:
    owed = state.owed or state.freed_bytes > 0
    state = replace(state, mode=Mode.NORMAL, step=Step.IDLE, refused_bytes=0, phantom_bytes=0, owed=owed)
    return state, (Retry(),)


def _next_round(state: State, sight: Sight) -> Stepped:
    """Not enough yet: whatever was not done in this climb; nothing left is read-only mode."""
    if state.round_bytes:
        return _collect(replace(state, round_bytes=0), sight)
    if not state.released:  # the room that was there at first is gone again
        return _release(state)
    if not state.looked:
        return _look_closer(state)
    refused = max(state.refused_bytes, state.failed_bytes)
    return replace(state, mode=Mode.READ_ONLY, step=Step.IDLE, refused_bytes=refused, owed=False), (Refuse(),)


def _settled(state: State, sight: Sight) -> Stepped:
    """The mode that fits what is seen, when nobody waits."""
    state = replace(state, step=Step.IDLE)
    match state.mode:
        case Mode.FAILED:
            return state, ()
        case Mode.READ_ONLY:
            if not may_return(state.needs, state.refused_bytes, sight, state.phantom_bytes):
                return state, ()
            back = replace(state, mode=Mode.NORMAL, refused_bytes=0, phantom_bytes=0, idle_retries=0, worth=False)
            return back, ()
        case Mode.NORMAL | Mode.EMERGENCY:
            return replace(state, mode=Mode.NORMAL if sight.whole else Mode.EMERGENCY), ()
        case _:
            assert_never(state.mode)


def _seen(state: State, sight: Sight) -> Stepped:
    if state.mode is not Mode.FAILED and not sight.whole and sight.refits:
        return _give_back(state, sight)
    after, _ = _settled(state, sight)
    if after.mode is Mode.READ_ONLY and may_return(state.needs, state.refused_bytes, sight, 0):
        # Only what was not there before bars the way.
        return replace(state, step=Step.TRY), (TryRoom(return_bytes(state.needs, state.refused_bytes)),)
    return after, ()


def _tidy(state: State, event: Tidy) -> Stepped:
    """Collect at once what was deleted, unless all is well; and what a job left that did not fit, always."""
    state = replace(state, purpose=Purpose.TIDY, freed_bytes=0, round_bytes=0, looked=False)
    sight = event.sight
    if state.mode is Mode.FAILED or (event.trash and state.mode is Mode.NORMAL and sight.whole):
        return _settled(state, sight)
    if not event.trash:
        return replace(state, step=Step.COLLECT), (Collect(None, trash=False),)
    return _tidied(state, sight)


def _tidied(state: State, sight: Sight) -> Stepped:
    """What the way back needs, and the margin."""
    wanted = return_bytes(state.needs, state.refused_bytes) + state.needs.margin_bytes
    enough = least_bytes(wanted, sight, state.phantom_bytes)
    if enough <= 0:
        return _give_back(state, sight)
    return replace(state, step=Step.COLLECT), (Collect(enough),)


def _wants_more(state: State, sight: Sight) -> bool:
    """Whether the way back is still barred, and a closer look might open it: what was removed from `live` within one
    generation is in the bitmap of its commit."""
    back = least_bytes(return_bytes(state.needs, state.refused_bytes), sight, state.phantom_bytes)
    return back > 0 and not state.looked and state.mode in (Mode.EMERGENCY, Mode.READ_ONLY)


def _rest(state: State, sight: Sight) -> Stepped:
    """Up to the margin, so that the next segments find room."""
    if not state.owed or state.mode is not Mode.NORMAL:
        return _seen(replace(state, purpose=Purpose.WATCH, owed=False), sight)
    enough = least_bytes(state.failed_bytes + state.needs.margin_bytes, sight)
    state = replace(state, purpose=Purpose.REST)
    if enough <= 0:
        return _give_back(replace(state, owed=False), sight)
    return replace(state, step=Step.COLLECT), (Collect(enough),)


def _interrupted(state: State, sight: Sight) -> Stepped:
    """Whoever waits is told; what is lent is given back by the next look."""
    ends = (Refuse(),) if state.purpose is Purpose.CLIMB else ()
    mode = state.mode
    if mode is not Mode.READ_ONLY:
        mode = Mode.NORMAL if sight.whole else Mode.EMERGENCY
    return replace(state, mode=mode, step=Step.IDLE, owed=False), ends
