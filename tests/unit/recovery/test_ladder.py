"""The ladder: every sequence of events, until no new state appears; and the stories that users meet."""

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

pytestmark = pytest.mark.xdist_group("ladder")  # the graph is made once, not by each worker

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
        yield Refused(FAILED_BYTES, sight)
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


@pytest.fixture(scope="module")
def graph(few_retries: None) -> dict[State, list[tuple[Event, State, tuple[Effect, ...]]]]:
    """Every state that any sequence of events leads to, and what each legal event does there."""
    found: dict[State, list[tuple[Event, State, tuple[Effect, ...]]]] = {}
    waiting = deque(_plain(start) for start in STARTS)
    while waiting:
        state = waiting.popleft()
        if state in found:
            continue
        found[state] = [(event, *done) for event in EVENTS if (done := _try(state, event)) is not None]
        waiting.extend(after for _, after, _ in found[state])
    return found


Graph = dict[State, list[tuple[Event, State, tuple[Effect, ...]]]]


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


# --- stories -------------------------------------------------------------------------------------------------------


def _run(state: State, first: Event, *results: tuple[type[Effect], Event]) -> tuple[State, Effect | None]:
    """From `first` on: each effect is of the type that the story expects, and is answered by its event."""
    state, effects = step(state, first)
    for expected, event in results:
        assert [type(effect) for effect in effects] == [expected]
        state, effects = step(state, event)
    return state, effects[0] if effects else None


BIG: Final = Needs(segment_bytes=4, margin_bytes=50, slice_bytes=64)
NORMAL: Final = State(BIG)
FULL: Final = Sight(0, 0)


def test_garbage_pays_for_the_write() -> None:
    state, effects = step(NORMAL, Refused(4, FULL))
    assert (state.mode, effects) == (Mode.EMERGENCY, (Release(64),))
    state, effects = step(state, Released(Sight(64, 64)))
    assert effects == (Collect(4),), "what was lent is still missing, and still there"
    state, effects = step(state, Collected(10, Sight(74, 64)))
    assert effects == (GiveBack(),)
    state, effects = step(state, GaveBack(Sight(10, 0)))
    assert (state.mode, state.owed, effects) == (Mode.NORMAL, True, (Retry(),))
    state, effects = step(state, Rest(Sight(6, 0)))
    assert effects == (Collect(48),), "the margin, in the background"
    state, effects = step(state, Collected(20, Sight(26, 0)))
    assert (state.mode, state.owed, effects) == (Mode.NORMAL, False, ())


def test_who_climbs_while_a_margin_is_owed_gets_a_part_of_it_now() -> None:
    """A program that writes faster than the margin is freed behind it sees few pauses, not one at each segment."""
    owing = replace(NORMAL, owed=True)
    state, end = _run(owing, Refused(4, FULL), (Release, Released(Sight(64, 64))))
    assert end == Collect(4, more_bytes=16)
    state, effects = step(state, Collected(6, Sight(70, 64)))
    assert effects == (GiveBack(),), "all the garbage there is will do"
    state, effects = step(state, GaveBack(Sight(6, 0)))
    assert effects == (Retry(),)


def test_a_margin_that_gave_way_to_a_climb_is_still_owed() -> None:
    owing = replace(NORMAL, owed=True, failed_bytes=4)
    state, _ = _run(owing, Rest(FULL), (Collect, Collected(3, Sight(3, 0), gave_way=True)))
    assert (state.mode, state.owed) == (Mode.NORMAL, True)
    _, end = _run(state, Refused(4, Sight(3, 0)), (Release, Released(Sight(67, 64))))
    assert end == Collect(4, more_bytes=16)
    state, _ = _run(owing, Rest(FULL), (Collect, Collected(3, Sight(3, 0))))
    assert not state.owed, "there was no more"


def test_where_freeing_does_not_show_rounds_are_few() -> None:
    """Root took of what is kept for root, and nobody knows how much: each round frees as much again as all before."""
    state, effects = step(NORMAL, Refused(4, FULL))
    state, effects = step(state, Released(Sight(64, 64)))
    asked = []
    for _ in range(6):
        assert isinstance(effects[0], Collect)
        wish = effects[0].enough_bytes
        assert wish is not None
        asked.append(wish)
        state, effects = step(state, Collected(wish, Sight(64, 64)))
        while isinstance(effects[0], LookCloser | GiveBack):
            if isinstance(effects[0], LookCloser):
                state, effects = step(state, Looked(False, Sight(64, 64)))
            else:
                state, effects = step(state, GaveBack(FULL))
                if isinstance(effects[0], Collect):
                    break
    assert asked == [4, 4, 8, 16, 32, 64]


def test_the_reserve_comes_back_out_of_what_is_kept_for_root() -> None:
    """It was taken from what was available; what others took meanwhile must not keep it away, and is not for growth."""
    lent = replace(NORMAL, mode=Mode.EMERGENCY)
    state, effects = step(lent, Seen(Sight(-9, 5, kept_bytes=14)))
    assert effects == (GiveBack(),)
    state, effects = step(state, GaveBack(Sight(-14, 0, kept_bytes=14)))
    assert (state.mode, effects) == (Mode.NORMAL, ())
    _, effects = step(state, Refused(4, Sight(-14, 0, kept_bytes=14)))
    assert effects == (Release(64),)
    _, effects = step(lent, Seen(Sight(-9, 5, kept_bytes=13)))
    assert effects == ()


def test_what_others_wait_for_is_collected_with_it() -> None:
    _, end = _run(NORMAL, Refused(4, FULL, waiting_bytes=12), (Release, Released(Sight(64, 64))))
    assert end == Collect(16)


def test_without_anything_to_free_growth_is_refused_and_nothing_is_lost() -> None:
    state, end = _run(
        NORMAL,
        Refused(4, FULL),
        (Release, Released(Sight(64, 64))),
        (Collect, Collected(0, Sight(64, 64))),
        (LookCloser, Looked(False, Sight(64, 64))),
        (GiveBack, GaveBack(Sight(0, 0))),
    )
    assert (state.mode, end) == (Mode.READ_ONLY, Refuse())
    assert step(state, Refused(9, FULL))[1] == (Refuse(),)
    state, _ = step(state, Refused(9, FULL))
    state, _ = step(state, Seen(Sight(16, 0)))
    assert state.mode is Mode.READ_ONLY, "two segments and the largest refused claim are 17"
    state, _ = step(state, Seen(Sight(17, 0)))
    assert state.mode is Mode.NORMAL


def test_exact_reachability_uncovers_more() -> None:
    state, end = _run(
        NORMAL,
        Refused(4, FULL),
        (Release, Released(Sight(64, 64))),
        (Collect, Collected(0, Sight(64, 64))),
        (LookCloser, Looked(True, Sight(64, 64))),
        (Collect, Collected(30, Sight(94, 64))),
        (GiveBack, GaveBack(Sight(30, 0))),
    )
    assert (state.mode, end) == (Mode.NORMAL, Retry())


def test_thinning_is_the_last_resort() -> None:
    state, end = _run(
        replace(NORMAL, auto_delete=True),
        Refused(4, FULL),
        (Release, Released(Sight(64, 64))),
        (Collect, Collected(1, Sight(65, 64))),
        (LookCloser, Looked(False, Sight(65, 64))),
        (Thin, Thinned(3, Sight(65, 64))),
        (Collect, Collected(60, Sight(125, 64))),
        (GiveBack, GaveBack(Sight(61, 0))),
    )
    assert (state.mode, end) == (Mode.NORMAL, Retry())


def test_a_starved_collection_gets_the_whole_reserve() -> None:
    state, effects = step(NORMAL, Refused(4, FULL))
    state, effects = step(state, Released(Sight(64, 64)))
    state, effects = step(state, Collected(0, Sight(64, 64), starved=True))
    assert effects == (Release(None),)
    state, effects = step(state, Released(Sight(500, 500)))
    assert isinstance(effects[0], Collect)
    state, effects = step(state, Collected(0, Sight(500, 500), starved=True))
    assert effects == (LookCloser(),), "there is no more to lend"


def test_a_thief_leaves_read_only_mode_with_a_way_back() -> None:
    """Somebody takes what is lent, and what comes free: the reserve stays missing, rounds go on while they free."""
    state, end = _run(
        NORMAL,
        Refused(4, FULL),
        (Release, Released(Sight(0, 64))),
        (Collect, Collected(100, Sight(100, 64))),
        (GiveBack, GaveBack(Sight(0, 64))),
        (Collect, Collected(80, Sight(0, 64))),
        (LookCloser, Looked(False, Sight(0, 64))),
        (GiveBack, GaveBack(Sight(0, 64))),
        (Collect, Collected(0, Sight(0, 64))),
        (GiveBack, GaveBack(Sight(0, 64))),
    )
    assert (state.mode, end) == (Mode.READ_ONLY, Refuse())
    state, effects = step(state, Seen(Sight(63, 64)))
    assert not effects
    state, end = _run(state, Seen(Sight(100, 64)), (GiveBack, GaveBack(Sight(36, 0))))
    assert (state.mode, end) == (Mode.NORMAL, None)


def test_deleting_leads_back() -> None:
    state = replace(NORMAL, mode=Mode.READ_ONLY, refused_bytes=4)
    state, effects = step(state, Tidy(Sight(0, 64), trash=True))
    assert effects == (Collect(126),), "the reserve, two segments, the refused claim and the margin"
    state, effects = step(state, Collected(90, Sight(90, 64)))
    assert effects == (GiveBack(),)
    state, effects = step(state, GaveBack(Sight(26, 0)))
    assert (state.mode, effects) == (Mode.NORMAL, ())


def test_deleting_looks_closer_where_the_way_back_is_still_barred() -> None:
    """What was removed from `live` within one generation is in the bitmap of its commit."""
    state, end = _run(
        replace(NORMAL, mode=Mode.READ_ONLY, refused_bytes=4),
        Tidy(Sight(0, 64), trash=True),
        (Collect, Collected(70, Sight(70, 64))),
        (LookCloser, Looked(True, Sight(70, 64))),
        (Collect, Collected(20, Sight(90, 64))),
        (GiveBack, GaveBack(Sight(26, 0))),
    )
    assert (state.mode, end) == (Mode.NORMAL, None)


def test_a_failed_job_gives_back_its_own_and_leaves_the_trash() -> None:
    for mode in (Mode.NORMAL, Mode.EMERGENCY, Mode.READ_ONLY):
        _, effects = step(replace(NORMAL, mode=mode), Tidy(Sight(0, 0), trash=False))
        assert effects == (Collect(None, trash=False),)


def test_a_missing_reserve_that_fits_again_is_given_back_before_anything_is_collected() -> None:
    state, end = _run(
        replace(NORMAL, mode=Mode.EMERGENCY),
        Refused(4, Sight(100, 64)),
        (GiveBack, GaveBack(Sight(36, 0))),
        (TryRoom, Tried(True, Sight(36, 0))),
    )
    assert (state.mode, state.owed, end) == (Mode.NORMAL, False, Retry())


def test_room_that_is_not_there_for_us_is_not_believed() -> None:
    """A quota that statvfs does not know: there seems to be room, and every allocation fails."""
    state, end = _run(
        NORMAL,
        Refused(4, Sight(1000, 0)),
        (TryRoom, Tried(False, Sight(1000, 0))),
        (Release, Released(Sight(1064, 64))),
        (Collect, Collected(0, Sight(1064, 64))),
        (LookCloser, Looked(False, Sight(1064, 64))),
        (GiveBack, GaveBack(Sight(1000, 0))),
    )
    assert (state.mode, end) == (Mode.READ_ONLY, Refuse())
    state, end = _run(state, Seen(Sight(1000, 0)), (TryRoom, Tried(False, Sight(1000, 0))))
    assert (state.mode, end) == (Mode.READ_ONLY, None), "the same room again is no change"
    back, end = _run(state, Seen(Sight(1012, 0)))
    assert (back.mode, end) == (Mode.NORMAL, None)
    back, end = _run(state, Seen(Sight(1000, 0)), (TryRoom, Tried(True, Sight(1000, 0))))
    assert (back.mode, end) == (Mode.NORMAL, None), "it was there after all"


def test_garbage_pays_beside_room_that_is_not_there() -> None:
    state, end = _run(
        NORMAL,
        Refused(4, Sight(1000, 0)),
        (TryRoom, Tried(False, Sight(1000, 0))),
        (Release, Released(Sight(1064, 64))),
        (Collect, Collected(5, Sight(1069, 64))),
        (GiveBack, GaveBack(Sight(1005, 0))),
    )
    assert (state.mode, end) == (Mode.NORMAL, Retry())


def test_retries_for_which_nothing_was_freed_are_bounded() -> None:
    """What lacks may be no byte at all: room can be allocated, and the failed operation fails again."""
    state = NORMAL
    for _ in range(ladder.IDLE_RETRIES_MAX):
        state, end = _run(state, Refused(4, Sight(1000, 0)), (TryRoom, Tried(True, Sight(1000, 0))))
        assert end == Retry()
        state, _ = step(state, Changed())
        state, _ = step(state, Seen(Sight(50, 0)))
    state, effects = step(state, Refused(4, Sight(1000, 0)))
    state, effects = step(state, Tried(True, Sight(1000, 0)))
    assert effects == (Release(64),)


def test_an_interrupted_step_refuses_and_the_next_look_gives_back() -> None:
    state, end = _run(NORMAL, Refused(4, FULL), (Release, Interrupted(Sight(64, 64))))
    assert (state.mode, end) == (Mode.EMERGENCY, Refuse())
    state, end = _run(state, Seen(Sight(64, 64)), (GiveBack, GaveBack(Sight(0, 0))))
    assert (state.mode, end) == (Mode.NORMAL, None)
