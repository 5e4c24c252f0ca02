"""Entries of the ring of events as bytes. Pure.

An event is what `status` tells later about deletions, collections and recoveries: a name and a few fields. The file
is a ring of fixed cells, overwritten in place; a cell stands by itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import xxhash

from repository.units import KIB

CELL_BYTES: Final = 4 * KIB
"""One page, so that a torn write costs one event."""
CELLS: Final = 256
"""Events kept: a year of daily recoveries fits."""
EVENTS_BYTES: Final = CELLS * CELL_BYTES
_MAGIC: Final = b"BEVT"
_HEAD = struct.Struct("<4sIQq")
_CHECKSUM = struct.Struct("<Q")
TEXT_BYTES_MAX: Final = CELL_BYTES - _HEAD.size - _CHECKSUM.size

Field = str | int | float | bool | None | list[str]
"""What a field of an event may be: whatever JSON tells apart without nesting."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling later. `name` is a constant like `collect.done`; `serial` counts up from 1."""

    serial: int
    time_ns: int
    name: str
    fields: Mapping[str, Field]


def cell_offset(serial: int) -> int:
    """Byte offset in the file of the cell of event `serial`."""
    return (serial % CELLS) * CELL_BYTES


def encode_event(event: Event, seed: int) -> bytes:
    """One cell. Fields that do not fit are left out, the longest first, and `cut` says so."""
    fields = dict(event.fields)
    text = _text(event.name, fields)
    while len(text) > TEXT_BYTES_MAX and fields:
        longest = max(fields, key=lambda key: len(json.dumps(fields[key])))
        del fields[longest]
        if longest != "cut":
            fields["cut"] = True
        text = _text(event.name, fields)
    checked = (_HEAD.pack(_MAGIC, len(text), event.serial, event.time_ns) + text).ljust(
        CELL_BYTES - _CHECKSUM.size, b"\0"
    )
    return checked + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(checked, seed=seed))


def _text(name: str, fields: Mapping[str, Field]) -> bytes:
    return json.dumps({"name": name, "fields": dict(fields)}, sort_keys=True, separators=(",", ":")).encode()


def decode_event(cell: bytes, seed: int) -> Event | None:
    """The event in a cell; None for an empty, torn or foreign one."""
    if len(cell) != CELL_BYTES:
        return None
    checked = cell[: -_CHECKSUM.size]
    if xxhash.xxh3_64_intdigest(checked, seed=seed) != _CHECKSUM.unpack_from(cell, len(checked))[0]:
        return None
    magic, length, serial, time_ns = _HEAD.unpack_from(cell)
    if magic != _MAGIC or length > TEXT_BYTES_MAX:
        return None
    try:
        document: object = json.loads(cell[_HEAD.size : _HEAD.size + length])
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    name, fields = document.get("name"), document.get("fields")
    if not isinstance(name, str) or not isinstance(fields, dict):
        return None
    return Event(serial, time_ns, name, {str(key): _field(value) for key, value in fields.items()})


def _field(value: object) -> Field:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, list):
        return [str(item) for item in value]
    return str(value)
