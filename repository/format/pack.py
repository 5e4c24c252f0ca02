"""A pack file's own parts: header, directory of its records, trailer. Pure.

A sealed pack is: header, records, one PACK_DIRECTORY record, trailer, end of file.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from repository.errors import DamagedError
from repository.format.config import ChunkerParameters, Config
from repository.format.record import HEADER_BYTES, Buffer, Place
from repository.ids import RECORD_ID_BYTES, RECORDS_PER_PACK_MAX, PackIndex, RecordId, number_of

PACKS_DIRECTORY: Final = "packs"
PACK_SUFFIX: Final = ".pack"
PACK_HEADER_BYTES: Final = 256
TRAILER_BYTES: Final = 32
DIRECTORY_ROW_BYTES: Final = 46
DIRECTORY_FIXED_BYTES: Final = HEADER_BYTES + 16 + TRAILER_BYTES
"""What sealing a pack writes beside its rows: the record's header, the directory's head, the trailer."""
POSITIONS_MAX: Final = RECORDS_PER_PACK_MAX - 1
"""Records in a pack; the last position is the directory's own."""
DIRECTORY_POSITION: Final = RECORDS_PER_PACK_MAX - 1

_PACK_MAGIC: Final = b"BLSTPACK"
_TRAILER_MAGIC: Final = b"BLSTSEAL"
_PACK_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHIQ16s32sIIIIIIIq")
_HEADER_CHECKED_BYTES: Final = 240
PUNCHED_OFFSET: Final = 240
"""A byte of the header, outside its checksum: not zero once a hole was punched. Overwritten in place, and durable
before the first punch: a pack without it is whole, whatever its blocks look like."""
SPARE_MARK: Final = 2
"""The same byte of a pack that was made beforehand and holds no record yet: its index, unlike that of a pack which was
cut to its header, may still be used. Readers that take it for a punched pack find nothing in it either."""
_CHECKSUM_OFFSET: Final = PACK_HEADER_BYTES - 8
_TRAILER: Final = struct.Struct("<8sIIII")
_DIRECTORY_HEAD: Final = struct.Struct("<IIq")
_U64: Final = (1 << 64) - 1


class Stream(IntEnum):
    """Which records gather in a pack, so that what dies together lies together. Any record may lie in any pack."""

    BULK = 1
    """Records of 16 KiB stored and more."""
    SMALL = 2
    """Smaller chunks, and the journal."""
    TREE = 3
    """Trees, extent lists, manifests, bitmaps."""


class PackHeader(NamedTuple):
    """The first 256 bytes of a pack."""

    repository_id: bytes
    id_key: bytes
    pack: PackIndex
    stream: Stream
    chunker: ChunkerParameters
    pack_bytes: int
    segment_bytes: int
    created_ns: int
    punched: bool
    spare: bool


class Trailer(NamedTuple):
    """The last 32 bytes of a sealed pack: where its directory lies, and how many positions it describes."""

    directory_offset: int
    directory_stored_length: int
    rows: int


@dataclass(frozen=True, slots=True)
class PackDirectory:
    """The records of one pack as columns; row = position. Rows of `kind` 0 hold no record (void, torn or punched).

    `stored` counts the 64-byte header; `ids` has shape (count, 32); `written_ns` is when the last record was added.
    """

    pack: PackIndex
    written_ns: int
    offset: NDArray[np.uint32]
    stored: NDArray[np.uint32]
    raw: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    ids: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offset)

    def directory(self) -> "PackDirectory":
        """These columns themselves; packs that are still open answer likewise with a copy."""
        return self

    @property
    def numbers(self) -> NDArray[np.uint64]:
        """The record number of every row."""
        return np.arange(len(self), dtype=np.uint64) + np.uint64(self.pack * RECORDS_PER_PACK_MAX)

    def place(self, position: int) -> Place:
        """Where the record of row `position` lies."""
        return Place(
            number_of(self.pack, position),
            int(self.offset[position]),
            int(self.stored[position]),
            int(self.raw[position]),
        )

    def id_at(self, position: int) -> RecordId:
        return RecordId(self.ids[position].tobytes())


def pack_path(pack: PackIndex) -> str:
    """Path of a pack within the repository."""
    return f"{pack_directory_path(pack)}/{pack:08x}{PACK_SUFFIX}"


def pack_directory_path(pack: PackIndex) -> str:
    """The directory that a pack's file lies in."""
    return f"{PACKS_DIRECTORY}/{pack & 0xFF:02x}"


def pack_index_of(name: str) -> PackIndex | None:
    """The pack index in a file's name; None for a name that is no pack's."""
    stem = name.removesuffix(PACK_SUFFIX)
    if len(stem) != 8 or stem == name or set(stem) - set("0123456789abcdef"):
        return None
    return PackIndex(int(stem, 16))


def encode_pack_header(
    config: Config, pack: PackIndex, stream: Stream, created_ns: int, *, spare: bool = False
) -> bytes:
    """The 256 bytes that a pack begins with."""
    fields = _HEADER.pack(
        _PACK_MAGIC,
        _PACK_VERSION,
        PACK_HEADER_BYTES,
        0,
        0,
        config.repository_id,
        config.id_key,
        pack,
        stream,
        *config.chunker,
        config.pack_bytes,
        config.segment_bytes,
        created_ns,
    )
    checked = fields.ljust(_HEADER_CHECKED_BYTES, b"\0")
    checksum = xxhash.xxh3_64_intdigest(checked).to_bytes(8, "little")
    mark = bytes((SPARE_MARK if spare else 0,))
    return (checked + mark).ljust(_CHECKSUM_OFFSET, b"\0") + checksum


def decode_pack_header(buffer: bytes) -> PackHeader:
    """The header in a pack's first 256 bytes. Raises DamagedError."""
    if len(buffer) < PACK_HEADER_BYTES:
        raise DamagedError("the pack's header is cut off")
    checked = buffer[:_HEADER_CHECKED_BYTES]
    checksum = int.from_bytes(buffer[_CHECKSUM_OFFSET:PACK_HEADER_BYTES], "little")
    if xxhash.xxh3_64_intdigest(checked) != checksum:
        raise DamagedError("the checksum of the pack's header does not hold")
    fields = _HEADER.unpack_from(checked)
    magic, version, length, _, features, repository_id, id_key, pack, stream = fields[:9]
    if magic != _PACK_MAGIC or version != _PACK_VERSION or length != PACK_HEADER_BYTES or features:
        raise DamagedError("the pack has a format that this version does not know")
    small, middle, large, pack_bytes, segment_bytes, created_ns = fields[9:]
    if stream not in set(Stream):
        raise DamagedError("the pack's header names an unknown stream")
    chunker = ChunkerParameters(small, middle, large)
    return PackHeader(
        repository_id,
        id_key,
        PackIndex(pack),
        Stream(stream),
        chunker,
        pack_bytes,
        segment_bytes,
        created_ns,
        bool(buffer[PUNCHED_OFFSET]),
        buffer[PUNCHED_OFFSET] == SPARE_MARK,
    )


def _trailer_seed(seed: int, pack: PackIndex) -> int:
    return (seed ^ (pack << 32)) & _U64


def encode_trailer(trailer: Trailer, repository_seed: int, pack: PackIndex) -> bytes:
    """The 32 bytes that a sealed pack ends with."""
    fields = _TRAILER.pack(_TRAILER_MAGIC, *trailer, 0)
    checksum = xxhash.xxh3_64_intdigest(fields, _trailer_seed(repository_seed, pack))
    return fields + checksum.to_bytes(8, "little")


def decode_trailer(buffer: bytes, repository_seed: int, pack: PackIndex) -> Trailer | None:
    """The trailer in a file's last 32 bytes; None where there is none that holds (the pack isn't sealed)."""
    if len(buffer) != TRAILER_BYTES:
        return None
    magic, offset, stored, count, _ = _TRAILER.unpack_from(buffer)
    checksum = xxhash.xxh3_64_intdigest(buffer[: _TRAILER.size], _trailer_seed(repository_seed, pack))
    if magic != _TRAILER_MAGIC or checksum != int.from_bytes(buffer[_TRAILER.size :], "little"):
        return None
    return Trailer(offset, stored, count)


def encode_directory(directory: PackDirectory) -> bytes:
    """Plain payload of a PACK_DIRECTORY record."""
    columns = (
        directory.offset.astype("<u4"),
        directory.stored.astype("<u4"),
        directory.raw.astype("<u4"),
        directory.kind,
        directory.flags,
        directory.ids,
    )
    head = _DIRECTORY_HEAD.pack(len(directory), 0, directory.written_ns)
    return head + b"".join(column.tobytes() for column in columns)


def decode_directory(payload: Buffer, pack: PackIndex) -> PackDirectory:
    """The columns in a PACK_DIRECTORY record's plain payload. Raises DamagedError."""
    if len(payload) < _DIRECTORY_HEAD.size:
        raise DamagedError("a pack's directory is cut off")
    count, _, written_ns = _DIRECTORY_HEAD.unpack_from(payload)
    if count > POSITIONS_MAX or len(payload) != _DIRECTORY_HEAD.size + count * DIRECTORY_ROW_BYTES:
        raise DamagedError("a pack's directory has a wrong length")
    start = _DIRECTORY_HEAD.size
    offset, stored, raw = np.frombuffer(payload, "<u4", 3 * count, start).reshape(3, count)
    start += 12 * count
    kind, flags = np.frombuffer(payload, np.uint8, 2 * count, start).reshape(2, count)
    ids = np.frombuffer(payload, np.uint8, RECORD_ID_BYTES * count, start + 2 * count)
    return PackDirectory(pack, written_ns, offset, stored, raw, kind, flags, ids.reshape(count, RECORD_ID_BYTES))
