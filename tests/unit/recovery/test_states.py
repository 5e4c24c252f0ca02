"""The machine of the ladder: every sequence of events, until no new state appears. Stories are in `test_ladder.py`."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from repository.policy import ladder
from repository.policy.ladder import State, step
from repository.policy.room import Needs, Sight
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

pytestmark = pytest.mark.slow

NEEDS: Final = Needs(segment_bytes=2, margin_bytes=3, slice_bytes=4)
SIGHTS: Final = (
    Sight(0, 0),
    Sight(0, 5),
    Sight(6, 5),
    Sight(30, 0),
    Sight(30, 5),
    Sight(-4, 5, kept_bytes=20),
)
FAILED_BYTES: Final = 2
RESULTS: Final = (Released, Collected, Looked, Thinned, Tried, GaveBack)
BEGINNINGS: Final = (Refused, Seen, Tidy, Rest)
STARTS: Final = [State(NEEDS, auto_delete=auto_delete) for auto_delete in (False, True)]


def _events() -> Iterator[Event]:
    yield Broke()
    yield Changed()
    for sight in SIGHTS:
        for grown in (False, True):
            yield Refused(FAILED_BYTES, sight, grown=grown)
        yield Released(sight)
        for freed in (0, 3):
            for starved in (False, True):
                yield Collected(freed, sight, starved)
            yield Collected(freed, sight, gave_way=True)
        for found in (False, True):
            yield Looked(found, sight)
            yield Thinned(int(found), sight)
            yield Tidy(sight, trash=found)
            yield Tried(found, sight)
        yield GaveBack(sight)
        yield Seen(sight)
        yield Rest(sight)
        yield Interrupted(sight)


EVENTS: Final = list(_events())


def _plain(state: State) -> State:
    """Of what was freed only counts whether it was anything: without sums there are finitely many states. What
    belongs to a run is over with it."""
    state = replace(state, freed_bytes=min(state.freed_bytes, 1), round_bytes=min(state.round_bytes, 1))
    if state.step is not Step.IDLE:
        return state
    return replace(
        state,
        purpose=Purpose.WATCH,
        freed_bytes=0,
        round_bytes=0,
        released=False,
        emptied=False,
        looked=False,
        thinned=False,
    )


def _try(state: State, event: Event) -> tuple[State, tuple[Effect, ...]] | None:
    try:
        after, effects = step(state, event)
    except IllegalEventError:
        return None
    return _plain(after), effects


@pytest.fixture(scope="module")
def few_retries() -> Iterator[None]:
    """One retry is like another: two would only make the graph larger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "IDLE_RETRIES_MAX", 1)
        yield


Edge = tuple[Event, State, tuple[Effect, ...]]
Graph = dict[State, list[Edge]]


@pytest.fixture(scope="module")
def graph(few_retries: None) -> Graph:
    """Every state that any sequence of events leads to, and what each legal event does there. Equal ones are one."""
    found: Graph = {}
    states = {start: start for start in map(_plain, STARTS)}
    effects: dict[tuple[Effect, ...], tuple[Effect, ...]] = {}
    waiting = deque(states)

    def edge(event: Event, after: State, done: tuple[Effect, ...]) -> Edge:
        if after not in states:
            states[after] = after
            waiting.append(after)
        return event, states[after], effects.setdefault(done, done)

    while waiting:
        state = waiting.popleft()
        found[state] = [edge(event, *done) for event in EVENTS if (done := _try(state, event)) is not None]
    return found


def _sight(event: Event) -> Sight | None:
    return None if isinstance(event, Broke | Changed) else event.sight


def test_there_are_many_states(graph: Graph) -> None:
    assert len(graph) > 500
    assert {state.mode for state in graph} == set(Mode)
    assert {state.step for state in graph} == set(Step)
    assert {state.purpose for state in graph} == set(Purpose)
    effects = {type(effect) for edges in graph.values() for _, _, done in edges for effect in done}
    assert effects == {Release, Collect, LookCloser, Thin, GiveBack, TryRoom, Retry, Refuse}


def test_normal_mode_is_entered_with_a_whole_reserve_only(graph: Graph) -> None:
    for state, edges in graph.items():
        for event, after, _ in edges:
            if after.mode is Mode.NORMAL and state.mode is not Mode.NORMAL:
                sight = _sight(event)
                assert sight is not None
                assert sight.whole, (state, event, after)


def test_whoever_may_try_again_finds_a_whole_reserve_and_room(graph: Graph) -> None:
    for state, edges in graph.items():
        for event, after, effects in edges:
            if effects == (Retry(),):
                sight = _sight(event)
                assert sight is not None
                assert sight.whole
                assert isinstance(event, Tried) or sight.available_bytes >= after.failed_bytes, (state, event)
                assert not isinstance(event, Tried) or event.fits


def test_one_effect_at_a_time_and_its_step_with_it(graph: Graph) -> None:
    steps: dict[type[Effect], Step] = {
        Release: Step.RELEASE,
        Collect: Step.COLLECT,
        LookCloser: Step.LOOK_CLOSER,
        Thin: Step.THIN,
        GiveBack: Step.GIVE_BACK,
        TryRoom: Step.TRY,
        Retry: Step.IDLE,
        Refuse: Step.IDLE,
    }
    for state, edges in graph.items():
        for event, after, effects in edges:
            assert len(effects) <= 1
            if isinstance(event, Refused) and state.refuses:
                assert after.step is state.step
            elif effects:
                assert after.step is steps[type(effects[0])]
            elif not isinstance(event, Changed):
                assert after.step is Step.IDLE


def test_every_end_is_told_to_whoever_waits(graph: Graph) -> None:
    """A climb ends in `Retry` or `Refuse`; nothing else does."""
    for state, edges in graph.items():
        for event, after, effects in edges:
            if isinstance(event, Changed) or (isinstance(event, Refused) and state.refuses):
                continue
            climbing = isinstance(event, Refused) or (state.step is not Step.IDLE and state.purpose is Purpose.CLIMB)
            ended = after.step is Step.IDLE
            assert (effects in ((Retry(),), (Refuse(),))) == (climbing and ended), (state, event)


def test_what_cannot_happen_is_rejected(graph: Graph) -> None:
    """Results end their own step; what begins something waits for its end; after a failure nothing is under way."""
    for state, edges in graph.items():
        legal = {type(event) for event, _, _ in edges}
        if state.step is Step.IDLE:
            assert legal == {Broke, Changed, *BEGINNINGS}
        else:
            assert len(legal & set(RESULTS)) == 1
            assert legal - set(RESULTS) == {Broke, Changed, Interrupted} | ({Refused} if state.refuses else set())


def test_failed_is_left_by_no_event(graph: Graph) -> None:
    for state, edges in graph.items():
        for event, after, effects in edges:
            if state.mode is Mode.FAILED:
                assert after.mode is Mode.FAILED
                assert effects == ((Refuse(),) if isinstance(event, Refused) else ())
            if isinstance(event, Broke):
                assert after.mode is Mode.FAILED


def test_there_is_no_dead_end(graph: Graph) -> None:
    """From every state but FAILED some sequence of events leads back to normal."""
    before: dict[State, set[State]] = {state: set() for state in graph}
    for state, edges in graph.items():
        for _, after, _ in edges:
            before[after].add(state)
    reached = {state for state in graph if state.mode is Mode.NORMAL and state.step is Step.IDLE}
    waiting = deque(reached)
    while waiting:
        for state in before[waiting.popleft()] - reached:
            reached.add(state)
            waiting.append(state)
    assert {state.mode for state in graph.keys() - reached} == {Mode.FAILED}


def test_read_only_ends_whenever_there_is_room(graph: Graph) -> None:
    """The monitor alone leads back, whatever happened before."""
    for state in graph:
        if state.mode is Mode.READ_ONLY and state.step is Step.IDLE:
            after, effects = step(state, Seen(Sight(10_000, 0)))
            assert after.mode is Mode.NORMAL
            assert not effects


def test_without_anything_freed_every_way_ends(graph: Graph) -> None:
    """Steps that free nothing form no circle: so whoever waits is told after a bounded number of them."""
    depth: dict[State, int] = {}

    def longest(state: State, path: frozenset[State]) -> int:
        assert state not in path, state
        if state.step is Step.IDLE:
            return 0
        if state not in depth:
            ends = [
                longest(after, path | {state})
                for event, after, _ in graph[state]
                if not isinstance(event, Changed | Refused) and not (isinstance(event, Collected) and event.freed_bytes)
            ]
            depth[state] = 1 + max(ends)
        return depth[state]

    assert 5 <= max(longest(state, frozenset()) for state in graph) <= 20


def test_in_read_only_growth_is_refused_without_climbing_until_something_changed(graph: Graph) -> None:
    climbed = False
    for state, edges in graph.items():
        if state.mode is not Mode.READ_ONLY:
            continue
        for event, after, effects in edges:
            if isinstance(event, Refused) and not state.worth:
                assert effects == (Refuse(),)
                assert after == replace(state, refused_bytes=max(state.refused_bytes, event.failed_bytes))
            if isinstance(event, Changed) and state.step is Step.IDLE:
                assert after.worth
                climbed |= step(after, Refused(2, Sight(0, 0)))[1] == (Release(4),)
    assert climbed


def test_snapshots_are_given_up_for_a_failed_allocation_alone(graph: Graph) -> None:
    for state, edges in graph.items():
        for event, after, effects in edges:
            if effects and isinstance(effects[0], Thin):
                assert state.auto_delete
                assert state.purpose is Purpose.CLIMB
                assert not state.thinned
                assert state.looked, "exact reachability comes first"
                assert isinstance(event, Collected | Looked)
                assert effects[0].least_bytes >= state.failed_bytes
                assert effects[0].enough_bytes == effects[0].least_bytes + NEEDS.margin_bytes
                assert after.thinned


def test_an_ordinary_deletion_collects_nothing(graph: Graph) -> None:
    for state, edges in graph.items():
        for event, after, effects in edges:
            if isinstance(event, Tidy) and event.trash and state.mode is Mode.NORMAL and event.sight.whole:
                assert not effects
                assert after.mode is Mode.NORMAL
