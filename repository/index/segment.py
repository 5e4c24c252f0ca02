"""One index segment, mapped read-only."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from repository.errors import DamagedError
from repository.format.indexseg import (
    KEY_BYTES,
    KEY_TYPE,
    PACK_TYPE,
    ROW_BYTES,
    ROW_TYPE,
    SEGMENT_HEADER_BYTES,
    CoveredPack,
    KeyArray,
    RowArray,
    checks_of,
    decode_covered,
    decode_segment_header,
    key_of,
    keys_of,
    place_in_row,
    rests_of,
    segment_path,
)
from repository.format.record import Place
from repository.ids import RECORD_ID_BYTES, RecordId
from repository.index.filter import Filter
from repository.storage.volume import Volume


class IdBatch:
    """Ids to be looked up together, and the columns of them that every segment compares."""

    __slots__ = ("ids", "keys", "rests", "second_words")

    def __init__(self, ids: Sequence[RecordId]) -> None:
        table = np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), RECORD_ID_BYTES)
        self.ids: Final = ids
        self.keys: Final[KeyArray] = keys_of(table)
        self.rests: Final[KeyArray] = np.ascontiguousarray(table[:, KEY_BYTES:]).view(KEY_TYPE).reshape(len(ids), -1)
        self.second_words: Final[KeyArray] = self.rests[:, 0]


class Segment:
    """Look-ups in one immutable segment. Thread safe. The filter is in memory, keys and rows are mapped."""

    def __init__(self, volume: Volume, sequence: int, repository_id: bytes) -> None:
        """Open a segment and check its header, filter and pack table. Raises DamagedError, VolumeError."""
        self.sequence: Final = sequence
        self.path: Final = segment_path(sequence)
        with volume.open(self.path) as handle:
            self.header: Final = decode_segment_header(handle.pread(SEGMENT_HEADER_BYTES, 0))
            header = self.header
            if header.repository_id != repository_id or handle.size() != header.total_bytes:
                raise DamagedError(f"{self.path} is of another repository, or cut off")
            filter_content = handle.pread(header.filter_bytes, header.filter_offset)
            table = handle.pread(header.pack_count * PACK_TYPE.itemsize, header.packs_offset)
            if (
                xxhash.xxh3_64_intdigest(filter_content) != header.filter_xxh3
                or xxhash.xxh3_64_intdigest(table) != header.packs_xxh3
            ):
                raise DamagedError(f"{self.path}: a checksum does not hold")
            self.covered: Final[list[CoveredPack]] = decode_covered(table)
            self._filter = Filter(filter_content)
            self._map: Final = handle.map_for_reading()
        self.keys: Final[KeyArray] = np.frombuffer(self._map, KEY_TYPE, header.row_count, header.keys_offset)
        self.rows: Final[RowArray] = np.frombuffer(self._map, ROW_TYPE, header.row_count, header.rows_offset)
        self._sorted: Final = self.keys.astype("=u8", copy=False).data
        """The keys again, for single look-ups: a number out of an array costs ten times one out of a view."""
        self.verified = False
        """Whether keys and rows were read whole since this was opened, and held."""

    def __len__(self) -> int:
        return self.header.row_count

    def find(self, record_id: RecordId) -> list[Place]:
        """Every place of `record_id` in this segment; rows whose check does not hold are passed over."""
        if not self._filter.may_hold(record_id):
            return []
        return self._rows_at(bisect_left(self._sorted, key_of(record_id)), record_id)

    def find_many(self, ids: IdBatch, wanted: NDArray[np.intp]) -> list[tuple[int, list[Place]]]:
        """For those of `ids` at the positions `wanted` that are here: (position, places)."""
        wanted, at, rows, sound = self._matches(ids, wanted)
        columns = (rows["number"], rows["offset"], rows["stored"], rows["raw"])
        places = map(Place._make, zip(*(column.tolist() for column in columns), strict=True))
        found: list[tuple[int, list[Place]]] = []
        for position, row, one, place in zip(wanted.tolist(), at.tolist(), sound.tolist(), places, strict=True):
            all_places = [place] if one else self._rows_at(row, ids.ids[position])
            if all_places:
                found.append((position, all_places))
        return found

    def rows_for(self, ids: IdBatch, wanted: NDArray[np.intp]) -> tuple[NDArray[np.intp], RowArray, NDArray[np.intp]]:
        """As `find_many`, in columns: the positions of those with one place and their rows; the positions of those that
        have to be looked up one by one."""
        wanted, _, rows, sound = self._matches(ids, wanted)
        if sound.all():
            return wanted, rows, wanted[:0]
        return wanted[sound], rows[sound], wanted[~sound]

    def _matches(
        self, ids: IdBatch, wanted: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], RowArray, NDArray[np.bool_]]:
        """Whose keys are here: their positions, the first row of each, where that lies, and whether it is the only one
        with that key and holds for that id."""
        keys = ids.keys[wanted]
        likely = self._filter.which_may_hold(keys, ids.second_words[wanted])
        wanted, keys = wanted[likely], keys[likely]
        at = self.keys.searchsorted(keys)
        wanted, keys, at = wanted[at < len(self.keys)], keys[at < len(self.keys)], at[at < len(self.keys)]
        here = self.keys[at] == keys
        wanted, keys, at = wanted[here], keys[here], at[here]
        rows = self.rows[at]
        if not len(wanted):
            return wanted, at, rows, here[:0]
        # Single rows that hold are answered from the columns; equal keys and rows that do not hold, one by one.
        sound = (checks_of(keys, rows) == rows["check"]) & (rests_of(rows) == ids.rests[wanted]).all(axis=1)
        following = np.minimum(at + 1, len(self.keys) - 1)
        sound &= (following == at) | (self.keys[following] != keys)
        return wanted, at, rows, sound

    def _rows_at(self, row: int, record_id: RecordId) -> list[Place]:
        key = key_of(record_id)
        places = []
        while row < len(self._sorted) and self._sorted[row] == key:
            start = self.header.rows_offset + row * ROW_BYTES
            place = place_in_row(self._map[start : start + ROW_BYTES], record_id)
            if place is not None:
                places.append(place)
            row += 1
        return places

    def verify(self) -> None:
        """Read the whole segment and check its columns. Raises DamagedError."""
        if (
            xxhash.xxh3_64_intdigest(self.keys.data) != self.header.keys_xxh3
            or xxhash.xxh3_64_intdigest(self.rows.view(np.uint8).data) != self.header.rows_xxh3
        ):
            raise DamagedError(f"{self.path}: a checksum does not hold")
        self.verified = True
