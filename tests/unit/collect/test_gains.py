"""Lifetimes, and the curve of what comes free, against unions and plans made one after the other."""

from dataclasses import fields, replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.policy.collect import Safety, plan_dead
from repository.policy.columns import PackColumns, PackFacts, as_array, join, with_packs
from repository.policy.gains import STAYS, gains
from repository.policy.lifetimes import Track
from tests.unit.collect.test_plan import BLOCK, NOW, pack

sets = st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=12)


@given(sets, st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, int(STAYS)]), min_size=12, max_size=12), st.booleans())
def test_a_lifetime_ends_with_the_last_that_needs_it(needs: list[set[int]], ranks: list[int], early: bool) -> None:
    track = Track()
    for needed in needs:
        track.append(BitMap64([number << 14 for number in needed]))
        if early:
            assert track.intervals >= len(needed)
    found: dict[int, int] = {}
    for number, fate in zip(
        *(column.tolist() for column in track.fates(np.array(ranks, np.int32), STAYS)), strict=True
    ):
        found[number >> 14] = max(found.get(number >> 14, 0), fate)
    assert found == {
        number: max(rank for rank, needed in zip(ranks, needs, strict=False) if number in needed)
        for number in set().union(*needs)
    }
    assert track.standing == BitMap64([number << 14 for number in needs[-1]])


@given(sets, st.lists(st.booleans(), min_size=12, max_size=12), sets)
def test_forgotten_positions_leave_the_others_as_they_were(
    needs: list[set[int]], kept: list[bool], more: list[set[int]]
) -> None:
    track = Track()
    for needed in needs:
        track.append(BitMap64(needed))
    track.compact(np.array(kept[: len(needs)], np.bool_))
    left = [needed for needed, stays in zip(needs, kept, strict=False) if stays]
    for needed in more:
        track.append(BitMap64(needed))
    left += more
    assert track.length == len(left)
    assert _fates(track, _ascending(len(left))) == {
        number: max(at + 1 for at, needed in enumerate(left) if number in needed) for number in set().union(*left)
    }


def _fates(track: Track, ranks: NDArray[np.int32]) -> dict[int, int]:
    found: dict[int, int] = {}
    fates = track.fates(ranks, STAYS)
    for number, fate in zip(fates.numbers.tolist(), fates.fates.tolist(), strict=True):
        found[number] = max(found.get(number, 0), fate)
    return found


def _ascending(length: int) -> NDArray[np.int32]:
    return np.arange(1, length + 1, dtype=np.int32)


def test_a_long_run_has_the_same_answer() -> None:
    """More positions than the table of logarithms holds."""
    track = Track()
    for number in range(5000):
        track.append(BitMap64([number, number + 1, number + 2]))
    ranks = np.arange(1, 5001, dtype=np.int32)
    found = track.fates(ranks, STAYS)
    assert found.numbers.tolist() == list(range(5002))
    assert found.fates.tolist() == [min(number + 1, 5000) for number in range(5002)]


records = st.lists(st.tuples(st.integers(64, 20_000), st.sampled_from([0, 1, 2, 3, int(STAYS)])), max_size=30)


@given(st.lists(records, min_size=1, max_size=4), st.booleans(), st.booleans(), st.booleans())
def test_the_curve_is_what_each_plan_would_say(
    packs: list[list[tuple[int, int]]], sealed: bool, punch: bool, holes: bool
) -> None:
    facts = [pack(index, [length for length, _ in rows], sealed=sealed) for index, rows in enumerate(packs)]
    fates = np.array([fate for rows in packs for _, fate in rows], np.int32)
    if holes:
        facts = [_punched(one) for one in facts]
    columns = join(facts)
    found = gains(columns, fates, 3, BLOCK, punch=punch)
    for step in range(4):
        plan = plan_dead(columns, fates <= step, now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK, punch=punch)
        assert found[step] == plan.reclaimable_bytes


def _punched(facts: PackFacts) -> PackFacts:
    """The first record was freed before, and the second lost its place."""
    if len(facts.stored) < 2:
        return facts
    start, end = -(-int(facts.offset[0]) // BLOCK) * BLOCK, int(facts.offset[1]) // BLOCK * BLOCK
    kind = facts.kind.copy()
    kind[:2] = 0
    stored, offset = facts.stored.copy(), facts.offset.copy()
    stored[1] = offset[1] = 0
    return replace(facts, kind=kind, stored=stored, offset=offset, holes=((start, end),) if start < end else ())


@given(st.lists(st.tuples(st.integers(64, 9_000), st.booleans()), min_size=1, max_size=60), st.integers(0, 200_000))
def test_no_more_is_taken_than_enough(rows: list[tuple[int, bool]], enough: int) -> None:
    facts = [
        pack(index, [length for length, _ in rows[at : at + 9]]) for index, at in enumerate(range(0, len(rows), 9))
    ]
    columns = join(facts)
    dead = np.array([gone for _, gone in rows], np.bool_)
    whole = plan_dead(columns, dead, now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK)
    plan = plan_dead(columns, dead, now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK, enough_bytes=enough)
    assert set(plan.drops) <= set(whole.drops)
    assert set(plan.cuts) <= set(whole.cuts)
    assert plan.reclaimable_bytes >= min(enough, whole.reclaimable_bytes)
    pieces = [drop.nbytes for drop in plan.drops] or [0]
    pieces = [cut.nbytes for cut in plan.cuts] or pieces
    assert plan.reclaimable_bytes - min(pieces) < enough or not plan.reclaimable_bytes, "the smallest piece is needed"
    left = [drop.nbytes for drop in set(whole.drops) - set(plan.drops)]
    assert max(left, default=0) <= min((drop.nbytes for drop in plan.drops), default=1 << 40), "largest first"
    named = set(as_array(plan.condemned).tolist())
    assert named <= set(as_array(whole.condemned).tolist())
    for number in named:
        at = number & 0xFFFF
        facts_of = facts[number >> 16]
        offset = int(facts_of.offset[at])
        assert number >> 16 in {drop.pack for drop in plan.drops} or any(
            cut.punch.pack == number >> 16 and cut.punch.offset <= offset < cut.punch.offset + cut.punch.length
            for cut in plan.cuts
        ), "only what goes is condemned"


@given(st.lists(st.lists(st.integers(64, 9_000), max_size=6), max_size=6), st.data())
def test_a_few_packs_join_the_many(packs: list[list[int]], data: st.DataObject) -> None:
    facts = [_punched(pack(3 * index, lengths)) for index, lengths in enumerate(packs)]
    few = [one for one in facts if data.draw(st.booleans())]
    many = [one for one in facts if all(one is not other for other in few)]
    found, wanted = with_packs(join(many), join(few)), join(facts)
    for column in fields(PackColumns):
        assert np.array_equal(getattr(found, column.name), getattr(wanted, column.name)), column.name
