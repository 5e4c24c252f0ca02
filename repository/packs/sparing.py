"""The spare pack and the stub: making them whole, and leaving them to the next process.

No name is made for what cannot fit: the volume is asked for its room first.
"""

import logging
from typing import Final

from repository.errors import NoSpaceError
from repository.format.pack import PACK_HEADER_BYTES, Stream, encode_pack_header, pack_path
from repository.packs.growing import PackGrower
from repository.packs.openpack import OpenPack
from repository.packs.spare import spare_bytes
from repository.storage.volume import STAT_BLOCK_BYTES

PARTS: Final = range(16, 3, -1)
"""Sixteenths of a whole spare pack that are tried, one after the other, where it does not fit."""
PART_ALIGN_BYTES: Final = 4096

_log: Final = logging.getLogger(__name__)


class SpareGrower(PackGrower):
    """Grows packs, and looks after the spare one. Thread safe as its base."""

    def spare_allocated_bytes(self) -> int:
        """Blocks of the spare pack and of the stub. Raises VolumeError."""
        with self._state:
            spare = self._packs.spare
        blocks = 0 if spare is None else spare.handle.stat().st_blocks
        stub = self._stub
        if stub is not None and self._volume.exists(pack_path(stub)):
            blocks += self._volume.stat(pack_path(stub)).st_blocks
        return blocks * STAT_BLOCK_BYTES

    def make_headroom(self, wanted_bytes: int) -> bool:
        """Allocate what the headroom lacks to `wanted_bytes`; True when it is whole. The guard is not asked.

        Raises VolumeError, SyncFailedError; a full volume is no error.
        """
        with self.lock, self.without_guard():
            if self._packs.failed:
                return False
            try:
                self._make_spare()
                while self._ledger.standing() < wanted_bytes:
                    self._add_segment(Stream.BULK, self._ledger.slack_bytes)
            except NoSpaceError as error:
                _log.info("headroom.not_whole", extra={"nbytes": self._ledger.standing(), "reason": str(error)})
            self._make_stub()
            return self._ledger.standing() >= wanted_bytes

    def leave_spare(self, empty: list[OpenPack]) -> None:
        """At the end: see that there is a spare pack and a stub, if there is room.

        The largest of `empty`, which hold no record, may become it; the others are removed.
        """
        with self.lock, self.without_guard():
            if self._packs.spare is None and empty:
                chosen = max(empty, key=_room_bytes)
                empty.remove(chosen)
                self._make_spare_of(chosen)
            for pack in empty:
                self._volume.unlink(pack_path(pack.pack))
                with self._state:
                    self._table.drop(pack.pack)
            try:
                self._make_spare()
            except NoSpaceError as error:
                _log.info("headroom.not_whole", extra={"reason": str(error)})
            self._make_stub()

    def _make_spare_of(self, pack: OpenPack) -> None:
        whole = spare_bytes(self._config)
        if pack.allocated_bytes > whole:
            pack.handle.truncate(whole)
            pack.allocated_bytes = whole
        header = encode_pack_header(self._config, pack.pack, pack.stream, pack.created_ns, spare=True)
        pack.handle.pwrite(header, 0)
        pack.marked_spare = pack.dirty = True
        with self._state:
            self._packs.spare = pack

    def _make_spare(self) -> None:
        """Have a spare pack that is whole, or as large as it can be. Raises NoSpaceError where it is not whole.

        The volume is asked for its room first: no name is made for what cannot fit.
        """
        spare = self._packs.spare
        held = PACK_HEADER_BYTES if self._stub is not None else 0
        if spare is not None:
            held = spare.allocated_bytes
        whole = spare_bytes(self._config)
        if held >= whole:
            return
        room = self._room_for(whole - held)
        refused = None if room == whole - held else NoSpaceError("There is too little room for a spare pack.", whole)
        for part in PARTS:
            size = whole * part // 16 // PART_ALIGN_BYTES * PART_ALIGN_BYTES
            lacking = size - held
            if lacking <= 0:
                break
            if lacking > room:
                continue
            try:
                if spare is not None:
                    self._lengthen(spare, lacking)
                else:
                    created = self._create(size, Stream.BULK, spare=True)
                    with self._state:
                        self._take_in(created)
                        self._packs.spare = created
                break
            except NoSpaceError as error:
                refused = refused or error
        if refused is not None:
            raise refused


def _room_bytes(pack: OpenPack) -> int:
    return pack.allocated_bytes
