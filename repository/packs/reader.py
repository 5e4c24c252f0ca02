"""Reading packs: a bounded set of open files, verified records, directories of sealed packs."""

import errno
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from repository.codec import Codec
from repository.errors import DamagedError, MissingRecordError, VolumeError
from repository.format.pack import (
    TRAILER_BYTES,
    PackDirectory,
    Trailer,
    decode_directory,
    decode_trailer,
    pack_path,
)
from repository.format.record import Place, Record, RecordKind
from repository.ids import PackIndex, RecordId, pack_of, position_of
from repository.storage.volume import FileHandle, Volume
from repository.units import KIB, MIB

OPEN_FILES_MAX: Final = 128
"""Pack files kept open for reading: 8 GiB of packs, and far below the usual limit of 1,024 descriptors."""

GAP_BYTES: Final = 32 * KIB
"""Bytes between two records that are rather read and thrown away than passed over by another call."""
RUN_BYTES: Final = 1 * MIB
"""A run ends with the first record that begins so far behind its first one."""


def runs_of(places: Sequence[Place | None]) -> list[list[int]]:
    """The positions of `places` in groups that one read brings in: near each other in one pack, by rising offset."""
    known = [(place.number, item) for item, place in enumerate(places) if place is not None]
    known.sort()
    runs: list[list[int]] = []
    pack = end = limit = -1
    for number, item in known:
        place = places[item]
        assert place is not None
        if pack_of(number) != pack or not end <= place.offset <= end + GAP_BYTES or place.offset > limit:
            runs.append([])
            pack, limit = pack_of(number), place.offset + RUN_BYTES
        runs[-1].append(item)
        end = place.offset + place.stored_length
    return runs


class PackReader:
    """Reads records by their place. Thread safe: a file that is dropped closes when its last reader is done."""

    def __init__(self, volume: Volume, codec: Codec) -> None:
        self._volume = volume
        self._codec = codec
        self._lock = threading.Lock()
        self._files: OrderedDict[PackIndex, FileHandle] = OrderedDict()

    def file(self, pack: PackIndex) -> FileHandle:
        """The open file of `pack`. Raises MissingRecordError where there is no such pack."""
        with self._lock:
            handle = self._files.get(pack)
            if handle is not None:
                self._files.move_to_end(pack)
                return handle
        try:
            handle = self._volume.open(pack_path(pack))
        except VolumeError as error:
            if error.errno == errno.ENOENT:
                raise MissingRecordError(f"{pack_path(pack)} is missing.") from error
            raise
        with self._lock:
            self._files[pack] = handle
            if len(self._files) > OPEN_FILES_MAX:
                self._files.popitem(last=False)
        return handle

    def forget(self, pack: PackIndex) -> None:
        """Let go of the file of `pack`, which is about to be unlinked."""
        with self._lock:
            self._files.pop(pack, None)

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def read(self, place: Place, record_id: RecordId | None) -> Record:
        """The record at `place`, verified; it must have `record_id` where that is given.

        Raises DamagedError naming the place, MissingRecordError if the pack is gone, VolumeError.
        """
        pack = pack_of(place.number)
        return self._checked(self.file(pack).pread(place.stored_length, place.offset), pack, place, record_id)

    def read_run(self, places: Sequence[Place], ids: Sequence[RecordId]) -> list[Record]:
        """As `read`, of records that lie near each other in one pack, by rising offset: one call to the volume."""
        pack, start = pack_of(places[0].number), places[0].offset
        buffer = memoryview(self.file(pack).pread(places[-1].offset + places[-1].stored_length - start, start))
        return [
            self._checked(buffer[(at := place.offset - start) : at + place.stored_length], pack, place, record_id)
            for place, record_id in zip(places, ids, strict=True)
        ]

    def prefetch(self, places: Sequence[Place | None]) -> None:
        """Have the kernel read these records meanwhile. What cannot be read is for those who do read it."""
        for run in runs_of(places):
            first, last = places[run[0]], places[run[-1]]
            assert first is not None and last is not None
            with suppress(MissingRecordError, VolumeError):
                file = self.file(pack_of(first.number))
                file.will_need(first.offset, last.offset + last.stored_length - first.offset)

    def _checked(self, buffer: bytes | memoryview, pack: PackIndex, place: Place, record_id: RecordId | None) -> Record:
        try:
            header, record = self._codec.decode(buffer, pack, place.offset)
            if record_id is not None and header.id != record_id:
                raise DamagedError("another record lies here")
            if header.position != position_of(place.number) and header.kind != RecordKind.PACK_DIRECTORY:
                raise DamagedError("a record of another position lies here")
        except DamagedError as error:
            raise DamagedError(f"{pack_path(pack)} at byte {place.offset}: {error}.") from error
        return record


def read_trailer(handle: FileHandle, seed: int, pack: PackIndex) -> Trailer | None:
    """The trailer at the end of an open pack file; None where the pack is not sealed, or its end is damaged.

    Raises VolumeError: a pack whose end cannot be read now must not be taken for one that was never sealed.
    """
    size = handle.size()
    if size < TRAILER_BYTES:
        return None
    trailer = decode_trailer(handle.pread(TRAILER_BYTES, size - TRAILER_BYTES), seed, pack)
    if trailer is None or trailer.directory_offset + trailer.directory_stored_length + TRAILER_BYTES != size:
        return None
    return trailer


def read_directory(handle: FileHandle, codec: Codec, seed: int, pack: PackIndex) -> PackDirectory | None:
    """The directory at the end of an open pack file; None where no trailer or directory holds. Raises VolumeError."""
    trailer = read_trailer(handle, seed, pack)
    if trailer is None:
        return None
    buffer = handle.pread(trailer.directory_stored_length, trailer.directory_offset)
    try:
        _, record = codec.decode(buffer, pack, trailer.directory_offset)
        if record.kind is not RecordKind.PACK_DIRECTORY:
            return None
        directory = decode_directory(record.payload, pack)
    except DamagedError:
        return None
    return directory if len(directory) == trailer.rows else None
