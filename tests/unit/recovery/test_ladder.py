"""The ladder, in the stories that users meet. Every sequence of events is in `test_states.py`."""

from dataclasses import replace
from typing import Final

from repository.policy import ladder
from repository.policy.ladder import State, step
from repository.policy.room import Needs, Sight
from repository.policy.rungs import (
    Changed,
    Collect,
    Collected,
    Effect,
    Event,
    GaveBack,
    GiveBack,
    Interrupted,
    LookCloser,
    Looked,
    Mode,
    Refuse,
    Refused,
    Release,
    Released,
    Rest,
    Retry,
    Seen,
    Thin,
    Thinned,
    Tidy,
    Tried,
    TryRoom,
)


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
        for sight in (Sight(50, 0), Sight(10_000, 0)):  # whatever the monitor sees meanwhile: a quota may hide there
            state, _ = step(state, Seen(sight))
    anew, end = _run(state, Refused(4, Sight(1000, 0), grown=True), (TryRoom, Tried(True, Sight(1000, 0))))
    assert end == Retry(), "what grew in between was helped"
    assert anew.idle_retries == 1
    state, effects = step(state, Refused(4, Sight(1000, 0)))
    state, effects = step(state, Tried(True, Sight(1000, 0)))
    assert effects == (Release(64),)


def test_an_interrupted_step_refuses_and_the_next_look_gives_back() -> None:
    state, end = _run(NORMAL, Refused(4, FULL), (Release, Interrupted(Sight(64, 64))))
    assert (state.mode, end) == (Mode.EMERGENCY, Refuse())
    state, end = _run(state, Seen(Sight(64, 64)), (GiveBack, GaveBack(Sight(0, 0))))
    assert (state.mode, end) == (Mode.NORMAL, None)
