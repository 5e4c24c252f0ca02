"""A second reader of repositories, written from repository/FORMAT.md alone and sharing no code with the first.

It exists to prove that the document is complete: it reads the golden repository, and must find there what the maker
put in. It is plain and slow on purpose, verifies whatever the document says is to be verified, and writes nothing.
This module reads the configuration, packs and records; the rest of the document has modules beside it.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import zstandard
from blake3 import blake3
from xxhash import xxh3_64_intdigest

NO_ID: Final = bytes(32)
CHUNK, DIR_CONTENT, DIR_ATTRS, DIR_LIST, EXTENT_LIST, EXTENT_SEGMENT = 1, 2, 3, 4, 5, 6
LINKS_SEGMENT, LINKS_LIST, XATTRS, MANIFEST, BITMAP, JOURNAL, PACK_DIRECTORY = 7, 8, 9, 10, 11, 12, 13
RAW_MAX: Final = 8 * 1024 * 1024
RECORD_HEADER: Final = 64
PACK_HEADER: Final = 256
TRAILER: Final = 32
DIRECTORY_POSITION: Final = 65_535
ZSTD_FLAG: Final = 1


class WrongError(Exception):
    """The bytes are not what the document says."""


def need(holds: bool, what: str) -> None:
    """Raises WrongError where something does not hold."""
    if not holds:
        raise WrongError(what)


@dataclass(frozen=True)
class Config:
    """repository.json."""

    repository_id: bytes
    id_key: bytes
    chunker: tuple[int, int, int]
    pack_bytes: int
    segment_bytes: int
    reserve_bytes: int

    @property
    def seed(self) -> int:
        return int.from_bytes(self.repository_id[:8], "little")


def read_config(root: Path) -> Config:
    """The parameters of a repository."""
    said = json.loads((root / "repository.json").read_bytes())
    need(said["format_version"] == 1 and said["features"] == [], "another format")
    checksum = said.pop("checksum")
    text = json.dumps(said, sort_keys=True, indent=2).encode()
    need(checksum == f"{xxh3_64_intdigest(text):016x}", "checksum of repository.json")
    chunker = said["chunker"]
    return Config(
        bytes.fromhex(said["repository_id"]),
        bytes.fromhex(said["id_key"]),
        (chunker["min"], chunker["avg"], chunker["max"]),
        said["pack_bytes"],
        said["segment_bytes"],
        said["reserve_bytes"],
    )


# --- packs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A record whose header, payload and id hold. `payload` is plain."""

    kind: int
    flags: int
    id: bytes
    offset: int
    stored_length: int
    payload: bytes


@dataclass
class Pack:
    """A pack and the records in it, by position."""

    index: int
    stream: int
    created_ns: int
    punched: bool
    sealed: bool
    size: int
    last_added_ns: int = 0
    records: dict[int, Record] = field(default_factory=dict)


def header_at(config: Config, pack: int, data: bytes, offset: int) -> tuple[int, int, int, int, int, bytes, int] | None:
    """Kind, flags, position, raw length, stored length, id, payload checksum; None where no header holds."""
    header = data[offset : offset + RECORD_HEADER]
    if len(header) < RECORD_HEADER or header[:4] != b"BREC":
        return None
    kind, flags, position, raw, stored = struct.unpack_from("<BBHII", header, 4)
    payload_sum, header_sum = struct.unpack_from("<QQ", header, 48)
    if xxh3_64_intdigest(header[:56], config.seed ^ (pack << 32) ^ offset) != header_sum:
        return None
    if raw > RAW_MAX or stored < RECORD_HEADER or offset + stored > len(data) or not CHUNK <= kind <= PACK_DIRECTORY:
        return None
    return kind, flags, position, raw, stored, header[16:48], payload_sum


def record_at(config: Config, pack: int, data: bytes, offset: int, position: int | None = None) -> Record | None:
    """The record whose header is at `offset`, verified in the order that the document gives; None for none."""
    header = header_at(config, pack, data, offset)
    if header is None:
        return None
    kind, flags, at, raw, stored, wanted, payload_sum = header
    payload = data[offset + RECORD_HEADER : offset + stored]
    if xxh3_64_intdigest(payload) != payload_sum:
        return None
    if flags & ZSTD_FLAG:
        if zstandard.frame_content_size(payload) != raw:
            return None
        payload = zstandard.ZstdDecompressor().decompress(payload)
    prefix = b"" if kind == CHUNK else bytes([kind])
    if len(payload) != raw or blake3(prefix + payload, key=config.id_key).digest() != wanted:
        return None
    if position is not None and at != position:
        return None
    return Record(kind, flags, wanted, offset, stored, payload)


def read_pack(config: Config, root: Path, index: int) -> Pack:
    """One pack, from its directory, or scanned where that does not hold."""
    data = (root / f"packs/{index & 0xFF:02x}/{index:08x}.pack").read_bytes()
    magic, version, length, zero, features = struct.unpack_from("<8sHHIQ", data, 0)
    need((magic, version, length, zero, features) == (b"BLSTPACK", 1, PACK_HEADER, 0, 0), "pack header")
    need(data[24:40] == config.repository_id and data[40:72] == config.id_key, "pack of another repository")
    found, stream, *chunker, pack_bytes, segment_bytes, created = struct.unpack_from("<7IQ", data, 72)
    need(found == index and stream in (1, 2, 3), "pack index and stream")
    parameters = (tuple(chunker), pack_bytes, segment_bytes)
    need(parameters == (config.chunker, config.pack_bytes, config.segment_bytes), "parameters in a pack header")
    need(not any(data[108:240]) and not any(data[241:248]), "zeros in a pack header")
    (checksum,) = struct.unpack_from("<Q", data, 248)
    need(checksum == xxh3_64_intdigest(data[:240]), "checksum of a pack header")
    pack = Pack(index, stream, created, data[240] != 0, False, len(data))
    if not _from_directory(config, pack, data):
        _scan(config, pack, data)
    return pack


def _from_directory(config: Config, pack: Pack, data: bytes) -> bool:
    trailer = data[-TRAILER:]
    magic, offset, stored, rows, zero, checksum = struct.unpack("<8sIIIIQ", trailer)
    if magic != b"BLSTSEAL" or xxh3_64_intdigest(trailer[:24], config.seed ^ (pack.index << 32)) != checksum:
        return False
    record = record_at(config, pack.index, data, offset, DIRECTORY_POSITION)
    if record is None or record.kind != PACK_DIRECTORY or record.stored_length != stored:
        return False
    need(zero == 0 and offset + stored + TRAILER == len(data), "the trailer ends the file")
    payload = record.payload
    need(struct.unpack_from("<II", payload, 0) == (rows, 0) and len(payload) == 16 + 46 * rows, "pack directory")
    (pack.last_added_ns,) = struct.unpack_from("<Q", payload, 8)
    offsets = struct.unpack_from(f"<{rows}I", payload, 16)
    stored_lengths = struct.unpack_from(f"<{rows}I", payload, 16 + 4 * rows)
    raw_lengths = struct.unpack_from(f"<{rows}I", payload, 16 + 8 * rows)
    kinds = payload[16 + 12 * rows : 16 + 13 * rows]
    flags = payload[16 + 13 * rows : 16 + 14 * rows]
    for position in range(rows):
        if kinds[position] == 0:
            continue
        found = record_at(config, pack.index, data, offsets[position], position)
        if found is None:
            need(pack.punched, f"record {position} of pack {pack.index}")
            continue
        start = 16 + 14 * rows + 32 * position
        said = kinds[position], flags[position], stored_lengths[position], payload[start : start + 32]
        need(said == (found.kind, found.flags, found.stored_length, found.id), "a row of a pack directory")
        need(len(found.payload) == raw_lengths[position], "raw length in a pack directory")
        pack.records[position] = found
    pack.sealed = True
    return True


def _scan(config: Config, pack: Pack, data: bytes) -> None:
    offset = PACK_HEADER
    while offset < len(data):
        header = header_at(config, pack.index, data, offset)
        if header is not None:
            found = record_at(config, pack.index, data, offset)
            if found is not None and found.kind != PACK_DIRECTORY:
                pack.records[header[2]] = found
            offset += header[4]
            continue
        offset = data.find(b"BREC", offset + 1)
        if offset < 0:
            return


class Records(Protocol):
    """Where records are read from."""

    def read(self, record_id: bytes, *kinds: int) -> Record:
        """The record with this id, which is of one of these kinds."""
        ...


class Packs:
    """All records of a repository, by number and by id."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = read_config(root)
        self.packs: dict[int, Pack] = {}
        self.by_number: dict[int, Record] = {}
        self.numbers: dict[bytes, list[int]] = {}
        for path in sorted(root.glob("packs/??/*.pack")):
            pack = read_pack(self.config, root, int(path.stem, 16))
            need(path.parent.name == f"{pack.index & 0xFF:02x}", "a pack lies by the low byte of its index")
            self.packs[pack.index] = pack
            for position, record in pack.records.items():
                number = pack.index * 65_536 + position
                self.by_number[number] = record
                self.numbers.setdefault(record.id, []).append(number)

    def read(self, record_id: bytes, *kinds: int) -> Record:
        """The record with this id, which is of one of these kinds."""
        numbers = self.numbers.get(record_id)
        if not numbers:
            raise WrongError(f"record {record_id.hex()} is nowhere")
        record = self.by_number[numbers[0]]
        need(record.kind in kinds, f"record of kind {record.kind} where {kinds} belongs")
        return record
