"""Verifying snapshots: every tree can be read to its end, and every bitmap covers what its tree needs."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from pyroaring import BitMap64

from repository.bitmaps import BitmapReader
from repository.check.findings import Findings
from repository.counting import ReachCounter
from repository.errors import BallastError, DamagedError
from repository.format.catalog import Head, Slot, SlotState
from repository.format.record import Record
from repository.ids import NO_ID, RecordId, RecordNumber, pack_of, position_of
from repository.reach import split_references
from repository.roots import roots_by_source

if TYPE_CHECKING:
    from repository.repo import Repository

BATCH: Final = 64
"""Records read in one call: a few MiB of tree segments."""
HEALED_MAX: Final = 10_000
"""Records looked at for an earlier copy; a bitmap that lacks more is wrong anyhow."""
PLACES_MAX: Final = 20
"""Damaged records named for one snapshot; the rest are counted."""


class TreeCheck:
    """Walks every root once, in time order: what two roots share is read once."""

    def __init__(self, repository: "Repository", findings: Findings) -> None:
        self._store = repository.store
        self._catalog = repository.catalog
        self._findings = findings
        self._bitmaps = BitmapReader(repository.store)
        self.lost: set[RecordId] = set()
        """Records that a tree needs and that cannot be read."""

    def check_all(self) -> int:
        """Check all snapshots and the head; returns how many snapshots."""
        for run in roots_by_source(self._catalog).values():
            self._check_run([root for root in run if root.manifest != NO_ID])
        return len(self._catalog.slots())

    def _check_run(self, run: Sequence[Slot | Head]) -> None:
        counter: ReachCounter | None = None
        standing: RecordId | None = None
        for root in run:
            try:
                if counter is None or standing is None:
                    counter = ReachCounter(self._store, refers=split_references)
                    counter.add([root.manifest])
                else:
                    counter.advance([standing], [root.manifest])
            except BallastError:
                self._name_damage(root)
                counter, standing = None, None
                continue
            standing = root.manifest
            self._check_bitmap(root, counter.numbers)

    def _check_bitmap(self, root: Slot | Head, needed: BitMap64) -> None:
        if root.bitmap == NO_ID:
            self._findings.warning(_name(root), "it has no bitmap; a collection walks it")
            return
        try:
            bitmap = self._bitmaps.read(root.bitmap, root=root.manifest)
        except DamagedError as error:
            self._findings.warning(_name(root), f"its bitmap cannot be read, a collection walks it: {error}")
            return
        missing = needed - bitmap.numbers - BitMap64((root.manifest_number,))
        missing -= self._healed(missing, bitmap.numbers)
        if missing:
            self._findings.error(
                _name(root),
                f"its bitmap lacks {len(missing)} records that it needs; the first is {missing.min()}",
            )
        elif root.exact and len(bitmap.numbers) > len(needed | BitMap64((root.manifest_number,))):
            self._findings.warning(_name(root), "its bitmap holds more than it needs, and says that it is exact")

    def _healed(self, missing: BitMap64, numbers: BitMap64) -> BitMap64:
        """Those of `missing` of which `numbers` has another copy.

        A later one where damage was healed (collections keep it along); an earlier one that was given up, too small to
        give a block back, and that a later process takes for good again.
        """
        found = BitMap64()
        for number in islice(missing, HEALED_MAX):
            pack, position = pack_of(RecordNumber(number)), position_of(RecordNumber(number))
            copies = self._store.copies(self._store.directory(pack).id_at(position))
            if any(copy.number in numbers for copy in copies):
                found.add(number)
        return found

    def _name_damage(self, root: Slot | Head) -> None:
        """Walk past what cannot be read, and name each place."""
        seen: set[RecordId] = {root.manifest}
        waiting = [root.manifest]
        damaged = 0
        while waiting:
            batch, waiting = waiting[-BATCH:], waiting[:-BATCH]
            for record_id, found in self._read(batch):
                if isinstance(found, BallastError):
                    damaged += 1
                    self.lost.add(record_id)
                    if damaged <= PLACES_MAX:
                        self._findings.error(_name(root), f"record {record_id.hex()}: {found}")
                    continue
                try:
                    refers = split_references(found.kind, found.payload, record_id)
                except DamagedError as error:
                    damaged += 1
                    self.lost.add(record_id)
                    if damaged <= PLACES_MAX:
                        self._findings.error(_name(root), str(error))
                    continue
                damaged += self._name_missing(root, [one for one in refers.leaves if one not in seen], damaged)
                seen.update(refers.leaves)
                waiting += [one for one in dict.fromkeys(refers.nodes) if one not in seen]
                seen.update(refers.nodes)
        if damaged > PLACES_MAX:
            self._findings.error(_name(root), f"{damaged - PLACES_MAX} further records are missing or damaged")

    def _name_missing(self, root: Slot | Head, leaves: Sequence[RecordId], before: int) -> int:
        missing = [one for one, place in zip(leaves, self._store.locate(leaves), strict=True) if place is None]
        self.lost.update(missing)
        for record_id in dict.fromkeys(missing[: max(0, PLACES_MAX - before)]):
            self._findings.error(_name(root), f"record {record_id.hex()} is in no pack")
        return len(missing)

    def _read(self, ids: Sequence[RecordId]) -> Iterable[tuple[RecordId, Record | BallastError]]:
        try:
            yield from zip(ids, self._store.read_many(ids), strict=True)
        except BallastError:
            for record_id in ids:
                try:
                    yield record_id, self._store.read(record_id)
                except BallastError as error:
                    yield record_id, error


def _name(root: Slot | Head) -> str:
    match root:
        case Head():
            return "live"
        case Slot(state=SlotState.TRASH, name=name):
            return f"deleted snapshot '{name}'"
        case Slot(name=name):
            return f"snapshot '{name}'"
