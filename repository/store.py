"""The record store: records in and out, by id. Composed from packs, ledger and index; whole packs: `keeping.py`.

Two invariants meet here: an id that `put` has answered is readable and leased from that moment on, and no look-up
answers with a number that was condemned. Both rest on the state lock, under which places are given, look-up results
enter their lease, and numbers are condemned. It is never held over a system call.
"""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final, Self

from pyroaring import BitMap64

from repository.chunker import Chunker, is_zero
from repository.climbing import Climber
from repository.codec import Codec, Packed
from repository.errors import (
    BallastError,
    DamagedError,
    MissingRecordError,
    NoSpaceError,
    ReadOnlyError,
    VolumeError,
)
from repository.format.config import Config
from repository.format.pack import Stream
from repository.format.record import RAW_MAX_BYTES, Buffer, ChunkRef, Place, Record, RecordKind, Stored
from repository.headroom import Headroom
from repository.ids import PackIndex, RecordId, RecordNumber
from repository.index.index import Index
from repository.index.keeper import SegmentKeeper
from repository.keeping import PackKeeping
from repository.leases import Lease, LeaseTable
from repository.ledger import Claim, Ledger
from repository.packs.growing import Unguarded
from repository.packs.load import PackLoader
from repository.packs.openpacks import OpenPacks
from repository.packs.reader import PackReader, runs_of
from repository.packs.sparing import SpareGrower
from repository.packs.table import PackInfo, PackTable
from repository.packs.writer import PackWriter
from repository.ports import Clock
from repository.putting import Putter
from repository.shelf import PackShelf
from repository.still import StillReader
from repository.storage.calls import SystemClock
from repository.storage.volume import Volume

__all__ = ["Claim", "Lease", "PackInfo", "RecordStore"]

_log: Final = logging.getLogger(__name__)


class RecordStore(PackKeeping):
    """Records of one repository. Thread safe. Every method may block on I/O except `try_claim` and `forfeit`."""

    def __init__(self, volume: Volume, config: Config, *, writable: bool, clock: Clock) -> None:
        """Use `open`."""
        self.config: Final = config
        self.writable: Final = writable
        self._volume = volume
        self._codec = Codec(config.id_key, config.seed)
        self._chunker: Chunker | None = None
        """Made by the first `put_bytes`."""
        self._ledger = Ledger(config.pack_bytes, config.chunker.max_bytes)
        self._state = threading.Lock()
        self._leases = LeaseTable()
        self._table = PackTable()
        self._loader = PackLoader(volume, config, self._codec)
        self._index = Index(volume, self._table, self._loader, self._state)
        self._keeper = SegmentKeeper(volume, config.repository_id, self._table, self._index, self._state)
        self._reader = PackReader(volume, self._codec)
        self._shelf = PackShelf(
            volume=volume,
            table=self._table,
            index=self._index,
            keeper=self._keeper,
            loader=self._loader,
            reader=self._reader,
            state_lock=self._state,
            writable=writable,
        )
        self._packs = OpenPacks(self._ledger, self._table)
        self._grower = SpareGrower(
            volume=volume,
            config=config,
            ledger=self._ledger,
            packs=self._packs,
            table=self._table,
            clock=clock,
            state_lock=self._state,
        )
        self._writer = PackWriter(
            volume=volume,
            config=config,
            codec=self._codec,
            ledger=self._ledger,
            packs=self._packs,
            grower=self._grower,
            clock=clock,
            state_lock=self._state,
            sealed=self._shelf.sealed,
        )
        self.headroom: Final = Headroom(self._ledger, config, self._grower.make_headroom)
        self._climber = Climber()
        self._putter = Putter(
            codec=self._codec,
            ledger=self._ledger,
            index=self._index,
            packs=self._packs,
            grower=self._grower,
            writer=self._writer,
            headroom=self.headroom,
            climber=self._climber,
            state_lock=self._state,
        )

    @classmethod
    def open(
        cls,
        volume: Volume,
        config: Config,
        *,
        writable: bool,
        clock: Clock | None = None,
        rebuild_index: bool = False,
        caches: bool = True,
    ) -> Self:
        """Open the packs under `volume`. Where `writable`, packs that a dead process left open are sealed first.

        `rebuild_index` throws the index away and reads every pack's directory; `caches`: see `allow_caches`. Raises
        VolumeError, SyncFailedError.
        """
        store = cls(volume, config, writable=writable, clock=clock if clock is not None else SystemClock())
        store.allow_caches(caches)
        if rebuild_index and writable:
            store._keeper.clear()
        store._shelf.load()
        if writable:
            store._grower.adopt(store._shelf.empty, store._shelf.remove_empty)
            store.headroom.establish()
        return store

    def refresh(self) -> None:
        """For a store opened for reading beside a writer: see what was added and removed since.

        Raises VolumeError.
        """
        self._shelf.refresh()

    # -- claims and leases -------------------------------------------------------------------------------------

    def lease(self) -> Lease:
        """A new lease; what it holds is not collected."""
        return self._leases.open()

    def leased(self) -> BitMap64:
        """Numbers under any open lease."""
        return self._leases.union()

    def try_claim(self, nbytes: int, records: int) -> Claim | None:
        """Claim room that is allocated already; None where there is too little. Arithmetic only, never blocks."""
        return self._ledger.try_claim(nbytes, records)

    def claim(self, nbytes: int, records: int, *, climb: bool = True) -> Claim:
        """Claim room, allocating where needed, and climbing where that fails: see `on_no_space`.

        Raises NoSpaceError (at once without `climb`), ReadOnlyError, VolumeError.
        """
        self.check_writable()
        while True:
            claim = self._ledger.try_claim(nbytes, records)
            if claim is not None:
                return claim
            try:
                self._grower.make_room(lambda: self._ledger.missing(nbytes, records), Stream.BULK)
            except NoSpaceError as error:
                if not climb:
                    raise
                self._climber.climb(error)

    def claim_cost(self, nbytes: int, records: int) -> int:
        """What a claim for this much costs: the unit of `split`."""
        return self._ledger.claim_cost(nbytes, records)

    def merge(self, into: Claim, other: Claim) -> None:
        """`into` takes over what is left of `other`. Never blocks."""
        self._ledger.merge(into, other)

    def split(self, claim: Claim, cost: int) -> Claim:
        """A claim of its own for `cost` of what is left of `claim`. Never blocks."""
        return self._ledger.split(claim, cost)

    @property
    def grown_bytes(self) -> int:
        """What was allocated for growth since the opening, as far as the guard was asked."""
        return self._grower.grown_bytes

    def guard_growth(self, guard: Callable[[int], None]) -> None:
        """Have `guard(nbytes)` asked before each allocation of a segment; its NoSpaceError refuses growth."""
        self._grower.guard = guard

    def on_no_space(self, hook: Callable[[NoSpaceError], None] | None) -> None:
        """Have `hook(error)` called, under no lock of the store, by `claim` and `put` where room cannot be allocated.

        It returns when that may be tried again, or raises NoSpaceError, which goes to the caller.
        """
        self._climber.hook = hook

    def without_climbing(self) -> AbstractContextManager[None]:
        """What this thread cannot allocate meanwhile is refused at once: it is making room itself."""
        return self._climber.without_climbing()

    def closing(self, *, climb: bool = False) -> AbstractContextManager[None]:
        """What this thread puts meanwhile was acknowledged: ordinary room first, then (with `climb`) room that the hook
        makes, then the headroom."""
        return self._climber.closing(climb=climb)

    def without_guard(self) -> AbstractContextManager[Unguarded]:
        """What this thread allocates meanwhile does not ask the guard: recovery spends what it was lent. Counts it."""
        return self._grower.without_guard()

    def forfeit(self, claim: Claim) -> None:
        """Give back what is left of a claim. Never blocks."""
        self._ledger.forfeit(claim)

    # -- writing -----------------------------------------------------------------------------------------------

    def put(
        self, kind: RecordKind, payloads: Sequence[Buffer], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]:
        """Store each payload unless it is known; all their numbers are in `lease` when this returns.

        Written but not durable before `sync`. `claim` is drawn down, not forfeited; without one, or past its end,
        room is claimed here. Raises NoSpaceError, ReadOnlyError, VolumeError: then nothing is promised of the batch.
        """
        self.check_writable()
        if any(len(payload) > RAW_MAX_BYTES for payload in payloads):
            raise ValueError("a record's payload is longer than RAW_MAX_BYTES")
        ids = [self._codec.id_of(kind, payload) for payload in payloads]
        stored = self._putter.put(kind, ids, payloads, lease, claim)
        if self._keeper.due():
            self._keeper.tend(everything=False)
        return stored

    def put_packed(self, kind: RecordKind, packed: Sequence[Packed], lease: Lease) -> list[Stored]:
        """As `put`, of what was compressed elsewhere: ids and payloads are taken on trust.

        Raises as `put`, and UnpackedError where a record without a payload is not known: then put it with its bytes.
        """
        self.check_writable()
        stored = self._putter.put(kind, [one.id for one in packed], packed, lease, None)
        if self._keeper.due():
            self._keeper.tend(everything=False)
        return stored

    def known(self, ids: Sequence[RecordId]) -> list[bool]:
        """Which of these a put would find. Reads no record."""
        return [place is not None for place in self._index.find(ids, to_share=True)]

    def put_bytes(
        self, buffer: Buffer, *, final: bool, lease: Lease, claim: Claim | None = None
    ) -> tuple[list[ChunkRef], int]:
        """Cut `buffer` into chunks and store them; a chunk of zeros is a hole and stored nowhere.

        Returns the chunks in order and how many bytes they cover: all where `final`, else the caller keeps the tail
        and puts it in front of what follows. Raises as `put`.
        """
        chunker = self._chunker = self._chunker or Chunker(self.config.chunker)
        view = memoryview(buffer)
        data: list[Buffer] = []
        zero: list[bool] = []
        lengths = chunker.lengths(buffer, final=final)
        start = 0
        for length in lengths:
            piece = view[start : start + length]
            start += length
            zero.append(is_zero(piece))
            if not zero[-1]:
                data.append(piece)
        stored = iter(self.put(RecordKind.CHUNK, data, lease, claim))
        refs = [ChunkRef(length, None if hole else next(stored).id) for length, hole in zip(lengths, zero, strict=True)]
        return refs, start

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self, record_id: RecordId) -> Record:
        """The record with this id, verified: header, checksum, length, id.

        A damaged copy is remembered, so that the next put of the same bytes stores them anew; other copies are tried.
        Raises MissingRecordError, DamagedError, VolumeError.
        """
        self._putter.wait_for(record_id)
        places = self._index.candidates(record_id)
        if not places and not self.writable:
            self.refresh()
            places = self._index.candidates(record_id)
        failure: BallastError | None = None
        for place in places:
            try:
                return self._reader.read(place, record_id)
            except MissingRecordError as error:
                failure = failure or error
            except (DamagedError, VolumeError) as error:
                failure = error
                self._note_damage(place, error)
        if failure is not None:
            raise failure
        raise MissingRecordError(f"The record {record_id.hex()} is in no pack.")

    def _note_damage(self, place: Place, error: BallastError) -> None:
        _log.error("record.damaged", extra={"number": place.number, "reason": str(error)})
        with self._state:
            self._index.note_damaged(place.number)

    def read_at(self, place: Place) -> Record:
        """The record at `place`, verified, whatever its id. Raises MissingRecordError, DamagedError, VolumeError."""
        return self._reader.read(place, None)

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        """The records of `ids`, in their order; neighbours in a pack are read in one call. Raises as `read`."""
        return self.read_located(ids, self._index.find(ids, to_share=False))

    def read_located(self, ids: Sequence[RecordId], places: Sequence[Place | None]) -> list[Record]:
        """As `read_many`, of records that `locate` has found at `places`; one that lies there no more is looked for."""
        for record_id in ids:
            self._putter.wait_for(record_id)
        records: dict[int, Record] = {}
        for run in runs_of(places):
            wanted = [place for item in run if (place := places[item]) is not None]
            try:
                records.update(zip(run, self._reader.read_run(wanted, [ids[item] for item in run]), strict=True))
            except (DamagedError, MissingRecordError, VolumeError):
                continue  # one by one, below: other copies are tried, and what is damaged is told
        return [records[item] if item in records else self.read(ids[item]) for item in range(len(ids))]

    def prefetch(self, ids: Sequence[RecordId]) -> None:
        """Have the kernel read these records meanwhile, without waiting for it; a hint that is never an error."""
        with suppress(BallastError):
            self._reader.prefetch(self._index.find(ids, to_share=False))

    def copies(self, record_id: RecordId) -> list[Place]:
        """Every place where a record with this id lies: more than one where damage was healed by a later put."""
        return self._index.candidates(record_id)

    def copied(self, ids: Sequence[RecordId]) -> list[int]:
        """The positions of those of `ids` that may have several `copies`; every other has one."""
        return self._index.copied(ids)

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]:
        """Where each record lies; None where it is in no pack. Reads no record."""
        return self._index.find(ids, to_share=False)

    def find_numbers(self, ids: Sequence[RecordId]) -> list[RecordNumber | None]:
        """The numbers of what `locate` finds; much cheaper for thousands of ids."""
        return self._index.find_numbers(ids)

    def still(self) -> StillReader:
        """A reader for processes forked after this: files opened here are closed, as their numbers will be others'."""
        self._reader.close()
        return StillReader(PackReader(self._volume, self._codec), self._index)

    # -- durability --------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make durable what every returned put has written. Raises SyncFailedError: then writing is over for good."""
        self._writer.sync()

    @property
    def failed(self) -> bool:
        """Whether a write or sync has failed: reading goes on, writing is refused until the next open."""
        return self._packs.failed

    def fail(self, error: BallastError) -> None:
        """A sync failed elsewhere in the repository: writing is over here too."""
        self._packs.fail(error)

    def seal_open(self, *, allocate: bool = True, only: Collection[PackIndex] | None = None) -> None:
        """Make everything durable and seal the open packs (None: all), as far as claims allow.

        `allocate` False: claims get no other room, so a pack that they rest on stays open.
        """
        self.check_writable()
        self._writer.seal_open(allocate=allocate, only=only)

    def allow_caches(self, allowed: bool) -> None:
        """Whether index segments may be written and merged now; no while space is short."""
        self._keeper.allowed = allowed

    def tend(self) -> None:
        """Write index segments for all sealed packs and merge where there are many. Never raises for caches."""
        if self.writable:
            self._keeper.tend(everything=True)

    def close(self) -> None:
        """Make everything durable, seal what is open, write the index, let go of all files."""
        if self.writable:
            self._writer.close()
            if not self.failed:
                self._keeper.tend(everything=True)
                self._shelf.remove_stump()
        self._reader.close()

    def check_writable(self) -> None:
        """Raises ReadOnlyError where this was opened for reading, or a write or sync has failed."""
        if not self.writable:
            raise ReadOnlyError("The repository was opened for reading.")
        self._packs.check_writable()
