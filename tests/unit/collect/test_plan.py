"""The plan of a collection against a naive model that counts blocks one by one."""

from dataclasses import replace
from typing import Final

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from repository.ids import PackIndex
from repository.policy.collect import WINDOW_NS, PackFacts, Safety, packs_of, plan_collection
from repository.policy.figures import PackFigures

BLOCK: Final = 4096
NOW: Final = 1_000 * WINDOW_NS
START: Final = 256


def pack(
    index: int,
    lengths: list[int],
    *,
    age_ns: int = 2 * WINDOW_NS,
    sealed: bool = True,
    holes: tuple[tuple[int, int], ...] = (),
    kinds: list[int] | None = None,
) -> PackFacts:
    ends = START + np.cumsum(np.array(lengths, np.int64))
    size = int(ends[-1]) if lengths else START
    return PackFacts(
        PackIndex(index),
        sealed,
        NOW - age_ns,
        -(-size // BLOCK) * BLOCK,
        (ends - np.array(lengths, np.int64)).astype(np.uint32),
        np.array(lengths, np.uint32),
        np.array(kinds if kinds is not None else [1] * len(lengths), np.uint8),
        holes,
    )


def numbers(index: int, positions: list[int]) -> BitMap64:
    return BitMap64([(index << 16) + position for position in positions])


@given(
    st.lists(st.tuples(st.integers(64, 20_000), st.booleans()), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), max_size=3),
)
def test_ranges_cover_only_dead_bytes_and_count_whole_blocks(
    records: list[tuple[int, bool]], hole_blocks: list[tuple[int, int]]
) -> None:
    lengths = [length for length, _ in records]
    alive = [position for position, (_, lives) in enumerate(records) if lives]
    marks: set[int] = set()
    for first, count in hole_blocks:
        marks |= set(range(first, first + count))
    holes = tuple((block * BLOCK, (block + 1) * BLOCK) for block in sorted(marks))
    facts = pack(3, lengths, holes=holes)
    plan = plan_collection([facts], numbers(3, alive), now_ns=NOW, safety=Safety.FULL, block_bytes=BLOCK)
    if not alive:
        assert [drop.pack for drop in plan.drops] == [3]
        assert plan.reclaimable_bytes == facts.allocated_bytes
        return
    dead_bytes = bytearray(sum(lengths) + START)
    at = START
    for length, lives in records:
        if not lives:
            dead_bytes[at : at + length] = b"\1" * length
        at += length
    whole = {block for block in range(len(dead_bytes) // BLOCK) if all(dead_bytes[block * BLOCK : (block + 1) * BLOCK])}
    assert plan.reclaimable_bytes == len(whole - marks) * BLOCK
    for cut in plan.cuts:
        _, offset, length = cut.punch
        assert all(dead_bytes[offset : offset + length])
        assert cut.nbytes > 0
    covered = {
        position
        for position, (offset, stored) in enumerate(zip(facts.offset, facts.stored, strict=True))
        if any(
            cut.punch.offset <= offset and offset + stored <= cut.punch.offset + cut.punch.length for cut in plan.cuts
        )
    }
    assert plan.condemned == numbers(3, sorted(covered)), "exactly the records in the ranges are condemned"


def test_young_packs_wait_and_are_counted() -> None:
    young = pack(1, [8192, 8192], age_ns=WINDOW_NS - 1)
    plan = plan_collection([young], BitMap64(), now_ns=NOW, safety=Safety.FULL, block_bytes=BLOCK)
    assert plan.is_empty
    assert plan.young_bytes == young.allocated_bytes
    assert not plan_collection([young], BitMap64(), now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK).is_empty


def test_a_pack_of_the_future_is_young() -> None:
    plan = plan_collection(
        [pack(1, [8192], age_ns=-5 * WINDOW_NS)], BitMap64(), now_ns=NOW, safety=Safety.FULL, block_bytes=BLOCK
    )
    assert plan.is_empty


def test_an_open_pack_with_garbage_is_sealed_first() -> None:
    facts = pack(7, [9000, 9000, 100], sealed=False)
    plan = plan_collection([facts], numbers(7, [2]), now_ns=NOW, safety=Safety.FULL, block_bytes=BLOCK)
    assert plan.seal == (7,)
    assert plan.reclaimable_bytes == 3 * BLOCK


def test_a_record_that_gives_no_block_back_is_left_in_peace() -> None:
    plan = plan_collection(
        [pack(2, [3000, 3000, 3000])], numbers(2, [0, 2]), now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK
    )
    assert plan.is_empty
    assert not plan.condemned
    assert plan.scattered_bytes == 3000


def test_neighbours_of_a_freed_range_join_it() -> None:
    """Position 0 was freed before (kind 0, a hole): what dies beside it completes the block that both share."""
    facts = pack(2, [10_000, 10_000, 10_000], kinds=[0, 1, 1], holes=((4096, 8192),))
    plan = plan_collection([facts], numbers(2, [2]), now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK)
    assert plan.reclaimable_bytes == 2 * BLOCK
    assert plan.condemned == numbers(2, [1])


def test_rounds_are_bounded_and_complete() -> None:
    packs = [pack(index, [5000]) for index in range(5000)]
    plan = plan_collection(packs, BitMap64(), now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK)
    rounds = list(plan.rounds())
    assert [len(one.drops) for one in rounds] == [4096, 904]
    assert sum(one.nbytes for one in rounds) == plan.reclaimable_bytes
    assert len(rounds[0].intent(1).unlinks) == 4096


def test_the_plan_prints_itself() -> None:
    plan = plan_collection(
        [pack(1, [8192]), pack(2, [8192, 8192, 100])],
        numbers(2, [2]),
        now_ns=NOW,
        safety=Safety.NONE,
        block_bytes=BLOCK,
    )
    assert plan.text() == "remove 1 packs without anything live: 12.3 kB\nfree 1 ranges in 1 packs: 12.3 kB"


def test_packs_of_numbers() -> None:
    assert packs_of(BitMap64([5, 6, (9 << 16) + 1, 9 << 16, 1 << 40])) == [0, 9, 1 << 24]
    assert packs_of(BitMap64()) == []


@given(
    st.lists(st.tuples(st.integers(64, 20_000), st.sampled_from("ldx")), min_size=1, max_size=30),
    st.booleans(),
)
def test_the_gain_of_some_deaths_is_the_difference_of_two_plans(records: list[tuple[int, str]], sealed: bool) -> None:
    """l: stays alive, d: dead already, x: dies. Holes lie where an earlier collection would have punched."""
    lengths = [length for length, _ in records]
    kept = numbers(4, [position for position, (_, fate) in enumerate(records) if fate != "d"])
    dying = numbers(4, [position for position, (_, fate) in enumerate(records) if fate == "x"])
    facts = pack(4, lengths, sealed=sealed)
    for holes in ((), tuple((offset + 4096, offset + 8192) for offset in _first_hole(facts, kept))):
        there = replace(facts, holes=holes)

        def plan_bytes(live: BitMap64, there: PackFacts = there) -> int:
            plan = plan_collection([there], live, now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK)
            return plan.reclaimable_bytes

        gain = PackFigures(there, kept, BLOCK).gain_bytes(dying | numbers(5, [1]))
        assert gain == plan_bytes(kept - dying) - plan_bytes(kept)


def _first_hole(facts: PackFacts, kept: BitMap64) -> list[int]:
    """Block offsets (less one block) within a dead range, if there is one."""
    plan = plan_collection([facts], kept, now_ns=NOW, safety=Safety.NONE, block_bytes=BLOCK)
    return [-(-cut.punch.offset // BLOCK) * BLOCK - 4096 for cut in list(plan.cuts)[:1]]
