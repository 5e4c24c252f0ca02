"""Finding the records of a pack without its directory: after a crash, or past damage."""

from typing import Final, NamedTuple

import numpy as np

from repository.codec import Codec
from repository.errors import DamagedError, VolumeError
from repository.format.pack import PACK_HEADER_BYTES, POSITIONS_MAX, PackDirectory
from repository.format.record import HEADER_BYTES, RECORD_MAGIC, RecordHeader, RecordKind
from repository.ids import RECORD_ID_BYTES, PackIndex
from repository.storage.volume import FileHandle
from repository.units import KIB, MIB

WINDOW_BYTES: Final = 4 * MIB
"""What a search for the next header reads at once."""
RETRY_BYTES: Final = 4 * KIB
"""What it reads where that failed: the unit in which disks and file systems refuse."""


class Damage(NamedTuple):
    """Bytes [offset, end) of a pack in which no sound record was found, and why."""

    offset: int
    end: int
    reason: str


class ScanResult(NamedTuple):
    """`end_offset` is where the last sound record ends; damage behind it is an unwritten or torn tail.

    `unreadable`: the volume refused to read some of it, so that more may be there than was found.
    """

    directory: PackDirectory
    end_offset: int
    damage: list[Damage]
    unreadable: bool


class _Found(NamedTuple):
    offset: int
    header: RecordHeader


def scan_pack(
    handle: FileHandle, codec: Codec, pack: PackIndex, *, written_ns: int, verify_payloads: bool
) -> ScanResult:
    """All records of a pack whose headers stand and whose payloads hold.

    With `verify_payloads` off, payloads are read only where a hole lies in them, or where the header was found by
    searching past damage; then the id is checked too, as nothing else says that these bytes were meant as a record.
    What cannot be read is passed over like damage. Raises VolumeError where the file cannot even be examined.
    """
    return _Scan(handle, codec, pack).run(written_ns=written_ns, verify_payloads=verify_payloads)


class _Scan:
    """One scan of one pack."""

    def __init__(self, handle: FileHandle, codec: Codec, pack: PackIndex) -> None:
        self._handle = handle
        self._codec = codec
        self._pack = pack
        self._size = handle.size()
        self._holes = list(handle.holes(self._size))
        self._unreadable = False

    def run(self, *, written_ns: int, verify_payloads: bool) -> ScanResult:
        found: list[_Found] = []
        damage: list[Damage] = []
        offset = PACK_HEADER_BYTES
        searched = False
        while offset + HEADER_BYTES <= self._size:
            header = self._header_at(offset)
            if header is None:
                start, offset = offset, self._next_magic(offset + 1)
                damage.append(Damage(start, min(offset, self._size), "no sound record header"))
                searched = True
                continue
            end = offset + header.stored_length
            if not self._is_sound(offset, header, searched=searched, verify_payloads=verify_payloads):
                damage.append(Damage(offset, end, "the checksum of a record's payload does not hold"))
                if searched:
                    offset += 1
                    continue
            elif header.kind != RecordKind.PACK_DIRECTORY:
                found.append(_Found(offset, header))
            searched = False
            offset = end
        return ScanResult(_columns(self._pack, found, written_ns), _end_of(found), damage, self._unreadable)

    def _read(self, length: int, offset: int) -> bytes:
        try:
            return self._handle.pread(length, offset)
        except VolumeError:
            self._unreadable = True
            return b""

    def _header_at(self, offset: int) -> RecordHeader | None:
        try:
            header = self._codec.header_at(self._read(HEADER_BYTES, offset), self._pack, offset)
        except DamagedError:
            return None
        return header if offset + header.stored_length <= self._size else None

    def _is_sound(self, offset: int, header: RecordHeader, *, searched: bool, verify_payloads: bool) -> bool:
        if searched:
            try:
                self._codec.decode(self._read(header.stored_length, offset), self._pack, offset)
            except DamagedError:
                return False
            return True
        if verify_payloads or _overlaps(self._holes, offset, offset + header.stored_length):
            payload = self._read(header.stored_length - HEADER_BYTES, offset + HEADER_BYTES)
            return self._codec.payload_holds(header, payload)
        return True

    def _next_magic(self, offset: int) -> int:
        """Offset of the next record magic from `offset` on; the file's size where there is none."""
        while offset < self._size:
            for start, end in self._holes:
                if start <= offset < end:
                    offset = end
            window = self._read(WINDOW_BYTES, offset) or self._read(RETRY_BYTES, offset)
            at = window.find(RECORD_MAGIC)
            if at >= 0:
                return offset + at
            overlap = len(RECORD_MAGIC) - 1
            offset += len(window) - overlap if len(window) > overlap else RETRY_BYTES - offset % RETRY_BYTES
        return self._size


def _overlaps(holes: list[tuple[int, int]], offset: int, end: int) -> bool:
    return any(start < end and offset < stop for start, stop in holes)


def _end_of(found: list[_Found]) -> int:
    return max((offset + header.stored_length for offset, header in found), default=PACK_HEADER_BYTES)


def _columns(pack: PackIndex, found: list[_Found], written_ns: int) -> PackDirectory:
    """Rows by position; the first record wins a position, and rows without a record stay of kind 0."""
    by_position: dict[int, _Found] = {}
    for item in found:
        if item.header.position < POSITIONS_MAX:
            by_position.setdefault(item.header.position, item)
    count = max(by_position, default=-1) + 1
    directory = PackDirectory(
        pack=pack,
        written_ns=written_ns,
        offset=np.zeros(count, np.uint32),
        stored=np.zeros(count, np.uint32),
        raw=np.zeros(count, np.uint32),
        kind=np.zeros(count, np.uint8),
        flags=np.zeros(count, np.uint8),
        ids=np.zeros((count, RECORD_ID_BYTES), np.uint8),
    )
    for position, (offset, header) in by_position.items():
        directory.offset[position] = offset
        directory.stored[position] = header.stored_length
        directory.raw[position] = header.raw_length
        directory.kind[position] = header.kind
        directory.flags[position] = header.flags
        directory.ids[position] = np.frombuffer(header.id, np.uint8)
    return directory
