"""Which packs are worth moving the rest out of, on volumes that only give whole packs back. Pure."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from repository.format.pack import DIRECTORY_ROW_BYTES
from repository.ids import PackIndex
from repository.policy.columns import PackColumns
from repository.units import MIB

ROUND_BYTES: Final = 64 * MIB
"""Copied at most before what became dead is freed: a full pack's worth, a second or two of writing."""


class PackLoad(NamedTuple):
    """A sealed pack that is partly dead: what removing it gives back, and what has to be copied before."""

    pack: PackIndex
    allocated_bytes: int
    copy_bytes: int
    records: int

    @property
    def gain_bytes(self) -> int:
        """What is left of it after the copy."""
        return self.allocated_bytes - self.copy_bytes

    @property
    def is_worth_it(self) -> bool:
        """Dead enough: more comes back than is copied."""
        return self.gain_bytes > self.copy_bytes


def choose_round(loads: Iterable[PackLoad], *, room_bytes: int, enough_bytes: int | None) -> list[PackLoad]:
    """The packs of one round: those with the least to copy for what they give back, as far as `room_bytes` goes, and
    no more than `enough_bytes` needs. Empty where none is worth it or fits."""
    chosen: list[PackLoad] = []
    left = min(room_bytes, ROUND_BYTES)
    gained = 0
    for load in sorted(loads, key=lambda load: (load.copy_bytes / max(1, load.gain_bytes), load.pack)):
        if enough_bytes is not None and gained >= enough_bytes:
            break
        if not load.is_worth_it:
            break
        if load.copy_bytes <= left:
            chosen.append(load)
            left -= load.copy_bytes
            gained += load.gain_bytes
    return chosen


def repack_gains(columns: PackColumns, fates: NDArray[np.int32], steps: int) -> NDArray[np.int64]:
    """What repacking would give besides packs that die as a whole: entry i after the i-th snapshot of an order.

    `fates` has one entry a row, as in `policy.gains`. Counted to the byte, for every sealed pack that is worth it then.
    """
    there = columns.kind > 0
    counts = np.diff(columns.base)
    ordinals = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((fates, ordinals))[: columns.rows]
    order = order[there[order]]
    of, fate = ordinals[order], fates[order]
    nbytes = columns.stored[order].astype(np.int64) + DIRECTORY_ROW_BYTES
    total = np.bincount(of, weights=nbytes, minlength=len(counts)).astype(np.int64)
    before = np.cumsum(total) - total
    live = total[of] - (np.cumsum(nbytes) - before[of])
    ends = np.append((of[1:] != of[:-1]) | (fate[1:] != fate[:-1]), True) if len(of) else np.zeros(0, np.bool_)
    ends &= fate <= steps
    of, fate, live = of[ends], fate[ends], live[ends]
    allocated = columns.allocated_bytes[of]
    worth = (live > 0) & (allocated - live > live) & columns.sealed[of]
    gain = np.where(worth, allocated - live, 0)
    more = gain.copy()
    same = of[1:] == of[:-1]
    more[1:][same] -= gain[:-1][same]
    return np.cumsum(np.bincount(fate, weights=more, minlength=steps + 1).astype(np.int64))
