"""The frame of one record: a 64-byte header, then its payload. Pure.

`stored_length` means header and payload together, in bytes, everywhere in this project: it is what one pread
of a record asks for. `raw_length` is the length of the plain bytes.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

import xxhash

from repository.errors import DamagedError
from repository.ids import PackIndex, RecordId, RecordNumber
from repository.units import MIB

Buffer = bytes | bytearray | memoryview
"""What a caller may hand in as plain bytes; memoryviews must be contiguous, of single bytes."""
RECORD_MAGIC: Final = b"BREC"
HEADER_BYTES: Final = 64
RAW_MAX_BYTES: Final = 8 * MIB
"""Bound on what a reader decompresses; the largest chunk is 1 MiB, trees and bitmaps are cut far below this."""
STORED_MAX_BYTES: Final = HEADER_BYTES + RAW_MAX_BYTES
"""A payload that compression does not shrink is stored plain, so nothing is longer than this."""
FLAG_ZSTD: Final = 1
KNOWN_FLAGS: Final = FLAG_ZSTD

_HEADER: Final = struct.Struct("<4sBBHII32sQQ")
_CHECKED_BYTES: Final = 56
_U64: Final = (1 << 64) - 1


class RecordKind(IntEnum):
    """What a record's payload is."""

    CHUNK = 1
    DIR_CONTENT = 2
    DIR_ATTRS = 3
    DIR_LIST = 4
    EXTENT_LIST = 5
    EXTENT_SEGMENT = 6
    LINKS_SEGMENT = 7
    LINKS_LIST = 8
    XATTRS = 9
    MANIFEST = 10
    BITMAP = 11
    JOURNAL = 12
    PACK_DIRECTORY = 13


class Stored(NamedTuple):
    """Answer to a put: where the record is. `stored_length` counts the header; `new` is False for a known record."""

    id: RecordId
    number: RecordNumber
    raw_length: int
    stored_length: int
    new: bool


class Place(NamedTuple):
    """Where a record lies: byte `offset` in the pack file of `number`; `stored_length` counts the header."""

    number: RecordNumber
    offset: int
    stored_length: int
    raw_length: int


class Record(NamedTuple):
    """A record as read and verified: `payload` is the plain bytes."""

    kind: RecordKind
    payload: bytes


class ChunkRef(NamedTuple):
    """The next `raw_length` bytes of a stream; `id` None where they are all zero (a hole, stored nowhere)."""

    raw_length: int
    id: RecordId | None


class RecordHeader(NamedTuple):
    """A decoded header. `payload_xxh3` is over the payload as stored."""

    kind: int
    flags: int
    position: int
    raw_length: int
    stored_length: int
    id: RecordId
    payload_xxh3: int


def header_seed(repository_seed: int, pack: PackIndex, offset: int) -> int:
    """Seed of a header's checksum: binds it to its repository, pack and byte offset."""
    return (repository_seed ^ (pack << 32) ^ offset) & _U64


def encode_header(header: RecordHeader, seed: int) -> bytes:
    """The 64 bytes of `header`; `seed` from `header_seed`."""
    kind, flags, position, raw, stored, record_id, payload_xxh3 = header
    buffer = _HEADER.pack(RECORD_MAGIC, kind, flags, position, raw, stored, record_id, payload_xxh3, 0)
    checksum = xxhash.xxh3_64_intdigest(buffer[:_CHECKED_BYTES], seed)
    return buffer[:_CHECKED_BYTES] + checksum.to_bytes(8, "little")


def decode_header(buffer: bytes | memoryview, seed: int) -> RecordHeader:
    """The header in the first 64 bytes of `buffer`. Raises DamagedError where anything is wrong with it."""
    if len(buffer) < HEADER_BYTES:
        raise DamagedError("a record header is cut off")
    magic, kind, flags, position, raw, stored, record_id, payload_xxh3, checksum = _HEADER.unpack_from(buffer)
    if magic != RECORD_MAGIC:
        raise DamagedError("there is no record header here")
    if xxhash.xxh3_64_intdigest(buffer[:_CHECKED_BYTES], seed) != checksum:
        raise DamagedError("the checksum of a record header does not hold")
    if raw > RAW_MAX_BYTES or not HEADER_BYTES <= stored <= STORED_MAX_BYTES or flags & ~KNOWN_FLAGS:
        raise DamagedError("a record header holds impossible values")
    if not flags & FLAG_ZSTD and stored != HEADER_BYTES + raw:
        raise DamagedError("a plain record's lengths contradict each other")
    return RecordHeader(kind, flags, position, raw, stored, RecordId(record_id), payload_xxh3)
