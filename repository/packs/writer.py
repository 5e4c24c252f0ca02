"""Writing into open packs: appending, durability, sealing.

Locks, in the order in which they may be taken: `_sync_lock` (held over fdatasync and sealing), the grower's lock (held
over allocation), the store's state lock (never held over a system call). The ledger's own lock is innermost.
"""

import logging
import threading
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from repository.codec import Codec
from repository.errors import BallastError, NoSpaceError, SyncFailedError
from repository.format.config import Config
from repository.format.pack import (
    PackDirectory,
    Stream,
    encode_pack_header,
    pack_directory_path,
)
from repository.format.record import Buffer, Place, RecordHeader, encode_header
from repository.ids import PackIndex, RecordId, position_of
from repository.ledger import Ledger
from repository.packs.openpack import OpenPack
from repository.packs.openpacks import OpenPacks
from repository.packs.seal import seal_file
from repository.packs.sparing import SpareGrower
from repository.ports import Clock
from repository.storage.volume import Volume

RETIRED_MAX: Final = 4
"""Full packs that wait for a sync to seal them (256 MiB): one more, and the put that filled it seals them first."""
RETIRED_RECORDS: Final = 65_536
"""Their records, none of which is in a segment yet: each takes 0.3 KB of memory until then. So many, and the same."""

_log: Final = logging.getLogger(__name__)


class Sealed(NamedTuple):
    """A pack that was just sealed, as the store's table of packs wants it."""

    directory: PackDirectory
    stream: Stream
    created_ns: int


class PackWriter:
    """Writes into every open pack. `sealed` is called, under no lock, for each pack once it is sealed."""

    def __init__(
        self,
        *,
        volume: Volume,
        config: Config,
        codec: Codec,
        ledger: Ledger,
        packs: OpenPacks,
        grower: SpareGrower,
        clock: Clock,
        state_lock: threading.Lock,
        sealed: Callable[[Sealed], None],
    ) -> None:
        self._volume = volume
        self._config = config
        self._codec = codec
        self._ledger = ledger
        self._packs = packs
        self._grower = grower
        self._clock = clock
        self._state = state_lock
        self._on_sealed = sealed
        self._sync_lock = threading.Lock()

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self, pack: OpenPack, records: list["Placed"]) -> None:
        """Write placed records of one pack: one pwritev for each run without a gap."""
        self._unmark(pack)
        run: list[Buffer] = []
        start = end = records[0].place.offset
        for placed in records:
            if placed.place.offset != end:
                pack.handle.pwritev(run, start)
                run, start = [], placed.place.offset
            header = RecordHeader(
                placed.kind,
                placed.flags,
                position_of(placed.place.number),
                placed.place.raw_length,
                placed.place.stored_length,
                placed.id,
                placed.xxh3,
            )
            run.append(encode_header(header, self._codec.seed_at(pack.pack, placed.place.offset)))
            run.append(placed.buffer)
            end = placed.place.offset + placed.place.stored_length
        pack.handle.pwritev(run, start)

    def _unmark(self, pack: OpenPack) -> None:
        """A pack that was spare is one like any other from its first record on."""
        if pack.marked_spare:
            pack.handle.pwrite(encode_pack_header(self._config, pack.pack, pack.stream, pack.created_ns), 0)
            pack.marked_spare = False

    def now_ns(self) -> int:
        """The clock that packs are dated by."""
        return self._clock.now_ns()

    # -- durability --------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything durable whose put has returned. Raises SyncFailedError, once and for all.

        Concurrent callers share: who waits for the lock finds most of its work done.
        """
        with self._sync_lock:
            self._sync()
            self._seal_retired()

    def relieve(self) -> None:
        """Seal full packs when too many wait."""
        retired = self._packs.retired
        if len(retired) > RETIRED_MAX or (retired and sum(map(len, tuple(retired))) >= RETIRED_RECORDS):
            with self._sync_lock:
                self._seal_retired()

    def _sync(self) -> None:
        if self._packs.failed:
            raise SyncFailedError(f"Writing has stopped: {self._packs.failure}")
        with self._state:
            packs = [pack for pack in self._packs.all() if pack.dirty]
            waiting = [batch for pack in packs for batch in pack.batches]
            directories, self._packs.unsynced_dirs = self._packs.unsynced_dirs, set()
            for pack in packs:
                pack.dirty = False
        for batch in waiting:
            batch.done.wait()
        try:
            for pack in packs:
                pack.handle.fdatasync()
            for directory in sorted(directories):
                self._volume.fsync_dir(directory)
        except BallastError as error:
            self._packs.fail(error)
            if isinstance(error, SyncFailedError):
                raise
            raise SyncFailedError(str(error)) from error

    def _seal_retired(self) -> None:
        """One that finds no room (on volumes that copy what is written) stays open, and is tried again."""
        for pack in tuple(self._packs.retired):
            if self._packs.failed:
                return
            try:
                self._seal(pack)
            except NoSpaceError:
                _log.warning("pack.not_sealed", extra={"pack": pack.pack})

    def seal_open(self, *, allocate: bool = True, only: Collection[PackIndex] | None = None) -> None:
        """Seal every open pack (of `only`) whose room no claim needs; claims get other room with `allocate`, if any."""
        with self._sync_lock:
            self._sync()
            with self._grower.lock:
                self._retire_all(allocate=allocate, only=only)
            self._seal_retired()

    def _retire_all(self, *, allocate: bool, only: Collection[PackIndex] | None) -> None:
        with self._state:
            packs = [pack for packs in self._packs.streams.values() for pack in packs if len(pack)]
            packs = [pack for pack in packs if only is None or pack.pack in only]
            room = sum(pack.usable(self._ledger) for pack in packs)
            if self._ledger.try_remove_room(room):
                for pack in packs:
                    self._packs.retire(pack)
                return
        # Claims rest on these packs: give them other room first. What does not fit stays open.
        for pack in packs:
            try:
                self._replace(pack, allocate=allocate)
            except NoSpaceError:
                _log.warning("pack.not_sealed", extra={"pack": pack.pack})

    def _replace(self, pack: OpenPack, *, allocate: bool) -> None:
        while True:
            with self._state:
                if self._ledger.try_remove_room(pack.usable(self._ledger)):
                    self._packs.retire(pack)
                    return
            if not allocate:
                raise NoSpaceError("claims need the room of an open pack")
            self._grower.add_pack(pack.stream)

    def _seal(self, pack: OpenPack) -> None:
        """Seal one retired pack. Under the sync lock."""
        with self._state:
            waiting = list(pack.batches)
        for batch in waiting:
            batch.done.wait()
        with self._state:
            directory = pack.directory()
            pack.dirty = False
            name = pack_directory_path(pack.pack)
            name_is_new = name in self._packs.unsynced_dirs
            self._packs.unsynced_dirs.discard(name)
        try:
            if name_is_new:  # whoever finds the pack sealed takes it for durable
                self._volume.fsync_dir(name)
            self._unmark(pack)
            seal_file(pack.handle, self._codec, directory, pack.end_offset, self._config.seed)
            pack.handle.fdatasync()
            if pack.stream is Stream.BULK:
                pack.handle.wont_need()
        except NoSpaceError:
            raise
        except BallastError as error:
            self._packs.fail(error)
            raise
        self._on_sealed(Sealed(directory, pack.stream, pack.created_ns))
        with self._state:
            self._packs.retired.remove(pack)

    def close(self) -> None:
        """Make everything durable, seal every pack that holds records, leave a spare pack for the next process.

        On a full volume nothing of that needs room, and a spare pack that was not used is left as it is.
        """
        with self._sync_lock:
            if not self._packs.failed:
                self._sync()
                with self._state:
                    packs = [pack for packs in self._packs.streams.values() for pack in packs]
                    for pack in packs:
                        if len(pack):
                            self._packs.retire(pack)
                        else:
                            self._packs.streams[pack.stream].remove(pack)
                self._seal_retired()
                try:
                    self._grower.leave_spare([pack for pack in packs if not len(pack)])
                    self._sync()
                except BallastError as error:  # nothing that was acknowledged rests on it
                    _log.warning("headroom.not_left", extra={"reason": str(error)})
            for pack in self._packs.all():
                pack.handle.close()


class Placed(NamedTuple):
    """One record that has its place and is to be written there."""

    place: Place
    kind: int
    flags: int
    id: RecordId
    buffer: Buffer
    xxh3: int
    pack: OpenPack
