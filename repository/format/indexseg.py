"""An index segment: an immutable, sorted cache of where records lie. Pure.

Header (4,096 bytes), column of keys, rows, filter, table of the packs that the segment covers wholly. A key is the
first eight bytes of an id as a big-endian number, so keys sort as ids do.
"""

import struct
from operator import mul
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from repository.errors import DamagedError
from repository.format.pack import PackDirectory, Stream
from repository.format.record import Buffer, Place
from repository.ids import PackIndex, RecordId, RecordNumber

INDEX_DIRECTORY: Final = "index"
SEGMENT_SUFFIX: Final = ".seg"
TEMPORARY_SUFFIX: Final = ".tmp"
SEGMENT_HEADER_BYTES: Final = 4096
KEY_BYTES: Final = 8
ROW_BYTES: Final = 48
ROWS_MAX: Final = 1 << 32
"""Bound on what a header may claim; 2^32 records of one byte each are more than any repository here."""

KEY_TYPE: Final = np.dtype("<u8")
ROW_TYPE: Final = np.dtype(
    [("rest", "V24"), ("number", "<u8"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("check", "<u4")]
)
PACK_TYPE: Final = np.dtype(
    [
        ("pack", "<u4"),
        ("records", "<u4"),
        ("stream", "<u4"),
        ("reserved", "<u4"),
        ("created_ns", "<i8"),
        ("written_ns", "<i8"),
        ("mtime_ns", "<i8"),
        ("blocks", "<u8"),
    ]
)

_MAGIC: Final = b"BLSTINDX"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sII16sQQQQQQQQQQQ")
_ROW: Final = struct.Struct("<24sQIIII")
_WORDS: Final = struct.Struct("<6Q")
_MULTIPLIERS: Final = (
    0x9E3779B97F4A7C15,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0xD6E8FEB86659FD93,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
    0x8EBC6AF09C88C6E3,
)
"""Odd, so that each is a bijection modulo 2^64 and no change of one word can cancel out."""
_U64: Final = (1 << 64) - 1
_LOW_WORD: Final = 0xFFFFFFFF

RowArray = NDArray[np.void]
KeyArray = NDArray[np.uint64]


class SegmentHeader(NamedTuple):
    """Where the parts of a segment lie (byte offsets in its file) and the XXH3-64 of each."""

    repository_id: bytes
    row_count: int
    keys_offset: int
    rows_offset: int
    filter_offset: int
    filter_bytes: int
    packs_offset: int
    pack_count: int
    keys_xxh3: int
    rows_xxh3: int
    filter_xxh3: int
    packs_xxh3: int

    @property
    def total_bytes(self) -> int:
        """The size of the whole file."""
        return self.packs_offset + self.pack_count * PACK_TYPE.itemsize


class CoveredPack(NamedTuple):
    """A sealed pack that a segment covers, as its file was then (`mtime_ns`, `blocks` of 512 bytes)."""

    pack: PackIndex
    records: int
    stream: Stream
    created_ns: int
    written_ns: int
    mtime_ns: int
    blocks: int


def segment_path(sequence: int) -> str:
    """Path of a segment within the repository; later segments have higher sequences."""
    return f"{INDEX_DIRECTORY}/{sequence:016x}{SEGMENT_SUFFIX}"


def sequence_of(name: str) -> int | None:
    """The sequence in a file's name; None for a name that is no segment's."""
    stem = name.removesuffix(SEGMENT_SUFFIX)
    if len(stem) != 16 or stem == name or set(stem) - set("0123456789abcdef"):
        return None
    return int(stem, 16)


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The first 4,096 bytes of a segment."""
    fields = _HEADER.pack(_MAGIC, _VERSION, 0, *header).ljust(SEGMENT_HEADER_BYTES - 8, b"\0")
    return fields + xxhash.xxh3_64_intdigest(fields).to_bytes(8, "little")


def decode_segment_header(buffer: bytes) -> SegmentHeader:
    """The header in a segment's first 4,096 bytes. Raises DamagedError."""
    if len(buffer) != SEGMENT_HEADER_BYTES:
        raise DamagedError("an index segment is cut off")
    fields, checksum = buffer[:-8], int.from_bytes(buffer[-8:], "little")
    magic, version, _, *values = _HEADER.unpack_from(fields)
    if magic != _MAGIC or version != _VERSION or xxhash.xxh3_64_intdigest(fields) != checksum:
        raise DamagedError("an index segment's header does not hold")
    header = SegmentHeader(*values)
    if header.row_count > ROWS_MAX or header.filter_bytes & (header.filter_bytes - 1) or not header.filter_bytes:
        raise DamagedError("an index segment's header holds impossible values")
    return header


def key_of(record_id: RecordId) -> int:
    """The key that a segment sorts `record_id` by."""
    return int.from_bytes(record_id[:KEY_BYTES], "big")


def keys_of(ids: NDArray[np.uint8]) -> KeyArray:
    """Keys of `ids`, shape (n, 32)."""
    return np.ascontiguousarray(ids[:, :KEY_BYTES]).view(">u8").reshape(len(ids)).astype(KEY_TYPE)


def second_words_of(rows: RowArray) -> KeyArray:
    """Bytes 8 to 16 of each row's id as a little-endian number: the filter's second hash."""
    return rests_of(rows)[:, 0].copy()


def rests_of(rows: RowArray) -> KeyArray:
    """What follows the key in each row's id, as three words."""
    return np.ascontiguousarray(rows["rest"]).view("<u8").reshape(len(rows), 3)


def rows_of(directory: PackDirectory) -> tuple[KeyArray, RowArray]:
    """Keys and rows, unsorted, of all records of one pack."""
    present = np.flatnonzero(directory.kind)
    ids = directory.ids[present]
    keys = keys_of(ids)
    rows = np.zeros(len(present), ROW_TYPE)
    rows["rest"] = np.ascontiguousarray(ids[:, KEY_BYTES:]).view("V24").reshape(len(present))
    rows["number"] = directory.numbers[present]
    rows["offset"] = directory.offset[present]
    rows["stored"] = directory.stored[present]
    rows["raw"] = directory.raw[present]
    rows["check"] = checks_of(keys, rows)
    return keys, rows


def checks_of(keys: KeyArray, rows: RowArray) -> NDArray[np.uint32]:
    """Each row's check: a multiplicative hash of its key and its words, the upper 32 bits."""
    words = rows.view("<u8").reshape(len(rows), 6)
    with np.errstate(over="ignore"):
        mixed = keys * np.uint64(_MULTIPLIERS[6])
        for column in range(5):
            mixed += words[:, column] * np.uint64(_MULTIPLIERS[column])
        mixed += (words[:, 5] & np.uint64(_LOW_WORD)) * np.uint64(_MULTIPLIERS[5])
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(_MULTIPLIERS[0])
    return (mixed >> np.uint64(32)).astype(np.uint32)


def place_in_row(row: bytes | memoryview, record_id: RecordId) -> Place | None:
    """The place that a row gives for `record_id`; None where it is another id's or its check does not hold."""
    rest, number, offset, stored, raw, check = _ROW.unpack(row)
    if rest != record_id[KEY_BYTES:]:
        return None
    words = _WORDS.unpack(row)
    mixed = key_of(record_id) * _MULTIPLIERS[6] + sum(map(mul, words[:5], _MULTIPLIERS))
    mixed = (mixed + (words[5] & _LOW_WORD) * _MULTIPLIERS[5]) & _U64
    mixed = ((mixed ^ (mixed >> 29)) * _MULTIPLIERS[0]) & _U64
    if mixed >> 32 != check:
        return None
    return Place(RecordNumber(number), offset, stored, raw)


def encode_covered(packs: list[CoveredPack]) -> bytes:
    """The table of covered packs."""
    table = np.zeros(len(packs), PACK_TYPE)
    for row, item in enumerate(packs):
        table[row] = (
            item.pack,
            item.records,
            item.stream,
            0,
            item.created_ns,
            item.written_ns,
            item.mtime_ns,
            item.blocks,
        )
    return table.tobytes()


def decode_covered(buffer: Buffer) -> list[CoveredPack]:
    """The table of covered packs. Raises DamagedError."""
    try:
        return [
            CoveredPack(PackIndex(pack), records, Stream(stream), created_ns, written_ns, mtime_ns, blocks)
            for pack, records, stream, _, created_ns, written_ns, mtime_ns, blocks in np.frombuffer(
                buffer, PACK_TYPE
            ).tolist()
        ]
    except ValueError as error:
        raise DamagedError("an index segment's table of packs does not hold") from error
