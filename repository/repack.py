"""Repacking, for volumes that cannot punch holes: what is needed of mostly dead packs is copied, then they can go.

Owner of the invariant *no root names a place that its record has left, once the record's old pack may go*. Order:
records and new bitmaps are put and synced; slots and head are overwritten, durable; only then the old packs are wholly
dead, and a collection frees them as it frees any (condemned, intent, unlinked), leaving those that somebody has come to
need meanwhile. A crash before the slots leaves copies that nobody names yet; the next repacking takes them up again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.catalog import Catalog
from repository.errors import NoSpaceError
from repository.format.pack import DIRECTORY_ROW_BYTES, PackDirectory
from repository.format.record import RecordKind
from repository.ids import PackIndex, number_of
from repository.leases import Lease
from repository.ledger import Claim
from repository.packs.spare import spare_bytes
from repository.packs.table import PackInfo
from repository.policy.collect import WINDOW_NS, Safety, live_rows, pack_numbers
from repository.policy.repack import PackLoad, choose_round
from repository.ports import Clock
from repository.readdressing import Moves, overwrite, readdress, readdress_bytes
from repository.roots import all_kept, journal_numbers
from repository.snapshots import Snapshots
from repository.storage.volume import Volume
from repository.store import RecordStore
from repository.units import MIB

log = logging.getLogger(__name__)

COPY_BATCH_BYTES: Final = 8 * MIB
"""Records read and put in one call: in memory at once."""
_STREAMS: Final = 3
"""Kinds of packs that copies may go to: for each a pack may be begun, with room that the ledger doesn't count."""
_COPIES_PARTS, _PARTS = 3, 4
"""So much of what is left of the headroom goes to copies; the rest to framing, and a place for each record."""


class _Copied(NamedTuple):
    """What one round cost: the copies, and what was allocated, as they needed segments that were not there yet."""

    stored_bytes: int
    allocated_bytes: int


class Repacker:
    """Repacks one repository. Only a collection calls it, one at a time; others put, publish and delete meanwhile."""

    def __init__(
        self, *, volume: Volume, store: RecordStore, catalog: Catalog, snapshots: Snapshots, clock: Clock
    ) -> None:
        self._volume = volume
        self._store = store
        self._catalog = catalog
        self._snapshots = snapshots
        self._clock = clock

    def repack(
        self,
        enough_bytes: int | None,
        *,
        safety: Safety,
        free: Callable[[], int],
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Empty mostly dead packs round by round and have `free` remove them, until `enough_bytes` came free.

        `free` collects what is wholly dead and answers with its bytes. Returns the bytes gained: what copies take is
        taken off. Does as much as there is room for: the reserve may be lent to it. FULL leaves packs
        alone that are younger than the window. Raises DamagedError, SyncFailedError, VolumeError.
        """
        gained = returned = 0
        tried: set[PackIndex] = set()
        while (enough_bytes is None or returned < enough_bytes) and not (stop is not None and stop()):
            missing = None if enough_bytes is None else enough_bytes - returned
            copied = self._empty(missing, safety, tried)
            if copied is None:
                break
            freed = free()
            gained += max(0, freed - copied.stored_bytes)
            returned += freed - copied.allocated_bytes  # segments that were begun for copies are not the volume's
            self._store.headroom.refill(allocate=True)
            log.info("repack.round", extra={"copied_bytes": copied.stored_bytes, "freed_bytes": freed})
        return gained

    def _loads(self, kept: BitMap64, safety: Safety, infos: Iterable[PackInfo]) -> list[PackLoad]:
        """Those of `infos` that could be emptied, worth it or not, when `kept` is what roots and leases need."""
        held = self._store.leased() | journal_numbers(self._store, self._catalog.head())
        now_ns = self._clock.now_ns()
        loads: list[PackLoad] = []
        for info in infos:
            numbers = kept & pack_numbers(info.index)
            if not info.sealed or not numbers or len(numbers) == info.records or numbers & held:
                continue
            if safety is Safety.FULL and now_ns - info.written_ns < WINDOW_NS:
                continue
            load = self._load(info, kept)
            if load is not None:
                loads.append(load)
        return loads

    def _load(self, info: PackInfo, kept: BitMap64) -> PackLoad | None:
        directory = self._store.directory(info.index)
        alive = live_rows(kept, info.index, len(directory))
        if (directory.kind[alive] == 0).any():
            return None  # what is damaged may be healed yet, as long as its place is named
        rows = _rows(directory, alive)
        copied = int(directory.stored[rows].sum(dtype=np.int64)) + len(rows) * DIRECTORY_ROW_BYTES
        return PackLoad(info.index, info.allocated_bytes, copied, len(rows))

    # --- one round -----------------------------------------------------------------------------------------------

    def _empty(self, enough_bytes: int | None, safety: Safety, tried: set[PackIndex]) -> "_Copied | None":
        """Move everything needed out of some packs; None where there are none, or no room."""
        kept = all_kept(self._store, self._catalog)
        infos = {info.index: info for info in self._store.packs() if info.index not in tried}
        loads = self._loads(kept, safety, infos.values())
        planned, bitmaps_bytes = self._affordable(loads, enough_bytes)
        tried.update(load.pack for load in planned)
        retired: dict[PackIndex, BitMap64] = {}
        for load in planned:
            numbers = self._store.retire(pack_numbers(load.pack))
            if numbers is not None:
                retired[load.pack] = numbers
        # Only now nobody can come to need more of these packs than somebody does.
        kept = all_kept(self._store, self._catalog)
        chosen = self._loads(kept, safety, [infos[pack] for pack in retired])
        try:
            if not chosen:
                return None
            with (
                self._store.without_climbing(),
                self._store.without_guard() as growth,
                self._store.lease() as lease,
            ):
                stored_bytes = self._move(chosen, bitmaps_bytes, kept, lease)
                return _Copied(stored_bytes, growth.allocated_bytes)
        except NoSpaceError as error:
            log.info("repack.no_room", extra={"error": str(error), "packs": len(chosen)})
            chosen = []
            return None
        finally:
            for pack in retired.keys() - {load.pack for load in chosen}:
                self._store.reinstate(retired[pack])

    def _affordable(self, loads: Sequence[PackLoad], enough_bytes: int | None) -> tuple[list[PackLoad], int]:
        """The packs of a round for which there is room, new bitmaps included, and what these can take at most."""
        room = max(self._room_bytes(), self._headroom_bytes())
        chosen = choose_round(loads, room_bytes=room, enough_bytes=enough_bytes)
        while chosen:
            left = BitMap64.union(*[pack_numbers(load.pack) for load in chosen])
            bitmaps = readdress_bytes(self._store, self._catalog, left)
            copied = sum(load.copy_bytes for load in chosen) + bitmaps
            if copied <= room and copied < sum(load.allocated_bytes for load in chosen) - copied:
                return chosen, bitmaps
            chosen = chosen[: len(chosen) // 2]
        return [], 0

    def _room_bytes(self) -> int:
        """What can be copied without meeting the end of the volume."""
        figures = self._volume.statvfs()
        config = self._store.config
        besides = _STREAMS * (max(config.segment_bytes, spare_bytes(config)) + config.chunker.max_bytes)
        return max(0, figures.f_bavail * figures.f_frsize - besides)

    def _headroom_bytes(self) -> int:
        """What can be copied when the volume has nothing left at all."""
        headroom = self._store.headroom
        return max(0, headroom.left_bytes() - headroom.kept_bytes) * _COPIES_PARTS // _PARTS

    def _move(self, chosen: Sequence[PackLoad], bitmaps_bytes: int, kept: BitMap64, lease: Lease) -> int:
        nbytes = sum(load.copy_bytes for load in chosen) + bitmaps_bytes
        claim = self._claim(nbytes, sum(load.records for load in chosen))
        try:
            moves, copied = self._copy([load.pack for load in chosen], kept, lease, claim)
            made = readdress(self._store, self._catalog, moves, lease, claim)
        finally:
            self._store.forfeit(claim)
        self._store.sync()
        with self._snapshots.lock:
            overwrite(self._catalog, made, moves)
            self._snapshots.moves += 1
        return copied

    def _claim(self, nbytes: int, records: int) -> Claim:
        """Room on the volume; where there is none, the headroom, which has it back from what comes free."""
        if self._room_bytes() >= nbytes:
            return self._store.claim(nbytes, records)
        claim = self._store.headroom.take(nbytes, records)
        if claim is None:
            raise NoSpaceError("There is no room to move records to.", nbytes)
        return claim

    def _copy(self, packs: Sequence[PackIndex], kept: BitMap64, lease: Lease, claim: Claim) -> tuple[Moves, int]:
        """Put every needed record of `packs` anew; what is elsewhere already is taken from there."""
        old: list[int] = []
        new: list[int] = []
        left, renewed = BitMap64(), BitMap64()
        copied = 0
        for pack in packs:
            directory = self._store.directory(pack)
            rows = _rows(directory, live_rows(kept, pack, len(directory)))
            for kind, batch in _batches(directory, rows):
                records = self._store.read_many([directory.id_at(row) for row in batch])
                stored = self._store.put(kind, [record.payload for record in records], lease, claim)
                old += [number_of(pack, row) for row in batch]
                new += [one.number for one in stored]
                copied += sum(one.stored_length + DIRECTORY_ROW_BYTES for one in stored if one.new)
            left |= pack_numbers(pack)
            renewed.update(number_of(pack, row) for row in np.flatnonzero(directory.kind == RecordKind.BITMAP).tolist())
        order = np.argsort(np.array(old, np.uint64))
        return Moves(np.array(old, np.uint64)[order], np.array(new, np.uint64)[order], left, renewed), copied


def _rows(directory: PackDirectory, alive: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Positions of the records to copy: all that are needed but bitmaps, which are made anew."""
    return np.flatnonzero(alive & (directory.kind != RecordKind.BITMAP))


def _batches(directory: PackDirectory, rows: NDArray[np.intp]) -> Iterator[tuple[RecordKind, list[int]]]:
    """`rows` by kind, in their order, COPY_BATCH_BYTES of plain bytes at a time."""
    for kind in np.unique(directory.kind[rows]).tolist():
        batch: list[int] = []
        nbytes = 0
        for row in rows[directory.kind[rows] == kind].tolist():
            batch.append(row)
            nbytes += int(directory.raw[row])
            if nbytes >= COPY_BATCH_BYTES:
                yield RecordKind(kind), batch
                batch, nbytes = [], 0
        if batch:
            yield RecordKind(kind), batch
