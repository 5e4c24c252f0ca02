"""From plain bytes to what a record stores, and back: identity, compression, verification.

Everything here frees the GIL for large inputs; contexts are kept one per thread.
"""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash
import zstandard
from blake3 import blake3

from repository.errors import DamagedError
from repository.format.record import (
    FLAG_ZSTD,
    HEADER_BYTES,
    Buffer,
    Record,
    RecordHeader,
    RecordKind,
    decode_header,
    header_seed,
)
from repository.ids import PackIndex, RecordId

ZSTD_LEVEL: Final = 1
"""Level 3 costs a quarter more time for 4 % less space, measured on texts and binaries."""
COMPRESS_MIN_BYTES: Final = 48
"""Shorter payloads are stored plain: a zstd frame's own bytes eat what could be won."""

TOGETHER_MIN: Final = 4
"""Fewer payloads are compressed one by one."""
_KINDS: Final = {int(kind): kind for kind in RecordKind}


class Payload(NamedTuple):
    """A payload as it will be stored."""

    flags: int
    buffer: Buffer
    xxh3: int


class Packed(NamedTuple):
    """A record whose plain bytes stay where they are: what a put needs to know of it. Without a payload it can only be
    found, not stored."""

    id: RecordId
    raw_length: int
    payload: Payload | None


class Codec:
    """Identity and compression of one repository's records. Thread safe."""

    def __init__(self, id_key: bytes, repository_seed: int) -> None:
        self._key = id_key
        self._seed = repository_seed
        self._local = threading.local()

    def id_of(self, kind: RecordKind, payload: Buffer) -> RecordId:
        """Keyed BLAKE3-256 of the plain bytes; kinds other than CHUNK are prefixed by the kind's byte."""
        if kind is RecordKind.CHUNK:
            return RecordId(blake3(payload, key=self._key).digest())
        return RecordId(blake3(bytes((kind,)), key=self._key).update(payload).digest())

    def compress(self, payload: Buffer) -> Payload:
        """`payload` compressed, or itself where that is not smaller."""
        if len(payload) >= COMPRESS_MIN_BYTES:
            packed = self._compressor().compress(payload)
            if len(packed) < len(payload):
                return Payload(FLAG_ZSTD, packed, xxhash.xxh3_64_intdigest(packed))
        return Payload(0, payload, xxhash.xxh3_64_intdigest(payload))

    def compress_many(self, payloads: Sequence[Buffer]) -> list[Payload]:
        """As `compress`, of a batch: the interpreter is let go of once for all of them, not once for each."""
        long = [payload for payload in payloads if len(payload) >= COMPRESS_MIN_BYTES]
        if len(long) < TOGETHER_MIN:
            return [self.compress(payload) for payload in payloads]
        packed = self._compressor().multi_compress_to_buffer(long)
        answers: list[Payload] = []
        at = 0
        for payload in payloads:
            if len(payload) >= COMPRESS_MIN_BYTES:
                short = packed[at].tobytes() if len(packed[at]) < len(payload) else None
                at += 1
                if short is not None:
                    answers.append(Payload(FLAG_ZSTD, short, xxhash.xxh3_64_intdigest(short)))
                    continue
            answers.append(Payload(0, payload, xxhash.xxh3_64_intdigest(payload)))
        return answers

    def seed_at(self, pack: PackIndex, offset: int) -> int:
        """Seed of the checksum of a header at byte `offset` of `pack`."""
        return header_seed(self._seed, pack, offset)

    def header_at(self, buffer: bytes | memoryview, pack: PackIndex, offset: int) -> RecordHeader:
        """The header in `buffer`, which was read at byte `offset` of `pack`. Raises DamagedError."""
        return decode_header(buffer, header_seed(self._seed, pack, offset))

    def payload_holds(self, header: RecordHeader, stored: bytes | memoryview) -> bool:
        """Whether `stored`, the bytes behind the header, are what the header promises."""
        return (
            len(stored) == header.stored_length - HEADER_BYTES
            and xxhash.xxh3_64_intdigest(stored) == header.payload_xxh3
        )

    def decode(self, buffer: bytes | memoryview, pack: PackIndex, offset: int) -> tuple[RecordHeader, Record]:
        """Verify and unpack one whole record, read at byte `offset` of `pack`.

        Header, payload checksum, raw length and id are checked, in this order. Raises DamagedError.
        """
        header = self.header_at(buffer, pack, offset)
        stored = memoryview(buffer)[HEADER_BYTES : header.stored_length]
        if not self.payload_holds(header, stored):
            raise DamagedError("the checksum of a record's payload does not hold")
        plain = self._plain(header, stored)
        kind = _KINDS.get(header.kind)
        if kind is None:
            raise DamagedError(f"a record has the unknown kind {header.kind}")
        if self.id_of(kind, plain) != header.id:
            raise DamagedError("a record's bytes are not those that its id names")
        return header, Record(kind, plain)

    def _plain(self, header: RecordHeader, stored: memoryview) -> bytes:
        if not header.flags & FLAG_ZSTD:
            return bytes(stored)
        try:
            promised = zstandard.frame_content_size(stored)
            if promised not in (-1, header.raw_length):
                raise DamagedError("a compressed record's lengths contradict each other")
            plain = self._decompressor().decompress(stored, max_output_size=header.raw_length)
        except zstandard.ZstdError as error:
            raise DamagedError("a record cannot be decompressed") from error
        if len(plain) != header.raw_length:
            raise DamagedError("a record has another length than its header says")
        return plain

    def _compressor(self) -> zstandard.ZstdCompressor:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False)
            self._local.compressor = compressor
        return compressor

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        decompressor: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = zstandard.ZstdDecompressor()
            self._local.decompressor = decompressor
        return decompressor
