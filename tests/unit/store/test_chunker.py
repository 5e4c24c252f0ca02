"""Content-defined cuts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from repository.chunker import Chunker, is_zero
from repository.format.config import DEFAULT_CHUNKER
from repository.units import KIB, MIB
from tests.support.stores import CONFIG, noise


@settings(max_examples=25)
@given(st.integers(0, 1000), st.lists(st.integers(1, 300 * KIB), min_size=1, max_size=8))
def test_streaming_in_pieces_cuts_like_one_buffer(seed: int, pieces: list[int]) -> None:
    chunker = Chunker(CONFIG.chunker)
    data = noise(seed, sum(pieces))
    lengths: list[int] = []
    tail = b""
    at = 0
    for index, piece in enumerate(pieces):
        buffer = tail + data[at : at + piece]
        at += piece
        cut = chunker.lengths(buffer, final=index == len(pieces) - 1)
        lengths += cut
        tail = buffer[sum(cut) :]
    assert not tail
    assert lengths == chunker.lengths(data, final=True)
    assert sum(lengths) == len(data)


def test_bounds_are_kept() -> None:
    chunker = Chunker(DEFAULT_CHUNKER)
    lengths = chunker.lengths(noise(1, 12 * MIB), final=True)
    assert all(64 * KIB <= length <= 1 * MIB for length in lengths[:-1])


def test_an_insertion_moves_few_cuts() -> None:
    chunker = Chunker(CONFIG.chunker)
    data = noise(3, 2 * MIB)
    changed = data[: 1 * MIB] + b"x" + data[1 * MIB :]

    def pieces(buffer: bytes) -> set[bytes]:
        found, start = set(), 0
        for length in chunker.lengths(buffer, final=True):
            found.add(buffer[start : start + length])
            start += length
        return found

    assert len(pieces(changed) - pieces(data)) <= 3


def test_nothing_has_no_chunks() -> None:
    assert Chunker(CONFIG.chunker).lengths(b"", final=True) == []
    assert Chunker(CONFIG.chunker).lengths(b"", final=False) == []


@given(st.integers(0, 5000), st.one_of(st.none(), st.integers(0, 4999)))
def test_zeros_are_recognised(length: int, dirt: int | None) -> None:
    buffer = bytearray(length)
    if dirt is not None and dirt < length:
        buffer[dirt] = 1
    assert is_zero(memoryview(buffer)) == (1 not in buffer)
