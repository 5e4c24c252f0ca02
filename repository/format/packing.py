"""Taking payloads apart within their bounds, and byte planes. Pure.

Rows of fixed width are stored as *byte planes*: the first byte of every row, then the second byte of every row,
and so on. Neighbouring rows resemble each other column by column, so zstd squeezes planes far better than rows;
one numpy transposition turns one form into the other, and a single row is then one `struct.unpack_from`.
"""

import struct
from typing import Final, NoReturn

import numpy as np

from repository.errors import DamagedError
from repository.ids import NO_ID, RECORD_ID_BYTES, RecordId

SIZE_MAX_BYTES: Final = (1 << 63) - 1
"""Largest file size and largest offset: off_t is signed."""
U64_ROW: Final = struct.Struct("<Q")
U16_ROW: Final = struct.Struct("<H")

_NO_ID: Final = bytes(RECORD_ID_BYTES)


def refuse(origin: RecordId, what: str) -> NoReturn:
    """Raises the DamagedError that names record `origin`."""
    raise DamagedError(f"Record {origin.hex()} is damaged: {what}.")


class Cursor:
    """Takes a payload apart from front to back. Every step raises DamagedError where bytes are missing."""

    __slots__ = ("_at", "_payload", "origin")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        self.origin = origin
        self._payload = payload
        self._at = 0

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        start = self._at
        self._at = start + length
        if self._at > len(self._payload):
            refuse(self.origin, "it is cut off")
        return self._payload[start : self._at]

    def head(self, form: struct.Struct) -> tuple[int, ...]:
        """The next bytes as the integers of `form`."""
        return form.unpack(self.take(form.size))

    def rows(self, count: int, width: int) -> bytes:
        """The next `count` * `width` bytes, turned from planes into rows."""
        return rows_of(self.take(count * width), width)

    def finish(self) -> None:
        """Raises DamagedError where bytes are left over."""
        if self._at != len(self._payload):
            refuse(self.origin, "bytes are left over")


def planes_of(rows: bytes, width: int) -> bytes:
    """Byte planes of `rows`, each `width` bytes."""
    if len(rows) <= width or width == 1:
        return rows
    return np.frombuffer(rows, np.uint8).reshape(-1, width).T.tobytes()


def rows_of(planes: bytes, width: int) -> bytes:
    """The inverse of `planes_of`."""
    if len(planes) <= width or width == 1:
        return planes
    return np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes()


def id_at(ids: bytes, index: int) -> RecordId:
    """The record id number `index` in a run of ids."""
    return RecordId(ids[index * RECORD_ID_BYTES : (index + 1) * RECORD_ID_BYTES])


def id_or_none(ids: bytes, index: int) -> RecordId | None:
    """As `id_at`; None where NO_ID stands."""
    found = id_at(ids, index)
    return None if found == NO_ID else found


def split_ids(ids: bytes) -> list[RecordId]:
    """All ids of a run that are not NO_ID."""
    found = [RecordId(ids[at : at + RECORD_ID_BYTES]) for at in range(0, len(ids), RECORD_ID_BYTES)]
    return [one for one in found if one != NO_ID] if _NO_ID in ids else found
