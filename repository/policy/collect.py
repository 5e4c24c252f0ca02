"""What a collection frees: from packs' columns and the union of what is reachable to a plan that prints itself. Pure.

Every figure counts what the volume really gives back: whole packs, and whole blocks within merged ranges of dead
records. Nothing here knows ids: a record is its number, and a number is a place.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.format.intent import PUNCHES_MAX, UNLINKS_MAX, Intent, Punch
from repository.ids import POSITION_BITS, RECORDS_PER_PACK_MAX, PackIndex
from repository.units import NS_PER_S, format_size

WINDOW_NS: Final = 24 * 3600 * NS_PER_S
"""An unreferenced record younger than this is kept, and so is a deleted snapshot: time to think again, and time for an
interrupted `snapshot create` to go on from what it stored."""


class Safety(StrEnum):
    """`FULL` keeps the window; `NONE` frees the trash and everything unreferenced, whatever its age."""

    FULL = "full"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class PackFacts:
    """One pack as the plan sees it. Columns by position; kind 0: no record is there (void, torn, or freed before).

    `stored` counts the header. `allocated_bytes` is what unlinking gives back; `holes` are ranges (start, end)
    without blocks. `written_ns`: when its last record was added, for all its records alike.
    """

    index: PackIndex
    sealed: bool
    written_ns: int
    allocated_bytes: int
    offset: NDArray[np.uint32]
    stored: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    holes: tuple[tuple[int, int], ...] = ()


class PackDrop(NamedTuple):
    """A pack without anything live: unlinking it gives `nbytes` back."""

    pack: PackIndex
    nbytes: int


class PackCut(NamedTuple):
    """A merged range of dead records: freeing it gives back `nbytes`, its whole blocks that still are there."""

    punch: Punch
    nbytes: int


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What one collection does. `condemned`: numbers of all records that go.

    `young_bytes`: whole blocks that are unreferenced and wait for the window to pass. `scattered_bytes`: dead bytes
    that give no whole block back.
    """

    drops: tuple[PackDrop, ...] = ()
    cuts: tuple[PackCut, ...] = ()
    seal: tuple[PackIndex, ...] = ()
    condemned: BitMap64 = field(default_factory=BitMap64)
    young_bytes: int = 0
    scattered_bytes: int = 0

    @property
    def reclaimable_bytes(self) -> int:
        """What the volume gets back."""
        return sum(drop.nbytes for drop in self.drops) + sum(cut.nbytes for cut in self.cuts)

    @property
    def is_empty(self) -> bool:
        return not self.drops and not self.cuts

    def text(self) -> str:
        """The plan for people, one line a step."""
        lines: list[str] = []
        if self.drops:
            total = format_size(sum(drop.nbytes for drop in self.drops))
            lines.append(f"remove {len(self.drops)} packs without anything live: {total}")
        if self.cuts:
            total = format_size(sum(cut.nbytes for cut in self.cuts))
            packs = len({cut.punch.pack for cut in self.cuts})
            lines.append(f"free {len(self.cuts)} ranges in {packs} packs: {total}")
        if not lines:
            lines.append("nothing to free")
        if self.young_bytes:
            lines.append(f"kept for up to 24 h yet: {format_size(self.young_bytes)}")
        return "\n".join(lines)

    def rounds(self) -> Iterator["Round"]:
        """The plan cut into rounds that one intent holds: packs first, then ranges, the largest first."""
        drops = sorted(self.drops, key=lambda drop: drop.nbytes, reverse=True)
        for start in range(0, len(drops), UNLINKS_MAX):
            yield Round(tuple(drops[start : start + UNLINKS_MAX]), ())
        cuts = sorted(self.cuts, key=lambda cut: cut.nbytes, reverse=True)
        for start in range(0, len(cuts), PUNCHES_MAX):
            yield Round((), tuple(cuts[start : start + PUNCHES_MAX]))


class Round(NamedTuple):
    """One bounded step."""

    drops: tuple[PackDrop, ...]
    cuts: tuple[PackCut, ...]

    def intent(self, serial: int) -> Intent:
        """What has to be durable before anything of this round happens."""
        return Intent(serial, tuple(drop.pack for drop in self.drops), tuple(cut.punch for cut in self.cuts))

    @property
    def nbytes(self) -> int:
        return sum(drop.nbytes for drop in self.drops) + sum(cut.nbytes for cut in self.cuts)


def pack_numbers(pack: PackIndex) -> BitMap64:
    """All numbers that records of `pack` can have."""
    numbers = BitMap64()
    numbers.add_range(pack << POSITION_BITS, (pack + 1) << POSITION_BITS)
    return numbers


def packs_of(numbers: BitMap64) -> list[PackIndex]:
    """The packs that `numbers` touch, ascending."""
    if not numbers:
        return []
    packs = np.unique(np.asarray(numbers.to_array(), np.uint64) >> np.uint64(POSITION_BITS))
    return [PackIndex(pack) for pack in packs.tolist()]


def live_rows(live: BitMap64, pack: PackIndex, rows: int) -> NDArray[np.bool_]:
    """Which of the first `rows` positions of `pack` are in `live`."""
    mask = np.zeros(RECORDS_PER_PACK_MAX, np.bool_)
    found = live & pack_numbers(pack)
    if found:
        mask[np.asarray(found.to_array(), np.uint64).astype(np.int64) & (RECORDS_PER_PACK_MAX - 1)] = True
    return mask[:rows]


class _Ranges(NamedTuple):
    """Merged dead ranges of one pack that give something back: first byte, end, bytes given back."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    freed: NDArray[np.int64]
    scattered_bytes: int


def _ranges(facts: PackFacts, dead: NDArray[np.bool_], block_bytes: int) -> _Ranges:
    order = np.argsort(facts.offset[dead], kind="stable")
    start = facts.offset[dead][order].astype(np.int64)
    end = start + facts.stored[dead][order].astype(np.int64)
    if not len(start):
        return _Ranges(start, end, start, 0)
    first = np.concatenate(([True], start[1:] != end[:-1]))
    last = np.concatenate((first[1:], [True]))
    start, end = start[first], end[last]
    whole_start = -(-start // block_bytes) * block_bytes
    whole_end = end // block_bytes * block_bytes
    freed = np.maximum(whole_end - whole_start, 0)
    scattered = int((end - start - freed).sum())
    for hole_start, hole_end in facts.holes:
        overlap = np.minimum(whole_end, hole_end) - np.maximum(whole_start, hole_start)
        freed = freed - np.maximum(np.minimum(overlap, freed), 0)
    useful = freed > 0
    return _Ranges(start[useful], end[useful], freed[useful], scattered)


def whole_pack_bytes(facts: PackFacts, block_bytes: int) -> int:
    """What removing a pack gives back. Of an open one only what records take: sealing cuts off the rest, which is
    room, and no garbage."""
    if facts.sealed or not len(facts.offset):
        return facts.allocated_bytes
    end = int((facts.offset.astype(np.int64) + facts.stored).max())
    return min(facts.allocated_bytes, -(-end // block_bytes) * block_bytes)


def plan_collection(
    packs: Iterable[PackFacts], live: BitMap64, *, now_ns: int, safety: Safety, block_bytes: int
) -> CollectPlan:
    """What to free so that everything in `live` stays.

    `block_bytes` is the volume's unit of allocation. A pack whose last record was written within WINDOW_NS before
    `now_ns` (or after: clocks jump) is left alone unless `safety` is NONE.
    """
    drops: list[PackDrop] = []
    cuts: list[PackCut] = []
    seal: list[PackIndex] = []
    condemned = BitMap64()
    young_bytes = scattered_bytes = 0
    for facts in packs:
        rows = len(facts.offset)
        alive = live_rows(live, facts.index, rows)
        if not rows and not facts.sealed:
            continue
        dead = ~alive & (facts.stored > 0)
        if alive.any():
            if not dead.any():
                continue
            ranges = _ranges(facts, dead, block_bytes)
            nbytes = int(ranges.freed.sum())
            scattered_bytes += ranges.scattered_bytes
        else:
            nbytes = whole_pack_bytes(facts, block_bytes)
        if safety is Safety.FULL and now_ns - facts.written_ns < WINDOW_NS:
            young_bytes += nbytes
            continue
        if not nbytes and alive.any():
            continue
        if not facts.sealed:
            seal.append(facts.index)
        base = facts.index << POSITION_BITS
        if not alive.any():
            drops.append(PackDrop(facts.index, nbytes))
            condemned.update((np.flatnonzero(facts.kind).astype(np.uint64) + np.uint64(base)).tolist())
            continue
        cuts += [
            PackCut(Punch(facts.index, first, end - first), freed)
            for first, end, freed in zip(ranges.start.tolist(), ranges.end.tolist(), ranges.freed.tolist(), strict=True)
        ]
        condemned.update([base + row for row in _rows_in(facts, dead, ranges)])
    return CollectPlan(tuple(drops), tuple(cuts), tuple(seal), condemned, young_bytes, scattered_bytes)


def _rows_in(facts: PackFacts, dead: NDArray[np.bool_], ranges: _Ranges) -> list[int]:
    """Positions of the dead records that lie in `ranges` (sorted, disjoint)."""
    rows = np.flatnonzero(dead & (facts.kind > 0))
    at = facts.offset[rows].astype(np.int64)
    which = np.searchsorted(ranges.start, at, side="right") - 1
    inside = (which >= 0) & (at < ranges.end[np.maximum(which, 0)]) if len(ranges.start) else which >= 0
    positions: list[int] = rows[inside].astype(np.int64).tolist()
    return positions
