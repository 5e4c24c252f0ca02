"""Appending to packs: streams of open packs, growth by segments, sealing, durability.

Locks, in the order in which they may be taken: `_sync_lock` (held over fdatasync and sealing), `_grow_lock` (held
over allocation), the store's state lock (never held over a system call). The ledger's own lock is innermost.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from repository.codec import Codec
from repository.errors import BallastError, NoSpaceError, ReadOnlyError, SyncFailedError, VolumeError
from repository.format.config import Config
from repository.format.pack import (
    DIRECTORY_FIXED_BYTES,
    PACK_HEADER_BYTES,
    PackDirectory,
    Stream,
    encode_pack_header,
    pack_directory_path,
    pack_path,
)
from repository.format.record import Buffer, Place, RecordHeader, encode_header
from repository.ids import PACK_INDEX_MAX, PackIndex, RecordId, position_of
from repository.ledger import Ledger
from repository.packs.openpack import OpenPack
from repository.packs.seal import seal_file
from repository.packs.table import KnownPack, PackTable
from repository.ports import Clock
from repository.storage.volume import Volume

RETIRED_MAX: Final = 4
"""Full packs that wait for a sync to seal them (256 MiB): one more, and the put that filled it seals them first."""

_log: Final = logging.getLogger(__name__)


class Sealed(NamedTuple):
    """A pack that was just sealed, as the store's table of packs wants it."""

    directory: PackDirectory
    stream: Stream
    created_ns: int


class PackWriter:
    """Owner of every open pack. `sealed` is called, under no lock, for each pack once it is sealed."""

    def __init__(
        self,
        *,
        volume: Volume,
        config: Config,
        codec: Codec,
        ledger: Ledger,
        table: PackTable,
        clock: Clock,
        state_lock: threading.Lock,
        sealed: Callable[[Sealed], None],
    ) -> None:
        self._volume = volume
        self._config = config
        self._codec = codec
        self._ledger = ledger
        self._table = table
        self._clock = clock
        self._state = state_lock
        self._on_sealed = sealed
        self._sync_lock = threading.Lock()
        self._grow_lock = threading.Lock()
        self.next_pack = PackIndex(0)
        """The index of the next new pack; set once all packs are known."""
        self._streams: dict[Stream, list[OpenPack]] = {stream: [] for stream in Stream}
        self._retired: list[OpenPack] = []
        self._unsynced_dirs: set[str] = set()
        self._failed: BallastError | None = None
        self.guard: Callable[[int], None] | None = None
        """Asked before a segment of so many bytes is allocated for growth; raises NoSpaceError to refuse."""

    # -- placing: under the state lock -------------------------------------------------------------------------

    def find(self, stream: Stream, cost: int, *, anywhere: bool) -> OpenPack | None:
        """An open pack with room for `cost`: of `stream`, oldest first, or of any other where `anywhere`."""
        for pack in self._streams[stream]:
            if pack.room(self._ledger) >= cost:
                return pack
        if anywhere:
            for packs in self._streams.values():
                for pack in packs:
                    if pack.room(self._ledger) >= cost:
                        return pack
        return None

    def open_packs(self) -> list[OpenPack]:
        """Every pack that is not sealed yet. Under the state lock."""
        return [pack for packs in self._streams.values() for pack in packs] + self._retired

    # -- growing -----------------------------------------------------------------------------------------------

    def extend(self, stream: Stream, cost: int) -> None:
        """Make a pack of `stream` have room for a record of `cost`. Raises NoSpaceError, VolumeError."""
        with self._grow_lock:
            while True:
                with self._state:
                    if self.find(stream, cost, anywhere=False) is not None:
                        return
                self._add_segment(stream, cost)

    def make_room(self, missing: Callable[[], int], stream: Stream) -> None:
        """Allocate, for `stream` by preference, until `missing()` is 0. Raises NoSpaceError, VolumeError."""
        with self._grow_lock:
            while (needed := missing()) > 0:
                self._add_segment(stream, min(needed, self._ledger.slack_bytes))

    def _add_segment(self, stream: Stream, cost: int) -> None:
        self.check_writable()
        if self.guard is not None:
            self.guard(self._config.segment_bytes)
        packs = self._streams[stream]
        newest = packs[-1] if packs else None
        if newest is not None and newest.can_grow(self._config.pack_bytes, self._ledger):
            more = min(self._config.segment_bytes, self._config.pack_bytes - newest.allocated_bytes)
            newest.handle.fallocate(newest.allocated_bytes, more)
            with self._state:
                before = newest.usable(self._ledger)
                newest.allocated_bytes += more
                self._ledger.add_room(newest.usable(self._ledger) - before)
            return
        created = self._create(stream, cost)
        with self._state:
            self._know(created)
            full = [pack for pack in packs if pack.usable(self._ledger) == 0]
            self._streams[stream] = [pack for pack in packs if pack not in full] + [created]
            self._retired += full
            self._ledger.add_room(created.usable(self._ledger))
        for pack in full:
            pack.handle.start_writeback(0, pack.end_offset)

    def _create(self, stream: Stream, cost: int) -> OpenPack:
        if self.next_pack > PACK_INDEX_MAX:
            raise VolumeError("This repository has used up its 4,294,967,296 packs.")
        pack = self.next_pack
        path = pack_path(pack)
        now_ns = self._clock.now_ns()
        segment = self._config.segment_bytes
        needed = PACK_HEADER_BYTES + DIRECTORY_FIXED_BYTES + cost
        allocated = max(segment, -(-needed // segment) * segment)
        handle = self._volume.create(path)
        try:
            handle.fallocate(0, allocated)
            handle.pwrite(encode_pack_header(self._config, pack, stream, now_ns), 0)
        except BallastError:
            handle.close()
            self._volume.unlink(path)
            raise
        self.next_pack = PackIndex(pack + 1)
        with self._state:
            self._unsynced_dirs.add(pack_directory_path(pack))
        return OpenPack(pack, stream, handle, allocated, now_ns)

    def _know(self, pack: OpenPack) -> None:
        """From now on the pack is one of the repository's. Under the state lock."""
        self._table.add(
            KnownPack(
                index=pack.pack,
                sealed=False,
                records=0,
                stream=pack.stream,
                created_ns=pack.created_ns,
                written_ns=0,
                columns=pack,
            )
        )

    # -- writing -----------------------------------------------------------------------------------------------

    def write(self, pack: OpenPack, records: list["Placed"]) -> None:
        """Write placed records of one pack: one pwritev for each run without a gap."""
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

    def now_ns(self) -> int:
        """The clock that packs are dated by."""
        return self._clock.now_ns()

    def check_writable(self) -> None:
        """Raise ReadOnlyError after a failed write or sync: only a new open, which scans again, leaves that."""
        if self._failed is not None:
            raise ReadOnlyError(f"Writing has stopped: {self._failed}")

    @property
    def failed(self) -> bool:
        return self._failed is not None

    def fail(self, error: BallastError) -> None:
        """Refuse every further write."""
        if self._failed is None:
            self._failed = error
            _log.error("store.failed", extra={"reason": str(error)})

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
        if len(self._retired) > RETIRED_MAX:
            with self._sync_lock:
                self._seal_retired()

    def _sync(self) -> None:
        if self._failed is not None:
            raise SyncFailedError(f"Writing has stopped: {self._failed}")
        with self._state:
            packs = [pack for pack in self.open_packs() if pack.dirty]
            waiting = [batch for pack in packs for batch in pack.batches]
            directories, self._unsynced_dirs = self._unsynced_dirs, set()
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
            self.fail(error)
            if isinstance(error, SyncFailedError):
                raise
            raise SyncFailedError(str(error)) from error

    def _seal_retired(self) -> None:
        while self._retired and not self.failed:
            self._seal(self._retired[0])

    def seal_open(self) -> None:
        """Seal every open pack whose room no claim needs (allocating other room for claims where that works)."""
        with self._sync_lock:
            self._sync()
            with self._grow_lock:
                self._retire_all()
            self._seal_retired()

    def _retire_all(self) -> None:
        with self._state:
            packs = [pack for packs in self._streams.values() for pack in packs if len(pack)]
            room = sum(pack.usable(self._ledger) for pack in packs)
            if self._ledger.try_remove_room(room):
                for pack in packs:
                    self._streams[pack.stream].remove(pack)
                self._retired += packs
                return
        # Claims rest on these packs: give them other room first. What does not fit stays open.
        for pack in packs:
            try:
                self._replace(pack)
            except NoSpaceError:
                _log.warning("pack.not_sealed", extra={"pack": pack.pack})

    def _replace(self, pack: OpenPack) -> None:
        while True:
            with self._state:
                if self._ledger.try_remove_room(pack.usable(self._ledger)):
                    self._streams[pack.stream].remove(pack)
                    self._retired.append(pack)
                    return
            created = self._create(pack.stream, self._ledger.slack_bytes)
            with self._state:
                self._know(created)
                self._streams[pack.stream].append(created)
                self._ledger.add_room(created.usable(self._ledger))

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
            name_is_new = name in self._unsynced_dirs
            self._unsynced_dirs.discard(name)
        try:
            if name_is_new:  # whoever finds the pack sealed takes it for durable
                self._volume.fsync_dir(name)
            seal_file(pack.handle, self._codec, directory, pack.end_offset, self._config.seed)
            pack.handle.fdatasync()
        except BallastError as error:
            self.fail(error)
            raise
        self._on_sealed(Sealed(directory, pack.stream, pack.created_ns))
        with self._state:
            self._retired.remove(pack)

    def close(self) -> None:
        """Make everything durable, seal every pack that holds records and remove those that hold none."""
        with self._sync_lock:
            if not self.failed:
                self._sync()
                with self._state:
                    packs = [pack for packs in self._streams.values() for pack in packs]
                    self._streams = {stream: [] for stream in Stream}
                    self._retired += [pack for pack in packs if len(pack)]
                self._seal_retired()
                for pack in packs:
                    if not len(pack):
                        self._volume.unlink(pack_path(pack.pack))
                        with self._state:
                            self._table.drop(pack.pack)
            for pack in self.open_packs():
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
