"""A pack that this process appends to: its room and the columns of its records, in memory."""

import threading
from array import array
from typing import Final

import numpy as np

from repository.format.pack import (
    DIRECTORY_FIXED_BYTES,
    DIRECTORY_ROW_BYTES,
    PACK_HEADER_BYTES,
    POSITIONS_MAX,
    PackDirectory,
    Stream,
)
from repository.format.record import Place
from repository.ids import RECORD_ID_BYTES, PackIndex, RecordId, number_of
from repository.ledger import Ledger
from repository.storage.volume import FileHandle


class Batch:
    """Records placed by one put and not yet written. Others who meet their ids wait for `done`."""

    __slots__ = ("done", "failed")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.failed = False


class OpenPack:
    """State of one open pack; every change happens under the store's state lock.

    `allocated_bytes` and `end_offset` count from the file's start. Invariant: what sealing needs always fits behind
    `end_offset` into what is allocated.
    """

    def __init__(
        self, pack: PackIndex, stream: Stream, handle: FileHandle, allocated_bytes: int, created_ns: int
    ) -> None:
        self.pack: Final = pack
        self.stream = stream
        self.handle: Final = handle
        self.created_ns: Final = created_ns
        self.allocated_bytes = allocated_bytes
        self.end_offset = PACK_HEADER_BYTES
        self.written_ns = created_ns
        self.batches: set[Batch] = set()
        self.dirty = True
        self.marked_spare = False
        """Whether the header on the volume says that this is a spare pack: to be taken back before the first record."""
        self._offset = array("I")
        self._stored = array("I")
        self._raw = array("I")
        self._kind = bytearray()
        self._flags = bytearray()
        self._ids = bytearray()

    def __len__(self) -> int:
        return len(self._offset)

    def room(self, ledger: Ledger) -> int:
        """What records may still cost here, in the ledger's unit."""
        count = len(self._offset)
        fixed = DIRECTORY_FIXED_BYTES + DIRECTORY_ROW_BYTES * count
        nbytes = self.allocated_bytes - self.end_offset - fixed
        return max(0, min(nbytes, (POSITIONS_MAX - count) * ledger.position_bytes))

    def usable(self, ledger: Ledger) -> int:
        """The part of the room that claims may count on."""
        return max(0, self.room(ledger) - ledger.slack_bytes)

    def can_grow(self, pack_bytes: int, ledger: Ledger) -> bool:
        """Whether another segment would give more room: neither full size nor short of positions."""
        spare_positions = POSITIONS_MAX - len(self._offset)
        return self.allocated_bytes < pack_bytes and self.room(ledger) < spare_positions * ledger.position_bytes

    def append(self, kind: int, flags: int, record_id: RecordId, raw: int, stored: int) -> Place:
        """Give the next place to a record. The caller has checked the room."""
        place = Place(number_of(self.pack, len(self._offset)), self.end_offset, stored, raw)
        self._offset.append(self.end_offset)
        self._stored.append(stored)
        self._raw.append(raw)
        self._kind.append(kind)
        self._flags.append(flags)
        self._ids += record_id
        self.end_offset += stored
        return place

    def void(self, position: int) -> None:
        """The record at `position` could not be written: its place stays empty."""
        self._kind[position] = 0

    def place(self, position: int) -> Place:
        return Place(
            number_of(self.pack, position), self._offset[position], self._stored[position], self._raw[position]
        )

    def id_at(self, position: int) -> RecordId:
        start = position * RECORD_ID_BYTES
        return RecordId(bytes(self._ids[start : start + RECORD_ID_BYTES]))

    def directory(self) -> PackDirectory:
        """A copy of the columns as they are now."""
        count = len(self._offset)
        return PackDirectory(
            pack=self.pack,
            written_ns=self.written_ns,
            offset=np.array(self._offset, np.uint32),
            stored=np.array(self._stored, np.uint32),
            raw=np.array(self._raw, np.uint32),
            kind=np.frombuffer(bytes(self._kind), np.uint8),
            flags=np.frombuffer(bytes(self._flags), np.uint8),
            ids=np.frombuffer(bytes(self._ids), np.uint8).reshape(count, RECORD_ID_BYTES),
        )
