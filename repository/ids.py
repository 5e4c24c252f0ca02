"""Identifiers and the arithmetic that belongs to them.

A record's *number* is its place: `pack index * 65,536 + position in the pack`; it is never reused.
A record's *id* is the keyed BLAKE3-256 of its plain bytes.
"""

from typing import Final, NewType

RecordId = NewType("RecordId", bytes)
RecordNumber = NewType("RecordNumber", int)
PackIndex = NewType("PackIndex", int)
FileId = NewType("FileId", int)
SnapshotId = NewType("SnapshotId", int)

RECORD_ID_BYTES: Final = 32
POSITION_BITS: Final = 16
RECORDS_PER_PACK_MAX: Final = 1 << POSITION_BITS
"""One roaring container a pack: reachability of a whole pack is one container's presence."""
PACK_INDEX_MAX: Final = (1 << 32) - 1
FILE_ID_BITS: Final = 40
VERSION_BITS: Final = 22
"""A file's version counts commits that changed it; file id and version together fill 62 bits of an inode number."""
NO_ID: Final = RecordId(bytes(RECORD_ID_BYTES))
"""On disk: no record. BLAKE3 never yields it in practice."""
ROOT_FILE_ID: Final = FileId(1)
"""The file id of `live`'s root directory in every repository."""


def number_of(pack: PackIndex, position: int) -> RecordNumber:
    """The number of the record at `position` (0 to 65,535) of `pack`."""
    return RecordNumber((pack << POSITION_BITS) | position)


def pack_of(number: RecordNumber) -> PackIndex:
    """The pack that holds the record `number`."""
    return PackIndex(number >> POSITION_BITS)


def position_of(number: RecordNumber) -> int:
    """The ordinal of record `number` within its pack."""
    return number & (RECORDS_PER_PACK_MAX - 1)
