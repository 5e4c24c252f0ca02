"""The intent: written before anything is freed, carried out again after a crash, harmless when torn."""

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from repository.errors import DamagedError
from repository.format.intent import (
    INTENT_BYTES,
    PUNCHES_MAX,
    UNLINKS_MAX,
    Intent,
    Punch,
    decode_intent,
    encode_intent,
)
from repository.ids import PackIndex

intents = st.builds(
    Intent,
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**32 - 1).map(PackIndex), max_size=5).map(tuple),
    st.lists(
        st.builds(
            Punch,
            st.integers(0, 2**32 - 1).map(PackIndex),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
        ),
        max_size=5,
    ).map(tuple),
)


@given(intents, st.integers(0, 2**64 - 1), st.binary(max_size=40))
def test_round_trip_whatever_stood_there_before(intent: Intent, seed: int, rest: bytes) -> None:
    assert decode_intent(encode_intent(intent, seed) + rest, seed) == intent


@given(intents, st.integers(0, 10_000), st.integers(1, 255))
def test_a_torn_one_is_none(intent: Intent, position: int, change: int) -> None:
    data = bytearray(encode_intent(intent, 5))
    data[position % len(data)] ^= change
    assert decode_intent(bytes(data), 5) is None
    assert decode_intent(bytes(data[: position % len(data)]), 5) is None


def test_the_largest_round_fits() -> None:
    largest = Intent(
        1,
        tuple(PackIndex(index) for index in range(UNLINKS_MAX)),
        tuple(Punch(PackIndex(1), 0, 1) for _ in range(PUNCHES_MAX)),
    )
    assert len(encode_intent(largest, 0)) <= INTENT_BYTES
    with pytest.raises(ValueError, match="bounds"):
        encode_intent(Intent(1, (*largest.unlinks, PackIndex(0))), 0)


def test_zeros_and_another_repository_are_none() -> None:
    assert decode_intent(bytes(INTENT_BYTES), 0) is None
    assert decode_intent(encode_intent(Intent(3, (PackIndex(1),)), 1), 2) is None


def test_a_later_version_is_refused() -> None:
    data = bytearray(encode_intent(Intent(1, (PackIndex(1),)), 9)[:-8])
    data[4] = 9
    with pytest.raises(DamagedError, match="version"):
        decode_intent(bytes(data) + xxhash.xxh3_64_intdigest(bytes(data), seed=9).to_bytes(8, "little"), 9)
