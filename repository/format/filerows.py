"""The content side of inodes on its way into a payload: rows column by column, from inodes or from a segment that
exists. Pure."""

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from repository.format.inode import Extent, ExtentsRef, Inode, NodeKind
from repository.format.packing import SIZE_MAX_BYTES, U16_ROW, U64_ROW, planes_of
from repository.format.record import RAW_MAX_BYTES
from repository.ids import NO_ID

INLINE_EXTENTS_MAX: Final = 64
"""More extents than this go into records of their own: an entry stays below 3 KiB."""
EXTENT_ROW: Final = struct.Struct("<QII")
"""gap (offset minus end of the extent before), length, offset in the chunk; bytes."""
PAIR_ROW: Final = struct.Struct("<QQ")
FORM_REF: Final = 255

_U64: Final = (1 << 64) - 1


class FileRows(NamedTuple):
    """Columns of neighbours, each with its rows run together; a type has no row in a column that it does not need."""

    kinds: bytes
    forms: bytes
    rests: bytes
    extents: bytes
    refs: bytes
    directories: bytes
    devices: bytes
    lengths: bytes
    targets: bytes
    chunk_ids: bytes
    head_ids: bytes
    child_ids: bytes


def file_rows(inodes: Sequence[Inode]) -> FileRows:
    """The rows of `inodes`. Raises ValueError for values that the format cannot hold."""
    kinds, forms = bytearray(), bytearray()
    rests: list[bytes] = []
    extents: list[bytes] = []
    refs: list[bytes] = []
    directories: list[bytes] = []
    devices: list[bytes] = []
    lengths: list[bytes] = []
    targets: list[bytes] = []
    chunk_ids: list[bytes] = []
    head_ids: list[bytes] = []
    child_ids: list[bytes] = []
    try:
        for inode in inodes:
            kind = inode.kind
            kinds.append(kind)
            rest = inode.size
            if not 0 <= rest <= SIZE_MAX_BYTES:
                raise ValueError("a size has 63 bits")
            if kind is NodeKind.FILE:
                found = inode.extents
                if isinstance(found, ExtentsRef):
                    forms.append(FORM_REF)
                    refs.append(PAIR_ROW.pack(found.count, inode.allocated_bytes))
                    head_ids.append(found.head)
                else:
                    if len(found) > INLINE_EXTENTS_MAX:
                        raise ValueError("too many extents for an entry")
                    forms.append(len(found))
                    rest -= pack_extents(found, 0, extents.append, chunk_ids.append)
            elif kind is NodeKind.DIRECTORY:
                directories.append(PAIR_ROW.pack(*inode.totals))
                child_ids.append(inode.directory.content or NO_ID)
            elif kind is NodeKind.SYMLINK:
                lengths.append(U16_ROW.pack(len(inode.target)))
                targets.append(inode.target)
            elif kind is NodeKind.LINK:
                rest = 0
            elif kind is NodeKind.CHARACTER or kind is NodeKind.BLOCK:
                devices.append(U64_ROW.pack(inode.rdev))
            rests.append(U64_ROW.pack(rest & _U64))
    except struct.error as error:
        raise ValueError(f"an inode does not fit the format: {error}") from error
    columns = (rests, extents, refs, directories, devices, lengths, targets, chunk_ids, head_ids, child_ids)
    return FileRows(bytes(kinds), bytes(forms), *map(b"".join, columns))


def encode_files(parts: Sequence[FileRows]) -> bytes:
    """The content side of the rows of `parts`, one behind the other."""
    rows = parts[0] if len(parts) == 1 else FileRows(*map(b"".join, zip(*parts, strict=True)))
    return b"".join((
        rows.kinds, rows.forms,
        planes_of(rows.rests, U64_ROW.size),
        planes_of(rows.extents, EXTENT_ROW.size),
        planes_of(rows.refs, PAIR_ROW.size),
        planes_of(rows.directories, PAIR_ROW.size),
        planes_of(rows.devices, U64_ROW.size),
        planes_of(rows.lengths, U16_ROW.size),
        rows.targets, rows.chunk_ids, rows.head_ids, rows.child_ids,
    ))  # fmt: skip


def pack_extents(
    extents: Sequence[Extent], start: int, row: Callable[[bytes], None], chunk: Callable[[bytes], None]
) -> int:
    """Hands each extent's row (gaps counted from `start`) and chunk id on; returns the end of the last one.

    Raises ValueError where extents overlap, are unsorted, empty or longer than a chunk can be.
    """
    end = start
    for offset, length, chunk_id, chunk_offset in extents:
        if offset < end or not 0 < length <= RAW_MAX_BYTES or not 0 <= chunk_offset < RAW_MAX_BYTES:
            raise ValueError("extents have to be sorted, apart and within a chunk")
        row(EXTENT_ROW.pack(offset - end, length, chunk_offset))
        chunk(chunk_id)
        end = offset + length
    if end > SIZE_MAX_BYTES:
        raise ValueError("an extent reaches behind the largest offset")
    return end
