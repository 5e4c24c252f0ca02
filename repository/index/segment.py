"""One index segment, mapped read-only."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from repository.errors import DamagedError
from repository.format.indexseg import (
    KEY_TYPE,
    PACK_TYPE,
    ROW_BYTES,
    ROW_TYPE,
    SEGMENT_HEADER_BYTES,
    CoveredPack,
    KeyArray,
    RowArray,
    decode_covered,
    decode_segment_header,
    key_of,
    place_in_row,
    segment_path,
)
from repository.format.record import Place
from repository.ids import RecordId
from repository.index.filter import Filter
from repository.storage.volume import Volume


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
        self.verified = False
        """Whether keys and rows were read whole since this was opened, and held."""

    def __len__(self) -> int:
        return self.header.row_count

    def find(self, record_id: RecordId) -> list[Place]:
        """Every place of `record_id` in this segment; rows whose check does not hold are passed over."""
        if not self._filter.may_hold(record_id):
            return []
        key = np.uint64(key_of(record_id))
        return self._rows_at(int(self.keys.searchsorted(key)), record_id)

    def find_many(
        self, ids: Sequence[RecordId], keys: KeyArray, second_words: KeyArray, wanted: NDArray[np.intp]
    ) -> list[tuple[int, list[Place]]]:
        """For those of `ids` at the positions `wanted` that are here: (position, places)."""
        likely = wanted[self._filter.which_may_hold(keys[wanted], second_words[wanted])]
        if not len(likely):
            return []
        found = []
        at = self.keys.searchsorted(keys[likely])
        for position, row in zip(likely.tolist(), at.tolist(), strict=True):
            places = self._rows_at(row, ids[position])
            if places:
                found.append((position, places))
        return found

    def _rows_at(self, row: int, record_id: RecordId) -> list[Place]:
        key = key_of(record_id)
        places = []
        while row < len(self.keys) and self.keys[row] == key:
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
