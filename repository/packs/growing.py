"""Growth of packs: segments, new packs, and the spare one; the only place that allocates room for records.

Owner of the invariant that pack indexes are given in ascending order: whatever is written later lies in a later pack,
but for the spare one, whose index counts as that of an open pack all the time (`journal_floor`).
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from repository.errors import BallastError, NoSpaceError, SyncFailedError, VolumeError
from repository.format.config import Config
from repository.format.pack import (
    DIRECTORY_FIXED_BYTES,
    PACK_HEADER_BYTES,
    Stream,
    encode_pack_header,
    pack_directory_path,
    pack_path,
)
from repository.ids import PACK_INDEX_MAX, PackIndex
from repository.ledger import Ledger
from repository.packs.openpack import OpenPack
from repository.packs.openpacks import OpenPacks
from repository.packs.spare import inherit, make_stub, spare_bytes
from repository.packs.table import PackTable
from repository.ports import Clock
from repository.storage.room import RoomProbe
from repository.storage.volume import FileHandle, Volume

_log: Final = logging.getLogger(__name__)


class Unguarded(threading.local):
    """Growth of one thread that nobody is asked about, and how much it was since the outermost began."""

    depth = 0
    allocated_bytes = 0


class PackGrower:
    """Makes room in the open packs. Thread safe: `lock` is held over each allocation, the state lock never is."""

    def __init__(
        self,
        *,
        volume: Volume,
        config: Config,
        ledger: Ledger,
        packs: OpenPacks,
        table: PackTable,
        clock: Clock,
        state_lock: threading.Lock,
    ) -> None:
        self._volume = volume
        self._config = config
        self._ledger = ledger
        self._packs = packs
        self._table = table
        self._clock = clock
        self._state = state_lock
        self._probe = RoomProbe(volume)
        self.lock: Final = threading.Lock()
        self._next_pack = PackIndex(0)
        """The index of the next file; the stub, if there is one, comes before it."""
        self._stub: PackIndex | None = None
        self.guard: Callable[[int], None] | None = None
        """Asked before so many bytes are allocated for growth; raises NoSpaceError to refuse."""
        self._unguarded: Final = Unguarded()
        self.grown_bytes = 0
        """Allocated for growth so far."""

    def adopt(self, empty: Iterable[PackIndex], remove: Callable[[PackIndex], None]) -> None:
        """Begin, once all packs are known: take over what earlier processes made beforehand.

        `empty` hold no record, and go through `remove` where they are of no use.
        """
        found = inherit(self._volume, self._config, empty, self._table.highest, remove)
        self._stub = found.stub
        self._next_pack = PackIndex(self._table.highest + 1)
        if found.spare is None:
            return
        pack, handle, size, created_ns = found.spare
        spare = OpenPack(pack, Stream.BULK, handle, size, created_ns)
        spare.marked_spare, spare.dirty = True, False
        with self._state:
            self._take_in(spare)
            self._packs.spare = spare

    @contextmanager
    def without_guard(self) -> Iterator[Unguarded]:
        """What this thread allocates meanwhile is not asked about, but counted."""
        if not self._unguarded.depth:
            self._unguarded.allocated_bytes = 0
        self._unguarded.depth += 1
        try:
            yield self._unguarded
        finally:
            self._unguarded.depth -= 1

    # -- growing -----------------------------------------------------------------------------------------------

    def extend(self, stream: Stream, cost: int) -> None:
        """Make a pack of `stream` have room for a record of `cost`. Raises NoSpaceError, VolumeError."""
        with self.lock:
            while True:
                with self._state:
                    if self._packs.find(stream, cost, anywhere=False) is not None:
                        return
                self._add_segment(stream, cost)

    def make_room(self, missing: Callable[[], int], stream: Stream) -> None:
        """Allocate, for `stream` by preference, until `missing()` is 0. Raises NoSpaceError, VolumeError."""
        with self.lock:
            while (needed := missing()) > 0:
                self._add_segment(stream, min(needed, self._ledger.slack_bytes))

    def add_pack(self, stream: Stream) -> None:
        """One more pack for `stream`; the guard is not asked. With `lock` held. Raises NoSpaceError, VolumeError."""
        with self.without_guard():
            self._add_pack(stream, self._ledger.slack_bytes)

    def _add_segment(self, stream: Stream, cost: int) -> None:
        self._packs.check_writable()
        packs = self._packs.streams[stream]
        newest = packs[-1] if packs else None
        if newest is None or not newest.can_grow(self._config.pack_bytes, self._ledger):
            self._add_pack(stream, cost)
            return
        more = min(self._config.segment_bytes, self._config.pack_bytes - newest.allocated_bytes)
        self._ask(more)
        self._lengthen(newest, more)

    def _lengthen(self, pack: OpenPack, more: int) -> None:
        self._allocate(pack.handle, pack.allocated_bytes, more)
        with self._state:
            before = pack.usable(self._ledger)
            pack.allocated_bytes += more
            pack.dirty = True
            self._ledger.add_room(pack.usable(self._ledger) - before)

    def _ask(self, nbytes: int) -> None:
        if self.guard is not None and not self._unguarded.depth:
            self.guard(nbytes)

    def _add_pack(self, stream: Stream, cost: int) -> None:
        """A new pack becomes the spare one, and the spare one goes to `stream`.

        Where there is none, or another one does not fit, the new pack is for `stream` and as small as can be.
        """
        with self._state:
            spare = self._packs.spare
            rotates = spare is not None and spare.room(self._ledger) >= cost
        segment = self._config.segment_bytes
        smallest = max(1, -(-(PACK_HEADER_BYTES + DIRECTORY_FIXED_BYTES + cost) // segment)) * segment
        whole = spare_bytes(self._config)
        if rotates:
            try:
                self._ask(whole)
                self._rotate(stream, self._create(whole, Stream.BULK, spare=True))
                self._make_stub()
                return
            except NoSpaceError:
                if smallest >= whole:
                    raise
        self._ask(smallest)
        created = self._create(smallest, stream, spare=False)
        with self._state:
            self._take_in(created)
            full = self._append(stream, created)
        _start_writing(full)
        self._make_stub()

    def _rotate(self, stream: Stream, created: OpenPack) -> None:
        with self._state:
            self._take_in(created)
            full: list[OpenPack] = []
            if self._packs.spare is not None:  # else somebody needed it just now
                full = self._append(stream, self._packs.use_spare(stream))
            self._packs.spare = created
        _start_writing(full)

    def _take_in(self, pack: OpenPack) -> None:
        self._packs.know(pack)
        self._ledger.add_room(pack.usable(self._ledger))

    def _append(self, stream: Stream, pack: OpenPack) -> list[OpenPack]:
        """`pack` is the newest of `stream`; returns those that retire, as they are full. Under the state lock."""
        packs = self._packs.streams[stream]
        if pack not in packs:
            packs.append(pack)
        full = [one for one in packs if one is not pack and one.usable(self._ledger) == 0]
        for one in full:
            self._packs.retire(one)
        return full

    # -- files -------------------------------------------------------------------------------------------------

    def _create(self, size: int, stream: Stream, *, spare: bool) -> OpenPack:
        """A new pack of `size` bytes: the stub, or a new file. Raises NoSpaceError: nothing is left then."""
        if self._stub is not None and not self._volume.exists(pack_path(self._stub)):
            self._stub = None  # somebody removed it
        pack, is_stub = (self._next_pack, False) if self._stub is None else (self._stub, True)
        if pack > PACK_INDEX_MAX:
            raise VolumeError("This repository has used up its 4,294,967,296 packs.")
        path, now_ns = pack_path(pack), self._clock.now_ns()
        try:
            handle = self._volume.open(path, writable=True) if is_stub else self._volume.create(path)
        except NoSpaceError as error:
            error.needed_bytes = size
            raise
        try:
            self._allocate(handle, 0, size)
            handle.pwrite(encode_pack_header(self._config, pack, stream, now_ns, spare=spare), 0)
        except BallastError as error:
            if not is_stub:
                handle.close()
                self._volume.unlink(path)
            elif isinstance(error, NoSpaceError):
                handle.truncate(PACK_HEADER_BYTES)
            else:
                self._stub = None  # nobody knows what it is now
            raise
        if is_stub:
            self._stub = None
        else:
            self._next_pack = PackIndex(pack + 1)
        with self._state:
            self._packs.unsynced_dirs.add(pack_directory_path(pack))
        created = OpenPack(pack, stream, handle, size, now_ns)
        created.marked_spare = spare
        return created

    def _make_stub(self) -> None:
        """A convenience: without room nothing is tried, so that no name is made for it either."""
        pack = self._next_pack
        if self._stub is not None or pack > PACK_INDEX_MAX or self._room_for(PACK_HEADER_BYTES) < PACK_HEADER_BYTES:
            return
        if make_stub(self._volume, self._config, pack, self._clock.now_ns()):
            self._stub = pack
            self._next_pack = PackIndex(pack + 1)
            with self._state:
                self._table.highest = max(self._table.highest, pack)
                self._packs.unsynced_dirs.add(pack_directory_path(pack))

    def _allocate(self, handle: FileHandle, offset: int, length: int) -> None:
        try:
            handle.allocate(offset, length)
            if self._unguarded.depth:
                self._unguarded.allocated_bytes += length
            else:
                self.grown_bytes += length
        except SyncFailedError as error:  # it may have been about records, which nobody would hear of again
            self._packs.fail(error)
            raise

    def _room_for(self, nbytes: int) -> int:
        """`nbytes`, or as much of that as the volume says it has, root's share included."""
        try:
            room = self._probe.allocatable_bytes()
            if room < nbytes and self._volume.frees_late:
                self._volume.syncfs()
                room = self._probe.allocatable_bytes()
        except VolumeError:
            return 0
        return min(room, nbytes)


def _start_writing(full: list[OpenPack]) -> None:
    for pack in full:
        pack.handle.start_writeback(0, pack.end_offset)
