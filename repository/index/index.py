"""From record ids to places: newest records in memory, the rest in segments.

Owner of the invariant that no look-up answers with a condemned or punched number. Segments are caches: any error in
reading one discards it, and any error in writing one is logged and passed over.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.errors import BallastError, DamagedError, VolumeError
from repository.format.indexseg import RowArray
from repository.format.pack import pack_path
from repository.format.record import Place
from repository.ids import RECORDS_PER_PACK_MAX, PackIndex, RecordId, RecordNumber, pack_of
from repository.index.segment import IdBatch, Segment
from repository.packs.load import PackLoader
from repository.packs.table import KnownPack, PackTable
from repository.storage.volume import Volume

BATCH_MIN: Final = 8
"""From this many ids on, one vectorised look-up is quicker than single ones."""

_log: Final = logging.getLogger(__name__)


class Index:
    """Look-ups by id. Thread safe; methods that say so are called under the store's state lock."""

    def __init__(self, volume: Volume, table: PackTable, loader: PackLoader, state_lock: threading.Lock) -> None:
        self._volume = volume
        self._table = table
        self._loader = loader
        self._state = state_lock
        self._memory: dict[RecordId, RecordNumber] = {}
        self._condemned = BitMap64()
        self._damaged = BitMap64()
        self.segments: tuple[Segment, ...] = ()
        """Newest first. Replaced as a whole."""
        self._doubting = threading.Lock()

    # -- changes: under the state lock -------------------------------------------------------------------------

    def insert(self, record_id: RecordId, number: RecordNumber) -> None:
        """From now on `record_id` is found at `number`."""
        self._memory[record_id] = number

    def remove(self, record_id: RecordId, number: RecordNumber) -> None:
        """Forget in memory that `record_id` is at `number`."""
        if self._memory.get(record_id) == number:
            del self._memory[record_id]

    def condemn(self, numbers: BitMap64) -> None:
        """No look-up answers with these numbers again."""
        self._condemned = self._condemned | numbers

    def note_damaged(self, number: RecordNumber) -> None:
        """Nothing new is to share the record `number`; it is still found by `locate` and for reading."""
        self._damaged = self._damaged | BitMap64((number,))

    def retire(self, numbers: BitMap64) -> BitMap64:
        """Nothing new is to share these records, which are moved elsewhere. Returns those that it could before."""
        fresh = numbers - self._damaged
        self._damaged = self._damaged | fresh
        return fresh

    def reinstate(self, numbers: BitMap64) -> None:
        """These, which `retire` answered, are not moved after all."""
        self._damaged = self._damaged - numbers

    def forget_pack(self, pack: PackIndex) -> None:
        """The pack is gone: nothing needs to be known of its numbers any more."""
        numbers = BitMap64()
        numbers.add_range(pack * RECORDS_PER_PACK_MAX, (pack + 1) * RECORDS_PER_PACK_MAX)
        self._condemned = self._condemned - numbers
        self._damaged = self._damaged - numbers

    # -- look-ups ----------------------------------------------------------------------------------------------

    def shareable(self, number: RecordNumber) -> bool:
        """Whether a put may answer with `number`."""
        return number not in self._condemned and number not in self._damaged and pack_of(number) in self._table

    def condemned(self) -> BitMap64:
        """The condemned numbers of packs that still exist. Not to be changed."""
        return self._condemned

    def peek(self, record_id: RecordId) -> Place | None:
        """The place of a record that is known in memory and may be shared."""
        number = self._memory.get(record_id)
        if number is None or not self.shareable(number):
            return None
        return self._table.place(number)

    def memory_count(self) -> int:
        return len(self._memory)

    def find(self, ids: Sequence[RecordId], *, to_share: bool) -> list[Place | None]:
        """The place of each id, None where it is nowhere. With `to_share`, records known to be damaged don't count.

        Without it something refers to these ids: where one is found nowhere, the segments themselves are doubted.
        """
        answers = self._find(ids, to_share)
        if not to_share and None in answers and self._drop_rotten():
            answers = self._find(ids, to_share)
        return answers

    def _find(self, ids: Sequence[RecordId], to_share: bool) -> list[Place | None]:
        answers: list[Place | None] = [self._in_memory(record_id, to_share) for record_id in ids]
        missing = [item for item, place in enumerate(answers) if place is None]
        if not missing or not self.segments:
            return answers
        if len(missing) >= BATCH_MIN:
            sought = np.zeros(len(ids), np.bool_)
            sought[missing] = True
            missing = []
            for items, rows in self._rows_for(ids, sought, missing, to_share):
                columns = (rows["number"], rows["offset"], rows["stored"], rows["raw"])
                places = map(Place._make, zip(*(column.tolist() for column in columns), strict=True))
                for item, place in zip(items, places, strict=True):
                    answers[item] = place
        for item in missing:
            answers[item] = self._in_segments(ids[item], to_share)
        return answers

    def find_numbers(self, ids: Sequence[RecordId]) -> list[RecordNumber | None]:
        """The numbers that `find` (not to share) answers with, at less cost."""
        answers: list[RecordNumber | None] = [None] * len(ids)
        sought = np.ones(len(ids), np.bool_)
        if self._memory:
            for item, record_id in enumerate(ids):
                place = self._in_memory(record_id, to_share=False)
                if place is not None:
                    answers[item] = place.number
                    sought[item] = False
        alone: list[int] = []
        for items, rows in self._rows_for(ids, sought, alone, to_share=False):
            for item, number in zip(items, rows["number"].tolist(), strict=True):
                answers[item] = number
        alone += np.flatnonzero(sought).tolist()
        for item, place in zip(alone, self.find([ids[item] for item in alone], to_share=False), strict=True):
            answers[item] = None if place is None else place.number
        return answers

    def _rows_for(
        self, ids: Sequence[RecordId], sought: NDArray[np.bool_], alone: list[int], to_share: bool
    ) -> Iterator[tuple[list[int], RowArray]]:
        """Positions and rows of those of `ids` that are `sought` and have one row that may be answered with.

        They are sought no more, nor are those that have several rows, which go to `alone`: no older segment may answer
        for these.
        """
        batch = IdBatch(ids) if self.segments and sought.any() else None
        for segment in self.segments:
            if batch is None or not sought.any():
                break
            positions, rows, several = segment.rows_for(batch, np.flatnonzero(sought))
            sought[several] = False
            alone += several.tolist()
            if len(positions):
                there = self._there(rows["number"], to_share)
                if not there.all():
                    positions, rows = positions[there], rows[there]
                sought[positions] = False
                yield positions.tolist(), rows

    def _there(self, numbers: NDArray[np.uint64], to_share: bool) -> NDArray[np.bool_]:
        """Which of `numbers`, as a segment has them, `_best` would answer with."""
        keep = _by_pack(numbers, lambda pack: self._is_sound(pack, to_share))
        # Behind `_is_sound`, which may condemn.
        for bad in (self._condemned, self._damaged) if to_share else (self._condemned,):
            if bad:
                keep &= np.array([number not in bad for number in numbers.tolist()], np.bool_)
        return keep

    def _is_sound(self, pack: PackIndex, to_share: bool) -> bool:
        """Whether the pack is there, and all its punched numbers are condemned."""
        known = self._table.packs.get(pack)
        return known is not None and (known.stamp is None or self._vetted(known, to_share))

    def candidates(self, record_id: RecordId) -> list[Place]:
        """Every place of `record_id` that may be read, those not known as damaged first."""
        places = self._candidates(record_id)
        return self._candidates(record_id) if not places and self._drop_rotten() else places

    def copied(self, ids: Sequence[RecordId]) -> list[int]:
        """The positions of those of `ids` that may have several `candidates`: all others have one. In one look-up."""
        first: list[RecordNumber | None] = [self._memory.get(record_id) for record_id in ids]
        several: set[int] = set()
        if ids and self.segments:
            batch, everywhere = IdBatch(ids), np.arange(len(ids))
            for segment in self.segments:
                for item, places in segment.find_many(batch, everywhere):
                    for place in places:
                        if first[item] is None:
                            first[item] = place.number
                        elif first[item] != place.number:
                            several.add(item)
        return sorted(several.union(item for item, number in enumerate(first) if number is None))

    def _candidates(self, record_id: RecordId) -> list[Place]:
        number = self._memory.get(record_id)
        known = None if number is None else self._table.place(number)
        places = [] if known is None else [known]
        for segment in self.segments:
            places += segment.find(record_id)
        wanted: dict[RecordNumber, Place] = {}
        for place in places:
            if self._exists(place.number):
                wanted.setdefault(place.number, place)
        return sorted(wanted.values(), key=lambda place: place.number in self._damaged)

    def _exists(self, number: RecordNumber) -> bool:
        return number not in self._condemned and pack_of(number) in self._table

    def _in_memory(self, record_id: RecordId, to_share: bool) -> Place | None:
        number = self._memory.get(record_id)
        if number is None:
            return None
        if self.shareable(number) if to_share else self._exists(number):
            return self._table.place(number)
        return None

    def _in_segments(self, record_id: RecordId, to_share: bool) -> Place | None:
        for segment in self.segments:
            place = self._best(segment.find(record_id), to_share)
            if place is not None:
                return place
        return None

    def _best(self, places: list[Place], to_share: bool) -> Place | None:
        """The highest place that exists, is not condemned, and whose pack has no hole that the segment misses."""
        for place in sorted(places, reverse=True) if len(places) > 1 else places:
            number = place.number
            pack = pack_of(number)
            known = self._table.packs.get(pack)
            if known is None or number in self._condemned:
                continue
            if known.stamp is not None and (not self._vetted(known, to_share) or number in self._condemned):
                continue
            if not to_share or number not in self._damaged:
                return place
        return None

    def _vetted(self, known: KnownPack, to_share: bool) -> bool:
        """Make sure that the numbers of a pack which were punched after the segment was written are condemned."""
        pack = known.index
        try:
            stat = self._volume.stat(pack_path(pack))
            gone = BitMap64()
            if known.stamp != (stat.st_mtime_ns, stat.st_blocks):
                directory = self._loader.directory(pack, check_all_headers=True)
                present = BitMap64(directory.numbers[directory.kind != 0].tolist())
                gone.add_range(pack * RECORDS_PER_PACK_MAX, (pack + 1) * RECORDS_PER_PACK_MAX)
                gone -= present
        except (DamagedError, VolumeError) as error:
            _log.warning("pack.not_examined", extra={"pack": pack, "reason": str(error)})
            return not to_share
        with self._state:
            if gone:
                self.condemn(gone)
            known.stamp = None
        return True

    # -- segments ----------------------------------------------------------------------------------------------

    def wanted(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `numbers` a new segment should hold: not condemned, of a pack that exists."""
        if not len(numbers):
            return np.zeros(0, np.bool_)
        keep = _by_pack(numbers, self._table.__contains__)
        condemned = self._condemned
        if condemned:
            candidates = np.flatnonzero(keep)
            dead = [number in condemned for number in numbers[candidates].tolist()]
            keep[candidates[np.array(dead, np.bool_)]] = False
        return keep

    def _drop_rotten(self) -> bool:
        """Read every segment whole that was not yet, and let go of those that do not hold; whether there was one.

        A segment's columns are mapped, not read, when it is opened: rot in them hides records that are in the packs.
        """
        with self._doubting:
            rotten = False
            for segment in self.segments:
                if not segment.verified:
                    try:
                        segment.verify()
                    except DamagedError as error:
                        self.discard(segment, error)
                        rotten = True
            return rotten

    def discard(self, segment: Segment, reason: BallastError) -> None:
        """Stop using a segment that is damaged; the packs that it covered are read again."""
        _log.warning("index.segment_discarded", extra={"path": segment.path, "reason": str(reason)})
        others = [other for other in self.segments if other is not segment]
        elsewhere = {item.pack for other in others for item in other.covered}
        for item in segment.covered:
            if item.pack not in elsewhere and item.pack in self._table:
                loaded = self._loader.load(item.pack, seal=False)
                if loaded is not None:
                    with self._state:
                        self._table.add(loaded)
                        self.insert_columns(item.pack)
        self.segments = tuple(others)

    def insert_columns(self, pack: PackIndex) -> None:
        """Know every record of a pack whose columns are in memory. Under the state lock."""
        known = self._table.packs[pack]
        columns = known.columns
        if columns is None:
            return
        directory = columns.directory()
        for position in np.flatnonzero(directory.kind).tolist():
            self._memory[directory.id_at(position)] = directory.place(position).number
        for position in known.unsure:
            self.note_damaged(directory.place(position).number)


def _by_pack(numbers: NDArray[np.uint64], answer: Callable[[PackIndex], bool]) -> NDArray[np.bool_]:
    """What `answer` says of the pack of each of `numbers` (at least one); it is asked once a pack."""
    packs = numbers >> np.uint64(16)
    distinct = np.sort(packs)  # np.unique and np.isin would load numpy.ma, which costs more than all of this
    distinct = distinct[np.append(True, distinct[1:] != distinct[:-1])]
    answers = np.array([answer(pack) for pack in distinct.tolist()], np.bool_)
    found: NDArray[np.bool_] = answers[distinct.searchsorted(packs)]
    return found
