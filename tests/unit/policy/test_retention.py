"""Which snapshots are given up: the formula, who never goes, and that neither equal times nor clocks decide."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.ids import SnapshotId
from repository.policy.retention import Kept, gap_weight, most_given_up, thinning_order
from repository.units import NS_PER_S

DAY_S: Final = 24 * 3600


class Script:
    """Says what it was told to, one after the other."""

    def __init__(self, answers: Sequence[float]) -> None:
        self._answers = list(answers)

    def random(self) -> float:
        return self._answers.pop(0)


def snapshots(days: Sequence[float], *, source: str = "live", keep: Sequence[int] = (), first: int = 1) -> list[Kept]:
    """Made at these times, in this order; `keep` by index."""
    return [
        Kept(SnapshotId(first + at), source, round(day * DAY_S * NS_PER_S), at in keep) for at, day in enumerate(days)
    ]


def order(kept: Sequence[Kept], seed: int = 0, *, min_snapshots: int = 1, exponent: float = 2.0) -> list[int]:
    return list(thinning_order(kept, min_snapshots=min_snapshots, exponent=exponent, rng=random.Random(seed)))


def test_the_formula() -> None:
    assert gap_weight(10 * DAY_S, 1.0) == pytest.approx(1 / 10)
    assert gap_weight(10 * DAY_S, 3.0) == pytest.approx(1 / 1000)
    assert gap_weight(DAY_S / 2, 2.0) == pytest.approx(4)
    assert gap_weight(DAY_S, 7.0) == pytest.approx(1)
    assert gap_weight(5 * DAY_S, 0.0) == pytest.approx(1)
    assert gap_weight(0, 2.0) == gap_weight(1, 2.0) == pytest.approx(float(DAY_S) ** 2)


@pytest.mark.parametrize(("exponent", "border"), [(1.0, 10 / 11), (3.0, 1000 / 1001)])
def test_a_gap_of_ten_days_against_one_day(exponent: float, border: float) -> None:
    """Snapshot 2 follows after a day, 3 after ten: which one is drawn first tips exactly where the weights say."""
    kept = snapshots([0, 1, 11, 400, 401, 402], keep=[3, 4])

    def first(answer: float) -> int:
        found = thinning_order(kept, min_snapshots=1, exponent=exponent, rng=Script([answer] * 9))
        return found[0]

    assert first(border - 1e-6) == 2
    assert first(border + 1e-6) == 3


@pytest.mark.parametrize(("exponent", "share"), [(1.0, 10 / 11), (2.0, 100 / 101), (0.0, 1 / 2)])
def test_draws_follow_the_weights(exponent: float, share: float) -> None:
    kept = snapshots([0, 1, 11, 400], keep=[])
    draws = 4000
    first = Counter(order(kept, seed, exponent=exponent)[0] for seed in range(draws))
    assert set(first) <= {2, 3}
    sigma = (draws * share * (1 - share)) ** 0.5
    assert abs(first[2] - draws * share) < 5 * sigma


def test_what_stays_is_spread_more_evenly_by_a_larger_exponent() -> None:
    """A burst of an hour, then one a day: the larger the exponent, the fewer of the burst are left."""
    days = [at / 240 for at in range(10)] + [1.0 + at for at in range(10)]

    def bursts_left(exponent: float) -> int:
        left = 0
        for seed in range(60):
            gone = set(order(snapshots(days), seed, exponent=exponent))
            left += sum(at + 1 not in gone for at in range(1, 10))
        return left

    assert bursts_left(0.0) > bursts_left(0.5) > bursts_left(4.0)


def test_the_same_seed_gives_the_same_order() -> None:
    kept = snapshots([at * 0.7 for at in range(20)])
    assert order(kept, 5) == order(kept, 5)
    assert len({tuple(order(kept, seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize(("answer", "second"), [(0.2 - 1e-9, 3), (0.2 + 1e-9, 5)])
def test_gaps_are_measured_anew_after_each_choice(answer: float, second: int) -> None:
    """Once 2 is gone, 3 has a gap of two days behind it, a quarter of the weight of 5."""
    kept = snapshots([0, 1, 2, 3, 4, 400], keep=[3])
    assert thinning_order(kept, min_snapshots=1, exponent=2.0, rng=Script([0.0, answer])) == [2, second]


def test_who_never_goes() -> None:
    live = snapshots(list(range(10)), keep=[2, 5])
    other = snapshots([0.5, 1.5, 2.5], source="host:/a", first=50)
    for seed in range(50):
        gone = order([*live, *other], seed)
        assert not {3, 6} & set(gone), "pinned or named"
        assert not {10, 52} & set(gone), "the newest of each source"
        assert not {1, 50} & set(gone), "an oldest, while there are others"


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.booleans()), max_size=25),
    st.integers(0, 6),
    st.integers(0, 1000),
)
def test_bounds_hold_whatever_there_is(rows: list[tuple[str, int, bool]], min_snapshots: int, seed: int) -> None:
    kept = [
        Kept(SnapshotId(at + 1), source, day * DAY_S * NS_PER_S, keep) for at, (source, day, keep) in enumerate(rows)
    ]
    gone = order(kept, seed, min_snapshots=min_snapshots)
    assert len(set(gone)) == len(gone)
    candidates = 0
    for source in "ab":
        run = [one for one in kept if one.source == source]
        left = [one for one in run if one.snapshot not in gone]
        assert len(left) >= min(len(run), max(1, min_snapshots))
        if run:
            assert run[-1] in left
            assert max(run, key=lambda one: (one.time_ns, one.snapshot)) in left
        assert all(one in left for one in run if one.keep)
        candidates += sum(not one.keep for one in run)
    assert len(gone) <= max(1, candidates // 2)


def test_at_most_half_of_the_candidates_but_one_of_one() -> None:
    assert [most_given_up(count) for count in range(6)] == [0, 1, 1, 1, 2, 2]
    assert len(order(snapshots(list(range(21))))) == 10
    assert order(snapshots([0, 1])) == [1], "nothing else is left: the oldest"
    assert order(snapshots([0])) == []
    assert order([]) == []
    assert order(snapshots([0, 1], keep=[0])) == []


def test_the_oldest_goes_when_all_others_are_fixed() -> None:
    kept = snapshots([0, 1, 2, 3], keep=[1, 2])
    assert order(kept) == [1]


def test_min_snapshots_stay() -> None:
    kept = snapshots(list(range(12)))
    assert len(order(kept, min_snapshots=10)) == 1
    assert len(order(kept, min_snapshots=11)) == 1
    assert order(kept, min_snapshots=12) == []
    assert order(kept, min_snapshots=0) == order(kept, min_snapshots=1)


def test_equal_times_divide_nothing_by_zero() -> None:
    kept = snapshots([3, 3, 3, 3, 3, 3, 9, 30])
    found = [order(kept, seed) for seed in range(40)]
    assert all(set(one) <= {2, 3, 4, 5, 6} for one in found)
    assert len({one[0] for one in found}) == 5, "each of them may be drawn"
    assert len(order(kept, exponent=80.0)) == 3
    assert order(snapshots([5] * 9), 1) != []


def test_a_clock_that_jumped_chooses_nobody() -> None:
    """Snapshot 4 says it was made in the year 2090, 5 in 1980: neither is the one that goes because of it."""
    days = [100.0, 101, 102, 44_000, 3_650, 103, 104, 105, 106]
    for seed in range(60):
        first = order(snapshots(days), seed)[0]
        assert first in {2, 3, 7, 8}, "gaps of a day; what follows a jump weighs as little as any"
        gone = order(snapshots(days), seed)
        assert 9 not in gone, "the newest is the one that came last"


def test_an_enormous_exponent_neither_overflows_nor_vanishes() -> None:
    days = [float(at * at) for at in range(40)]
    for exponent in (0.0, 100.0, 1e6):
        assert len(order(snapshots(days), exponent=exponent)) == 19
    kept = snapshots([*days, days[-1] + 1e-9, 3000])
    assert order(kept, exponent=1e6)[0] == 41


def test_a_thousand_snapshots_are_thinned_evenly() -> None:
    """Every gap that is left is a few of the old ones, not a hole: what it is for."""
    kept = snapshots([float(at) for at in range(1000)])
    gone = set(order(kept, 3, exponent=4.0))
    left = [at for at in range(1000) if at + 1 not in gone]
    assert max(after - before for before, after in pairwise(left)) <= 6
