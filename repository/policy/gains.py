"""What comes free when snapshots go one after the other: the whole curve in one pass. Pure.

Each record has a *fate*: 0 when nobody needs it now, i when the i-th snapshot of an order is the last that needs it,
STAYS when something outside of the order does. A block comes free with the last of the records that share it, a whole
pack with the last of its records; so each block is counted once, at its own step, and no step is looked at alone.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from repository.policy.collect import whole_blocks
from repository.policy.columns import Extents, PackColumns

STAYS: Final = np.int32(1 << 30)
"""The fate of a record that outlives every snapshot of the order."""


def gains(
    columns: PackColumns, fates: NDArray[np.int32], steps: int, block_bytes: int, *, punch: bool = True
) -> NDArray[np.int64]:
    """What the volume has back after each step: entry 0 of what is dead already, entry i after the i-th snapshot.

    `fates` has one entry a row. Exactly what plans for these deaths, safety NONE, would say. `punch` False: whole
    packs only.
    """
    fates = np.where(columns.kind == 0, np.int32(0), fates)
    counts = np.diff(columns.base)
    last = np.zeros(len(counts), np.int32)
    filled = np.flatnonzero(counts)
    if len(filled):
        last[filled] = np.maximum.reduceat(fates, columns.base[filled])
    whole = columns.whole_bytes(block_bytes)
    going = (last < STAYS) & (counts > 0)
    by_step = np.zeros(steps + 1, np.int64)
    if punch:
        rows = np.flatnonzero((fates < STAYS) & (columns.stored > 0))
        lying = columns.extents(rows)
        fate = fates[lying.rows]
        inner = _inner_bytes(columns, lying, block_bytes)
        by_step += _summed(fate, inner, steps + 1)
        given = _summed(lying.ordinals, inner, len(counts))
        first, block_fate, nbytes = _shared_blocks(columns, lying, fate, block_bytes)
        by_step += _summed(block_fate, nbytes, steps + 1)
        given += _summed(lying.ordinals[first], nbytes, len(counts))
        whole = whole - given
    by_step += _summed(last[going], whole[going], steps + 1)
    return np.cumsum(by_step)


def _inner_bytes(columns: PackColumns, lying: Extents, block_bytes: int) -> NDArray[np.int64]:
    """Blocks that lie wholly within one record, as far as they are there."""
    start, end = whole_blocks(lying.start, lying.end, block_bytes)
    inner: NDArray[np.int64] = np.maximum(end - start, 0)
    inner -= columns.hole_bytes(start, start + inner)
    return inner


def _shared_blocks(
    columns: PackColumns, lying: Extents, fate: NDArray[np.int32], block_bytes: int
) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.int64]]:
    """Blocks that several records cover together without a gap: the first of the records, fate of the block, bytes."""
    start, end = lying.start, lying.end
    block = end // block_bytes * block_bytes
    first = np.flatnonzero((block < end) & (block >= start))
    first = first[first < len(end) - 1]
    close = block[first] + block_bytes
    last = first + 1
    more = np.flatnonzero(end[np.minimum(last, len(end) - 1)] < close)
    last[more] = np.searchsorted(end, close[more])
    joined = np.concatenate((np.zeros(1, np.int64), np.cumsum(start[1:] != end[:-1])))
    covered = last < len(end)
    covered[covered] = joined[first[covered]] == joined[last[covered]]
    first, last, close = first[covered], last[covered], close[covered]
    if not len(first):
        return first, np.zeros(0, np.int32), np.zeros(0, np.int64)
    spans = np.column_stack((first, last + 1)).ravel()
    block_fate = np.maximum.reduceat(np.append(fate, np.int32(0)), spans)[::2]
    nbytes = block_bytes - columns.hole_bytes(close - block_bytes, close)
    return first, block_fate, nbytes


def _summed(keys: NDArray[np.intp] | NDArray[np.int32], nbytes: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Bytes by key; exact, as sums below 2^53 are in a float."""
    return np.bincount(keys, weights=nbytes, minlength=length).astype(np.int64)
