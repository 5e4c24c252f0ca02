"""The ledger's promise: under a claim there is always a place, whatever sizes the records have."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.format.record import HEADER_BYTES
from repository.ledger import Ledger
from repository.units import KIB, MIB

CHUNK_MAX = 64 * KIB


def _ledger() -> Ledger:
    return Ledger(4 * MIB, CHUNK_MAX)


class _Pack:
    """A model of an open pack: bytes and positions."""

    def __init__(self, nbytes: int, positions: int) -> None:
        self.nbytes = nbytes
        self.positions = positions

    def room(self, ledger: Ledger) -> int:
        return max(0, min(self.nbytes, self.positions * ledger.position_bytes))

    def usable(self, ledger: Ledger) -> int:
        return max(0, self.room(ledger) - ledger.slack_bytes)


@given(
    st.lists(st.tuples(st.integers(0, 1 * MIB), st.integers(0, 9_000)), min_size=1, max_size=5),
    st.lists(st.integers(HEADER_BYTES, HEADER_BYTES + CHUNK_MAX), max_size=400),
    st.randoms(use_true_random=False),
)
def test_what_is_claimed_always_finds_a_place(sizes: list[tuple[int, int]], records: list[int], random: Random) -> None:
    ledger = _ledger()
    packs = [_Pack(nbytes, positions) for nbytes, positions in sizes]
    ledger.add_room(sum(pack.usable(ledger) for pack in packs))
    claim = ledger.try_claim(sum(records), len(records))
    if claim is None:
        return
    for stored in records:
        cost = ledger.record_cost(stored)
        fitting = [pack for pack in packs if pack.room(ledger) >= cost]
        assert fitting, "a claimed record has no place"
        pack = random.choice(fitting)
        before = pack.usable(ledger)
        pack.nbytes -= stored + 46
        pack.positions -= 1
        ledger.spend(claim, cost, before - pack.usable(ledger))
    assert ledger.claimed_bytes() <= ledger.usable_bytes()
    assert claim.remaining_cost >= 0


def test_claims_do_not_overlap_and_come_back() -> None:
    ledger = _ledger()
    ledger.add_room(ledger.claim_cost(1000, 2))
    first = ledger.try_claim(1000, 2)
    assert first is not None
    assert ledger.try_claim(0, 1) is None
    ledger.forfeit(first)
    ledger.forfeit(first)
    assert ledger.try_claim(1000, 2) is not None
    assert ledger.try_claim(0, 1) is None


def test_room_under_claims_cannot_be_removed() -> None:
    ledger = _ledger()
    ledger.add_room(10_000)
    claim = ledger.try_claim(6_000, 1)
    assert claim is not None
    assert not ledger.try_remove_room(9_000)
    assert ledger.try_remove_room(1_000)
    ledger.forfeit(claim)
    assert ledger.try_remove_room(9_000)


def test_a_claim_is_raised_only_from_free_room() -> None:
    ledger = _ledger()
    ledger.add_room(5_000)
    claim = ledger.try_claim(0, 0)
    assert claim is not None
    assert ledger.top_up(claim, 4_000) == 0
    assert ledger.top_up(claim, 3_000) == 0
    assert claim.remaining_cost == 4_000
    assert ledger.top_up(claim, 7_500) == 2_500
    assert claim.remaining_cost == 4_000


@pytest.mark.parametrize("stored", [HEADER_BYTES, 500, 5_000])
def test_positions_cost_at_least_their_share(stored: int) -> None:
    ledger = _ledger()
    assert ledger.record_cost(stored) >= max(stored, ledger.position_bytes)
    assert ledger.position_bytes * 65_535 >= 4 * MIB
