"""Reachability bitmaps as bytes: which record numbers a root needs, as a difference to an earlier root's. Pure.

A bitmap is a *head* record, bound to the root it was made for, and the serialised sets (64-bit roaring, portable
form) of numbers that it adds to its parent's and removes from it. Small sets stand in the head itself, larger ones
in *part* records that the head names.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyroaring import BitMap64

from repository.errors import DamagedError
from repository.ids import NO_ID, RECORD_ID_BYTES, RecordId
from repository.units import KIB

CHAIN_MAX: Final = 63
"""Differences in a row; the next bitmap is full again: reading one reads at most 64 heads."""
PART_BYTES_MAX: Final = 512 * KIB
"""Bytes of serialised sets in one record: below the largest chunk, so that any claim finds room for it."""
PARTS_MAX: Final = 4096
"""2 GiB of serialised sets: 2^34 numbers at one bit each."""

_LAYOUT: Final = 1
_ROLE_HEAD: Final = 1
_ROLE_PART: Final = 2
_EXACT: Final = 1
_HEAD: Final = struct.Struct("<BBBxI32s32sQQI4x")
_PART: Final = struct.Struct("<BB2x")


@dataclass(frozen=True, slots=True)
class BitmapHead:
    """`root` is the manifest that the numbers belong to. `parent`: the head of the bitmap this one starts from.

    `depth`: 0 for a full bitmap (no parent), else one more than the parent's. `exact`: nothing but what is reachable
    is in it. `added_bytes` and `removed_bytes` are the lengths of the two sets, which follow each other in `inline`,
    or in the records `parts`.
    """

    root: RecordId
    parent: RecordId | None
    exact: bool
    depth: int
    added_bytes: int
    removed_bytes: int
    parts: tuple[RecordId, ...] = ()
    inline: bytes = b""


@dataclass(frozen=True, slots=True)
class BitmapPart:
    """A stretch of the serialised sets."""

    data: bytes


def encode_head(head: BitmapHead) -> bytes:
    """The BITMAP payload of a head."""
    return b"".join((
        _HEAD.pack(
            _LAYOUT, _ROLE_HEAD, _EXACT if head.exact else 0, head.depth, head.root, head.parent or NO_ID,
            head.added_bytes, head.removed_bytes, len(head.parts),
        ),
        *head.parts,
        head.inline,
    ))  # fmt: skip


def encode_part(data: bytes) -> bytes:
    """The BITMAP payload of a part."""
    return _PART.pack(_LAYOUT, _ROLE_PART) + data


def decode_bitmap(payload: bytes, origin: RecordId) -> BitmapHead | BitmapPart:
    """Either kind of BITMAP payload. Raises DamagedError naming `origin`."""
    if len(payload) < _PART.size or payload[0] != _LAYOUT or payload[1] not in (_ROLE_HEAD, _ROLE_PART):
        raise _damaged(origin, "its layout is unknown")
    if payload[1] == _ROLE_PART:
        return BitmapPart(payload[_PART.size :])
    if len(payload) < _HEAD.size:
        raise _damaged(origin, "it is cut off")
    _, _, flags, depth, root, parent, added, removed, count = _HEAD.unpack_from(payload)
    ids_end = _HEAD.size + count * RECORD_ID_BYTES
    if flags & ~_EXACT or depth > CHAIN_MAX or (depth == 0) is not (parent == NO_ID):
        raise _damaged(origin, "its chain or flags are impossible")
    if count > PARTS_MAX or ids_end > len(payload) or added + removed > PARTS_MAX * PART_BYTES_MAX:
        raise _damaged(origin, "its lengths are impossible")
    inline = payload[ids_end:]
    if len(inline) != (0 if count else added + removed):
        raise _damaged(origin, "its lengths contradict each other")
    parts = tuple(RecordId(payload[at : at + RECORD_ID_BYTES]) for at in range(_HEAD.size, ids_end, RECORD_ID_BYTES))
    return BitmapHead(
        RecordId(root),
        None if depth == 0 else RecordId(parent),
        bool(flags & _EXACT),
        depth,
        added,
        removed,
        parts,
        inline,
    )


def pack_numbers(numbers: BitMap64) -> bytes:
    """The portable serialisation of `numbers`; nothing at all for an empty set."""
    if not numbers:
        return b""
    compact = numbers.copy()
    compact.run_optimize()
    return compact.serialize()


def unpack_numbers(data: bytes, origin: RecordId) -> BitMap64:
    """The inverse of `pack_numbers`. Raises DamagedError naming `origin`."""
    if not data:
        return BitMap64()
    try:
        return BitMap64.deserialize(data)
    except ValueError as error:
        raise _damaged(origin, "its numbers cannot be taken apart") from error


def split_parts(data: bytes) -> Sequence[bytes]:
    """`data` in pieces of at most PART_BYTES_MAX."""
    return [data[at : at + PART_BYTES_MAX] for at in range(0, len(data), PART_BYTES_MAX)]


def _damaged(origin: RecordId, what: str) -> DamagedError:
    return DamagedError(f"Record {origin.hex()} (a bitmap) is damaged: {what}.")
