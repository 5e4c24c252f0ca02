"""New bitmaps for roots whose records have moved: the same sets, with other numbers for some of their members."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.bitmaps import BitmapReader, SnapshotBitmap, bitmap_bytes_max, store_bitmap
from repository.catalog import Catalog
from repository.format.bitmap import CHAIN_MAX
from repository.format.catalog import Head, Slot
from repository.format.record import Stored
from repository.ids import NO_ID, RecordId, RecordNumber
from repository.leases import Lease
from repository.ledger import Claim
from repository.policy.collect import packs_of
from repository.reach import walk
from repository.roots import Root, bitmap_of, roots_by_source
from repository.store import RecordStore

log = logging.getLogger(__name__)

_NUMBER_BYTES: Final = 4
"""One number taken out and one put in: two bytes each in a container of a bitmap."""
_PACK_BYTES: Final = 128
"""What each pack that numbers are taken out of costs beside them, and those they go to."""
_BITMAP_BYTES: Final = 1024
"""Heads of a bitmap and of its record, and some packs that copies go to."""


class Moves(NamedTuple):
    """Where records have gone: `new[i]` is the number of what was `old[i]` (ascending).

    `left`: every number of the packs that they have left. `renewed`: those of bitmaps, which are made anew.
    """

    old: NDArray[np.uint64]
    new: NDArray[np.uint64]
    left: BitMap64
    renewed: BitMap64

    def number(self, old: RecordNumber) -> RecordNumber:
        """Where one record is now."""
        at = int(np.searchsorted(self.old, np.uint64(old)))
        found = at < len(self.old) and int(self.old[at]) == old
        return RecordNumber(int(self.new[at])) if found else old

    def apply(self, numbers: BitMap64) -> BitMap64 | None:
        """`numbers` with the new places for the old ones; None where one of them has no new place."""
        gone = numbers & self.left
        moved = np.isin(self.old, np.asarray(gone.to_array(), np.uint64), assume_unique=True)
        if gone - BitMap64(self.old[moved].tolist()) - self.renewed:
            return None
        return (numbers - gone) | BitMap64(self.new[moved].tolist())


class Readdressed(NamedTuple):
    """A root as it was, and its new bitmap."""

    root: Root
    bitmap: Stored


class _Touched(NamedTuple):
    """A root that has something to do with packs that are left. `bitmap` None: it can only be walked; a bitmap is made,
    so that nobody takes it for what it was. `renew`: its bitmap's own records lie there."""

    root: Root
    bitmap: SnapshotBitmap | None
    renew: bool
    first: bool
    """The first of its source: no bitmap of this run is before it."""


def _touched(store: RecordStore, catalog: Catalog, left: BitMap64) -> Iterator[_Touched]:
    """Roots in the order of their sources, then of time, so that each bitmap's difference is read once."""
    reader = BitmapReader(store)
    for run in roots_by_source(catalog).values():
        first = True
        for root in run:
            found = _look(reader, root, left)
            if found is not None:
                yield _Touched(root, *found, first)
                first = False


def _look(reader: BitmapReader, root: Root, left: BitMap64) -> tuple[SnapshotBitmap | None, bool] | None:
    if root.manifest == NO_ID:
        return None
    bitmap = bitmap_of(reader, root)
    if bitmap is None:
        return None, True
    renew = bitmap.chain.intersect(left)
    if renew or root.manifest_number in left or bitmap.numbers.intersect(left):
        return bitmap, renew
    return None


def readdress_bytes(store: RecordStore, catalog: Catalog, left: BitMap64) -> int:
    """The most that `readdress` can store once everything needed has left the packs with these numbers."""
    total = 0
    before: SnapshotBitmap | None = None
    for root, bitmap, renew, first in _touched(store, catalog, left):
        if bitmap is None:
            total += bitmap_bytes_max(walk(store, [root.manifest]))
            continue
        gone = bitmap.numbers & left
        total += _BITMAP_BYTES + _NUMBER_BYTES * len(gone) + _PACK_BYTES * len(packs_of(gone))
        depth = bitmap.depth + 1
        if renew or depth > CHAIN_MAX:
            if first or before is None or before.depth >= CHAIN_MAX:
                depth = 0
                total += bitmap_bytes_max(bitmap.numbers)
            else:
                depth = before.depth + 1
                total += bitmap_bytes_max(bitmap.numbers ^ before.numbers)
        before = bitmap._replace(depth=depth)
    return total


def readdress(
    store: RecordStore, catalog: Catalog, moves: Moves, lease: Lease, claim: Claim | None = None
) -> list[Readdressed]:
    """Store a new bitmap for every root that names a place that is left. Nothing names them yet: see `overwrite`.

    As a difference to the root's own bitmap, so that little is written; where that one's records are left too, or its
    chain is long, to the one before of the same source. Raises what a put raises.
    """
    made: list[Readdressed] = []
    known: dict[RecordId, Stored] = {}
    before: tuple[RecordId, SnapshotBitmap] | None = None
    for root, found, renew, first in _touched(store, catalog, moves.left):
        bitmap = found
        if bitmap is None:
            bitmap = SnapshotBitmap(root.manifest, True, CHAIN_MAX, walk(store, [root.manifest]), BitMap64())
        if first:
            before = None
        stored = known.get(root.bitmap) if found is not None else None
        if stored is None:
            parent = before if renew or bitmap.depth >= CHAIN_MAX else (root.bitmap, bitmap)
            numbers = moves.apply(bitmap.numbers)
            if numbers is None:  # its pack stays, then
                log.info("repack.root_kept", extra={"manifest": root.manifest.hex()})
                continue
            stored, new = store_bitmap(
                store, lease, root.manifest, numbers, exact=bitmap.exact, parent=parent, claim=claim
            )
            known[root.bitmap] = stored
            before = (stored.id, new)
        made.append(Readdressed(root, stored))
    return made


def overwrite(catalog: Catalog, made: list[Readdressed], moves: Moves) -> int:
    """Give slots and head their new bitmaps and numbers, durable on return: how many. Under the snapshots' lock.

    A root that is another one meanwhile keeps what it says: it keeps the packs, too.
    """
    standing = {slot.snapshot_id: slot for slot in catalog.slots()}
    head = catalog.head()
    slots: list[Slot] = []
    new_head: Head | None = None
    for root, stored in made:
        if isinstance(root, Slot):
            now = standing.get(root.snapshot_id)
            if now is not None and (now.manifest, now.bitmap) == (root.manifest, root.bitmap):
                slots.append(_moved(now, stored, moves))
        elif (head.manifest, head.bitmap) == (root.manifest, root.bitmap):
            new_head = _moved(head, stored, moves)
    if slots or new_head is not None:
        catalog.change(slots, head=new_head)
    return len(slots)


_Root = TypeVar("_Root", Slot, Head)


def _moved(root: _Root, stored: Stored, moves: Moves) -> _Root:
    number = moves.number(root.manifest_number)
    return replace(root, manifest_number=number, bitmap=stored.id, bitmap_number=stored.number)
