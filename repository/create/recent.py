"""Which chunks were stored a moment ago: a small table in memory, shared with processes that were forked before."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from repository.ids import RECORD_ID_BYTES, RecordId
from repository.storage.memory import shared_memory

RECENT_BITS: Final = 17
"""131,072 places of eight bytes, so 1 MiB: as many chunks as a tree of 100,000 files has."""
_WORDS: Final = RECORD_ID_BYTES // 8


class Recent:
    """One process notes, others look. A place holds the chunk that was noted there last, so what it says is a hint."""

    def __init__(self) -> None:
        self._places: Final = np.frombuffer(shared_memory(8 << RECENT_BITS), "<u8")

    def note(self, ids: Sequence[RecordId]) -> None:
        """These are stored."""
        keys = _keys(ids)
        self._places[keys >> np.uint64(64 - RECENT_BITS)] = keys

    def which(self, ids: Sequence[RecordId]) -> list[bool]:
        """For each id, whether it was noted; at times False for one that was."""
        keys = _keys(ids)
        answer: list[bool] = (self._places[keys >> np.uint64(64 - RECENT_BITS)] == keys).tolist()
        return answer


def _keys(ids: Sequence[RecordId]) -> NDArray[np.uint64]:
    """The first eight bytes of each id, as a number: ids are hashes, and none begins with eight zeros."""
    return np.frombuffer(b"".join(ids), "<u8")[::_WORDS]
