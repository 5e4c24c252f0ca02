"""Finding the records of a pack without its directory: after a crash, or past damage."""

from typing import Final, NamedTuple

import numpy as np

from repository.codec import Codec
from repository.errors import DamagedError
from repository.format.pack import PACK_HEADER_BYTES, POSITIONS_MAX, PackDirectory
from repository.format.record import HEADER_BYTES, RECORD_MAGIC, RecordHeader, RecordKind
from repository.ids import RECORD_ID_BYTES, PackIndex
from repository.storage.volume import FileHandle
from repository.units import MIB

WINDOW_BYTES: Final = 4 * MIB
"""What a search for the next header reads at once."""


class Damage(NamedTuple):
    """Bytes [offset, end) of a pack in which no sound record was found, and why."""

    offset: int
    end: int
    reason: str


class ScanResult(NamedTuple):
    """`end_offset` is where the last sound record ends; damage behind it is an unwritten or torn tail."""

    directory: PackDirectory
    end_offset: int
    damage: list[Damage]


class _Found(NamedTuple):
    offset: int
    header: RecordHeader


def scan_pack(
    handle: FileHandle, codec: Codec, pack: PackIndex, *, written_ns: int, verify_payloads: bool
) -> ScanResult:
    """All records of a pack whose headers stand and whose payloads hold.

    With `verify_payloads` off, payloads are read only where a hole lies in them, or where the header was found by
    searching past damage; then the id is checked too, as nothing else says that these bytes were meant as a record.
    """
    size = handle.size()
    holes = list(handle.holes(size))
    found: list[_Found] = []
    damage: list[Damage] = []
    offset = PACK_HEADER_BYTES
    searched = False
    while offset + HEADER_BYTES <= size:
        header = _header_at(handle, codec, pack, offset, size)
        if header is None:
            start, offset = offset, _next_magic(handle, offset + 1, size, holes)
            damage.append(Damage(start, min(offset, size), "no sound record header"))
            searched = True
            continue
        end = offset + header.stored_length
        if searched:
            sound = _sound(handle, codec, pack, offset, header)
        else:
            sound = not (verify_payloads or _overlaps(holes, offset, end)) or _holds(handle, codec, offset, header)
        if not sound:
            damage.append(Damage(offset, end, "the checksum of a record's payload does not hold"))
            if searched:
                offset += 1
                continue
        elif header.kind != RecordKind.PACK_DIRECTORY:
            found.append(_Found(offset, header))
        searched = False
        offset = end
    return ScanResult(_columns(pack, found, written_ns), _end_of(found), damage)


def _header_at(handle: FileHandle, codec: Codec, pack: PackIndex, offset: int, size: int) -> RecordHeader | None:
    try:
        header = codec.header_at(handle.pread(HEADER_BYTES, offset), pack, offset)
    except DamagedError:
        return None
    return header if offset + header.stored_length <= size else None


def _holds(handle: FileHandle, codec: Codec, offset: int, header: RecordHeader) -> bool:
    payload = handle.pread(header.stored_length - HEADER_BYTES, offset + HEADER_BYTES)
    return codec.payload_holds(header, payload)


def _sound(handle: FileHandle, codec: Codec, pack: PackIndex, offset: int, header: RecordHeader) -> bool:
    try:
        codec.decode(handle.pread(header.stored_length, offset), pack, offset)
    except DamagedError:
        return False
    return True


def _next_magic(handle: FileHandle, offset: int, size: int, holes: list[tuple[int, int]]) -> int:
    """Offset of the next record magic from `offset` on; `size` where there is none."""
    while offset < size:
        for start, end in holes:
            if start <= offset < end:
                offset = end
        window = handle.pread(WINDOW_BYTES, offset)
        at = window.find(RECORD_MAGIC)
        if at >= 0:
            return offset + at
        if len(window) < WINDOW_BYTES:
            return size
        offset += len(window) - len(RECORD_MAGIC) + 1
    return size


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
