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
from repository.policy.columns import ADDRESS_BITS, PackColumns, PackFacts, distinct, join, spread
from repository.units import NS_PER_S, format_size

__all__ = ["PackFacts"]

WINDOW_NS: Final = 24 * 3600 * NS_PER_S
"""An unreferenced record younger than this is kept, and so is a deleted snapshot: time to think again, and time for an
interrupted `snapshot create` to go on from what it stored."""


class Safety(StrEnum):
    """`FULL` keeps the window; `NONE` frees the trash and everything unreferenced, whatever its age."""

    FULL = "full"
    NONE = "none"


class PackDrop(NamedTuple):
    """A pack without anything live: unlinking it gives `nbytes` back."""

    pack: PackIndex
    nbytes: int


class PackCut(NamedTuple):
    """A merged range of dead records: freeing it gives back `nbytes`, its whole blocks that still are there."""

    punch: Punch
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """Many cuts as columns, which is what they are found as; each becomes a `PackCut` only when it is looked at."""

    pack: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    offset: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    length: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    freed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.pack)

    def __iter__(self) -> Iterator[PackCut]:
        columns = (self.pack.tolist(), self.offset.tolist(), self.length.tolist(), self.freed.tolist())
        for pack, offset, length, freed in zip(*columns, strict=True):
            yield PackCut(Punch(PackIndex(pack), offset, length), freed)

    def taken(self, which: NDArray[np.intp]) -> "Cuts":
        """Some of them, in the order of `which`."""
        return Cuts(self.pack[which], self.offset[which], self.length[which], self.freed[which])

    def followed_by(self, other: "Cuts") -> "Cuts":
        """Both, one after the other."""
        return Cuts(
            np.concatenate((self.pack, other.pack)),
            np.concatenate((self.offset, other.offset)),
            np.concatenate((self.length, other.length)),
            np.concatenate((self.freed, other.freed)),
        )

    @property
    def nbytes(self) -> int:
        """What they give back together."""
        return int(self.freed.sum())


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What one collection does. `condemned`: numbers of all records that go.

    `young_bytes`: whole blocks that are unreferenced and wait for the window to pass. `scattered_bytes`: dead bytes
    that give no whole block back.
    """

    drops: tuple[PackDrop, ...] = ()
    cuts: Cuts = field(default_factory=Cuts)
    seal: tuple[PackIndex, ...] = ()
    condemned: BitMap64 = field(default_factory=BitMap64)
    young_bytes: int = 0
    scattered_bytes: int = 0

    @property
    def reclaimable_bytes(self) -> int:
        """What the volume gets back."""
        return sum(drop.nbytes for drop in self.drops) + self.cuts.nbytes

    @property
    def is_empty(self) -> bool:
        return not self.drops and not self.cuts

    def followed_by(self, other: "CollectPlan") -> "CollectPlan":
        """Both, one after the other; what waits or is scattered is as the later one found it."""
        return CollectPlan(
            self.drops + other.drops,
            self.cuts.followed_by(other.cuts),
            self.seal + other.seal,
            self.condemned | other.condemned,
            other.young_bytes,
            other.scattered_bytes,
        )

    def text(self) -> str:
        """The plan for people, one line a step."""
        lines: list[str] = []
        if self.drops:
            total = format_size(sum(drop.nbytes for drop in self.drops))
            lines.append(f"remove {len(self.drops)} packs without anything live: {total}")
        if self.cuts:
            total = format_size(self.cuts.nbytes)
            packs = len(distinct(self.cuts.pack))
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
        order = np.argsort(-self.cuts.freed, kind="stable")
        for start in range(0, len(order), PUNCHES_MAX):
            yield Round((), tuple(self.cuts.taken(order[start : start + PUNCHES_MAX])))


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
    packs = distinct(np.asarray(numbers.to_array(), np.uint64) >> np.uint64(POSITION_BITS))
    return [PackIndex(pack) for pack in packs.tolist()]


def live_rows(live: BitMap64, pack: PackIndex, rows: int) -> NDArray[np.bool_]:
    """Which of the first `rows` positions of `pack` are in `live`."""
    mask = np.zeros(RECORDS_PER_PACK_MAX, np.bool_)
    found = live & pack_numbers(pack)
    if found:
        mask[np.asarray(found.to_array(), np.uint64).astype(np.int64) & (RECORDS_PER_PACK_MAX - 1)] = True
    return mask[:rows]


class _Cuts(NamedTuple):
    """Merged dead ranges of packs that stay: ordinal of the pack, first byte and end as addresses.

    `whole`: bytes of the blocks that end and begin within; `freed`: those of them that are there. `of`: for each row
    in `rows`, which range it lies in.
    """

    ordinals: NDArray[np.intp]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    whole: NDArray[np.int64]
    freed: NDArray[np.int64]
    rows: NDArray[np.intp]
    of: NDArray[np.intp]


def _merged(columns: PackColumns, rows: NDArray[np.intp], block_bytes: int) -> _Cuts:
    lying = columns.extents(rows)
    first = np.ones(len(lying.start), np.bool_)
    first[1:] = lying.start[1:] != lying.end[:-1]
    heads = np.flatnonzero(first)
    start, end = lying.start[heads], lying.end[np.append(heads[1:], len(first)) - 1] if len(heads) else lying.end
    whole_start, whole_end = whole_blocks(start, end, block_bytes)
    whole = np.maximum(whole_end - whole_start, 0)
    freed = whole - columns.hole_bytes(whole_start, whole_start + whole)
    return _Cuts(lying.ordinals[heads], start, end, whole, freed, lying.rows, np.cumsum(first) - 1)


def whole_blocks(
    start: NDArray[np.int64], end: NDArray[np.int64], block_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first block that begins in each range, and the end of the last that ends in it (before the first: none)."""
    return -(-start // block_bytes) * block_bytes, end // block_bytes * block_bytes


def whole_pack_bytes(facts: PackFacts, block_bytes: int) -> int:
    """What removing one pack gives back: see `PackColumns.whole_bytes`."""
    return int(join([facts]).whole_bytes(block_bytes)[0])


def plan_collection(
    packs: Iterable[PackFacts], live: BitMap64, *, now_ns: int, safety: Safety, block_bytes: int, punch: bool = True
) -> CollectPlan:
    """What to free so that everything in `live` stays: see `plan_dead`."""
    columns = join(packs)
    dead = ~columns.mask(live)
    return plan_dead(columns, dead, now_ns=now_ns, safety=safety, block_bytes=block_bytes, punch=punch)


def plan_dead(
    columns: PackColumns,
    dead: NDArray[np.bool_],
    *,
    now_ns: int,
    safety: Safety,
    block_bytes: int,
    enough_bytes: int | None = None,
    punch: bool = True,
) -> CollectPlan:
    """What to free where the rows in `dead` are needed by nobody.

    `block_bytes` is the volume's unit of allocation. A pack whose last record was written within WINDOW_NS before
    `now_ns` (or after: clocks jump) is left alone unless `safety` is NONE. With `enough_bytes` no more than that takes:
    whole packs first, then ranges, the largest first. `punch` False: whole packs only.
    """
    counts = np.diff(columns.base)
    dead = dead | (columns.kind == 0)
    sums = np.zeros(len(dead) + 1, np.int64)
    np.cumsum(~dead, out=sums[1:])
    alive = np.diff(sums[columns.base])
    old = (now_ns - columns.written_ns >= WINDOW_NS) | (safety is Safety.NONE)
    wholly = (alive == 0) & (counts > 0)
    whole = columns.whole_bytes(block_bytes)
    young_bytes = int(whole[wholly & ~old].sum())
    drops = np.flatnonzero(wholly & old)

    rows = np.flatnonzero(dead & (columns.stored > 0) & np.repeat(alive > 0, counts))[: None if punch else 0]
    cuts = _merged(columns, rows, block_bytes)
    aged = old[cuts.ordinals]
    young_bytes += int(cuts.freed[~aged].sum())
    scattered = int((cuts.end - cuts.start - cuts.whole).sum())
    useful = np.flatnonzero(aged & (cuts.freed > 0))

    drops = _largest(drops, whole[drops], enough_bytes)
    rest = None if enough_bytes is None else max(0, enough_bytes - int(whole[drops].sum()))
    useful = np.sort(_largest(useful, cuts.freed[useful], rest))
    chosen = np.zeros(len(cuts.freed), np.bool_)
    chosen[useful] = True
    gone = np.sort(np.concatenate((_rows_in(columns, np.sort(drops)), cuts.rows[chosen[cuts.of]])))
    condemned = columns.numbers_of(gone[columns.kind[gone] > 0])
    touched = np.zeros(len(counts), np.bool_)
    touched[drops] = True
    touched[cuts.ordinals[useful]] = True
    base = cuts.ordinals[useful].astype(np.int64) << ADDRESS_BITS
    return CollectPlan(
        tuple(
            [
                PackDrop(PackIndex(pack), nbytes)
                for pack, nbytes in zip(columns.packs[drops].tolist(), whole[drops].tolist(), strict=True)
            ]
        ),
        Cuts(
            columns.packs[cuts.ordinals[useful]],
            cuts.start[useful] - base,
            cuts.end[useful] - cuts.start[useful],
            cuts.freed[useful],
        ),
        tuple([PackIndex(pack) for pack in columns.packs[touched & ~columns.sealed].tolist()]),
        condemned,
        young_bytes,
        scattered,
    )


def _largest(items: NDArray[np.intp], nbytes: NDArray[np.int64], enough_bytes: int | None) -> NDArray[np.intp]:
    """Those of `items` that it takes to make `enough_bytes`, the largest first; None: all, in their order."""
    if enough_bytes is None:
        return items
    order = np.argsort(-nbytes, kind="stable")
    count = int(np.searchsorted(np.cumsum(nbytes[order]), enough_bytes)) + 1 if enough_bytes > 0 else 0
    return items[order[:count]]


def _rows_in(columns: PackColumns, ordinals: NDArray[np.intp]) -> NDArray[np.intp]:
    """All rows of some packs."""
    return spread(columns.base[ordinals], np.diff(columns.base)[ordinals])
