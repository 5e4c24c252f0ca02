"""Whole packs of a record store, for the collector and check: what there is, what is condemned, what goes.

Owner of the invariant that nothing leased is condemned or retired: both happen under the state lock, under which
look-up results enter their lease too.
"""

import threading
from collections.abc import Iterable

from pyroaring import BitMap64

from repository.format.pack import PackDirectory
from repository.ids import PackIndex
from repository.index.index import Index
from repository.leases import LeaseTable
from repository.packs.openpacks import OpenPacks
from repository.packs.sparing import SpareGrower
from repository.packs.table import PackInfo
from repository.shelf import PackShelf


class PackKeeping:
    """The base of `RecordStore`, which makes its parts. Thread safe."""

    _state: threading.Lock
    _leases: LeaseTable
    _index: Index
    _shelf: PackShelf
    _packs: OpenPacks
    _grower: SpareGrower

    def check_writable(self) -> None:
        """Raises ReadOnlyError where nothing may be changed."""
        raise NotImplementedError

    def packs(self) -> list[PackInfo]:
        """Every pack but the spare one, by index; one `stat` each. Raises VolumeError."""
        spare = self._spare_index()
        return [info for info in self._shelf.packs() if info.index != spare]

    def pack_indexes(self) -> frozenset[PackIndex]:
        """Which packs there are, without asking the volume."""
        spare = self._spare_index()
        return self._shelf.indexes() - (frozenset() if spare is None else {spare})

    def spare_pack(self) -> PackIndex | None:
        """The pack that is allocated and holds no record, for when there is no other room."""
        return self._spare_index()

    def spare_allocated_bytes(self) -> int:
        """Blocks of the spare pack and of the stub behind it, in bytes. Raises VolumeError."""
        return self._grower.spare_allocated_bytes()

    def _spare_index(self) -> PackIndex | None:
        with self._state:
            spare = self._packs.spare
            return None if spare is None else spare.pack

    def pack_info(self, pack: PackIndex) -> PackInfo | None:
        """One pack, by one `stat`; None where it is gone. Raises VolumeError."""
        return self._shelf.info(pack)

    def directory(self, pack: PackIndex) -> PackDirectory:
        """The columns of one pack; rows of records that are void, torn or punched have kind 0.

        Raises MissingRecordError for an unknown pack, VolumeError.
        """
        return self._shelf.directory(pack)

    def condemn(self, numbers: BitMap64) -> BitMap64:
        """No look-up answers with these numbers again. Returns those condemned: `numbers` without leased ones."""
        with self._state:
            condemned = numbers - self._leases.union()
            self._index.condemn(condemned)
        return condemned

    def retire(self, numbers: BitMap64) -> BitMap64 | None:
        """No put answers with these numbers again, while they are read as before: a put of the same bytes stores them
        anew. Forgotten by the next process.

        Returns what `reinstate` takes; None, and nothing is retired, where a lease holds one of them.
        """
        with self._state:
            return None if self._leases.union().intersect(numbers) else self._index.retire(numbers)

    def reinstate(self, retired: BitMap64) -> None:
        """What was retired stays where it is, and may be shared again."""
        with self._state:
            self._index.reinstate(retired)

    def drop_pack(self, pack: PackIndex) -> None:
        """Remove a sealed pack, all of whose records are condemned. Does nothing where it is gone already.

        The newest pack keeps its header, and goes later: its index must never be given again. Raises VolumeError.
        """
        self.check_writable()
        self._shelf.drop(pack)

    def punch(self, pack: PackIndex, ranges: Iterable[tuple[int, int]]) -> None:
        """Punch (offset, length) ranges out of a sealed pack, whose records there are condemned; durable on return.

        The pack is marked as punched first. Raises MissingRecordError, VolumeError, SyncFailedError.
        """
        self.check_writable()
        self._shelf.punch(pack, list(ranges))
