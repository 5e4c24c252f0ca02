"""Sealing: the directory and the trailer that end a pack."""

from repository.codec import Codec
from repository.format.pack import (
    DIRECTORY_POSITION,
    TRAILER_BYTES,
    PackDirectory,
    Trailer,
    encode_directory,
    encode_trailer,
)
from repository.format.record import HEADER_BYTES, RecordHeader, RecordKind, encode_header
from repository.storage.volume import FileHandle


def seal_file(handle: FileHandle, codec: Codec, directory: PackDirectory, end_offset: int, seed: int) -> int:
    """Write directory and trailer behind `end_offset` and cut the file off there; returns its size in bytes.

    Records and directory are made durable before the trailer is written: a trailer that holds says that all before
    it did. Everything written here lies in room that the pack holds. Until the caller has made this durable too, a
    crash may leave a pack that is scanned and sealed again. Raises SyncFailedError, VolumeError.
    """
    plain = encode_directory(directory)
    payload = codec.compress(plain)
    header = RecordHeader(
        kind=RecordKind.PACK_DIRECTORY,
        flags=payload.flags,
        position=DIRECTORY_POSITION,
        raw_length=len(plain),
        stored_length=HEADER_BYTES + len(payload.buffer),
        id=codec.id_of(RecordKind.PACK_DIRECTORY, plain),
        payload_xxh3=payload.xxh3,
    )
    trailer = Trailer(end_offset, header.stored_length, len(directory))
    handle.pwritev((encode_header(header, codec.seed_at(directory.pack, end_offset)), payload.buffer), end_offset)
    handle.fdatasync()
    handle.pwrite(encode_trailer(trailer, seed, directory.pack), end_offset + header.stored_length)
    size = end_offset + header.stored_length + TRAILER_BYTES
    handle.truncate(size)
    return size
