"""The intent of one round of a collection as bytes. Pure.

The intent names places (packs, and byte ranges in packs), never ids: carrying it out again after a crash needs no
index, and changes nothing that the first time did not. It is overwritten in place; a torn one is none, because nothing
is freed before the whole of it is durable.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from repository.errors import DamagedError
from repository.ids import PackIndex
from repository.units import KIB

INTENT_BYTES: Final = 128 * KIB
"""Size of the file: one round frees up to about 8 GiB of 1 MiB ranges, and is written in one call."""
_MAGIC: Final = b"BINT"
_HEAD = struct.Struct("<4sHHQII")
_UNLINK = struct.Struct("<I")
_PUNCH = struct.Struct("<III")
_CHECKSUM = struct.Struct("<Q")
_FIXED_BYTES: Final = _HEAD.size + _CHECKSUM.size
FORMAT_VERSION: Final = 1
UNLINKS_MAX: Final = 4096
"""Packs unlinked in one round: 256 GiB of full packs."""
PUNCHES_MAX: Final = (INTENT_BYTES - _FIXED_BYTES - UNLINKS_MAX * _UNLINK.size) // _PUNCH.size
"""Ranges punched in one round: what fits beside the most unlinks."""


class Punch(NamedTuple):
    """Bytes `offset` up to `offset + length` of a sealed pack: a merged range of dead records, to the byte.

    Whole blocks of it are given back, what it has of other blocks becomes zeros: no header of a dead record survives.
    """

    pack: PackIndex
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Intent:
    """What one round does: packs to unlink, ranges to punch. Empty: nothing is under way."""

    serial: int = 0
    unlinks: tuple[PackIndex, ...] = ()
    punches: tuple[Punch, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.unlinks and not self.punches


def encode_intent(intent: Intent, seed: int) -> bytes:
    """The bytes to write at offset 0 (the rest of the file does not matter). Raises ValueError beyond the bounds."""
    if len(intent.unlinks) > UNLINKS_MAX or len(intent.punches) > PUNCHES_MAX:
        raise ValueError("an intent beyond its bounds")
    checked = b"".join(
        [
            _HEAD.pack(_MAGIC, FORMAT_VERSION, 0, intent.serial, len(intent.unlinks), len(intent.punches)),
            *[_UNLINK.pack(pack) for pack in intent.unlinks],
            *[_PUNCH.pack(*punch) for punch in intent.punches],
        ]
    )
    return checked + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(checked, seed=seed))


def decode_intent(data: bytes, seed: int) -> Intent | None:
    """The intent in `data`; None for a torn or foreign one.

    Raises DamagedError for a whole one of a later version: what it wants cannot be guessed.
    """
    if len(data) < _FIXED_BYTES:
        return None
    magic, version, _, serial, unlink_count, punch_count = _HEAD.unpack_from(data)
    if magic != _MAGIC or unlink_count > UNLINKS_MAX or punch_count > PUNCHES_MAX:
        return None
    punches_at = _HEAD.size + unlink_count * _UNLINK.size
    end = punches_at + punch_count * _PUNCH.size
    if len(data) < end + _CHECKSUM.size:
        return None
    if xxhash.xxh3_64_intdigest(data[:end], seed=seed) != _CHECKSUM.unpack_from(data, end)[0]:
        return None
    if version != FORMAT_VERSION:
        raise DamagedError(f"The intent has version {version}, which this Ballast does not know.")
    unlinks = tuple([PackIndex(row[0]) for row in _UNLINK.iter_unpack(data[_HEAD.size : punches_at])])
    rows = _PUNCH.iter_unpack(data[punches_at:end])
    return Intent(serial, unlinks, tuple([Punch(PackIndex(pack), offset, length) for pack, offset, length in rows]))
