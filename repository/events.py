"""The ring of events on disk: what `status` tells later. Never an error to anybody: events are told best-effort."""

import logging
import threading
from collections.abc import Mapping
from typing import Final

from repository.errors import BallastError
from repository.format.events import (
    CELL_BYTES,
    CELLS,
    EVENTS_BYTES,
    Event,
    Field,
    cell_offset,
    decode_event,
    encode_event,
)
from repository.ports import Clock
from repository.storage.volume import FileHandle, Volume

log = logging.getLogger(__name__)

EVENTS_FILE: Final = "events"


class EventRing:
    """Events of one repository, the last 256 of them. Thread safe."""

    def __init__(self, handle: FileHandle, seed: int, clock: Clock, *, writable: bool) -> None:
        self._handle = handle
        self._seed = seed
        self._clock = clock
        self._writable = writable
        self._lock = threading.Lock()
        self._events = self._read()

    @classmethod
    def create(cls, volume: Volume) -> None:
        """Make the file, really written."""
        with volume.create(EVENTS_FILE) as handle:
            handle.pwrite(bytes(EVENTS_BYTES), 0)
            handle.fsync()

    @classmethod
    def open(cls, volume: Volume, seed: int, clock: Clock, *, writable: bool) -> "EventRing":
        """Read what is there."""
        return cls(volume.open(EVENTS_FILE, writable=writable), seed, clock, writable=writable)

    def _read(self) -> list[Event]:
        data = self._handle.pread(EVENTS_BYTES, 0)
        cells = (data[start : start + CELL_BYTES] for start in range(0, len(data), CELL_BYTES))
        found = [event for cell in cells if (event := decode_event(cell, self._seed)) is not None]
        return sorted(found, key=lambda event: event.serial)

    def events(self) -> list[Event]:
        """Oldest first."""
        with self._lock:
            return list(self._events)

    def add(self, name: str, fields: Mapping[str, Field]) -> None:
        """Keep an event. Not waited for: it is durable with the next sync of anything, and its loss harms nobody."""
        with self._lock:
            serial = self._events[-1].serial + 1 if self._events else 1
            event = Event(serial, self._clock.now_ns(), name, dict(fields))
            self._events = [*self._events, event][-CELLS:]
            if not self._writable:
                return
            try:
                self._handle.pwrite(encode_event(event, self._seed), cell_offset(serial))
            except BallastError as error:
                log.warning("events.not_written", extra={"event": name, "error": str(error)})

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()
