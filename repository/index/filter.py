"""A Bloom filter over record ids: says for most absent ids, from memory, that they are absent."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from repository.format.indexseg import KeyArray
from repository.ids import RecordId

BITS_PER_ROW_MIN: Final = 12
"""With 4 probes: at most 0.6 % of absent ids reach the disk, and 12 to 24 bits a row in memory."""
PROBES: Final = 4
FILTER_BYTES_MIN: Final = 64
_U64: Final = (1 << 64) - 1


def filter_bytes_for(row_count: int) -> int:
    """Size of a filter for `row_count` ids: a power of two."""
    needed = max(FILTER_BYTES_MIN, row_count * BITS_PER_ROW_MIN // 8)
    return 1 << (needed - 1).bit_length()


class FilterBuilder:
    """Gathers ids into the bits of a new filter."""

    def __init__(self, row_count: int) -> None:
        self._bits = np.zeros(filter_bytes_for(row_count), np.uint8)

    def add(self, keys: KeyArray, second_words: KeyArray) -> None:
        """Set the bits of ids with these keys (bytes 0 to 8, big endian) and second words (8 to 16, little)."""
        for position in _positions(keys, second_words, len(self._bits)):
            np.bitwise_or.at(self._bits, position >> np.uint64(3), _bit(position))

    def tobytes(self) -> bytes:
        return self._bits.tobytes()


class Filter:
    """A finished filter."""

    def __init__(self, content: bytes) -> None:
        self._bytes = content
        self._array = np.frombuffer(content, np.uint8)
        self._mask = len(content) * 8 - 1

    def may_hold(self, record_id: RecordId) -> bool:
        """False where `record_id` is certainly absent."""
        position = int.from_bytes(record_id[:8], "big")
        step = int.from_bytes(record_id[8:16], "little") | 1
        content, mask = self._bytes, self._mask
        for _ in range(PROBES):
            at = position & mask
            if not content[at >> 3] >> (at & 7) & 1:
                return False
            position += step
        return True

    def which_may_hold(self, keys: KeyArray, second_words: KeyArray) -> NDArray[np.bool_]:
        """For each id, False where it is certainly absent."""
        answer = np.ones(len(keys), np.bool_)
        for position in _positions(keys, second_words, len(self._bytes)):
            answer &= (self._array[position >> np.uint64(3)] & _bit(position)) != 0
        return answer


def _positions(keys: KeyArray, second_words: KeyArray, nbytes: int) -> list[KeyArray]:
    mask = np.uint64(nbytes * 8 - 1)
    step = second_words | np.uint64(1)
    with np.errstate(over="ignore"):
        return [(keys + step * np.uint64(probe)) & mask for probe in range(PROBES)]


def _bit(position: KeyArray) -> NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (position & np.uint64(7)).astype(np.uint8))
