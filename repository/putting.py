"""Storing a batch of records: look up, compress what is new, give places, write.

Owner of the invariant that one id is stored once, by whichever thread gives it a place first; and that an answer is
leased from the moment it is looked up. Both hold because hits and places are settled under the state lock.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from repository.climbing import Climber
from repository.codec import Codec, Packed, Payload
from repository.errors import NoSpaceError, VolumeError
from repository.format.pack import Stream
from repository.format.record import HEADER_BYTES, Buffer, Place, RecordKind, Stored
from repository.headroom import Headroom
from repository.ids import PackIndex, RecordId, position_of
from repository.index.index import Index
from repository.leases import Lease
from repository.ledger import Claim, Ledger
from repository.packs.growing import PackGrower
from repository.packs.openpack import Batch, OpenPack
from repository.packs.openpacks import OpenPacks
from repository.packs.writer import PackWriter, Placed
from repository.units import KIB

BULK_MIN_BYTES: Final = 16 * KIB
"""Records from this stored length on go to BULK packs; smaller ones die together in packs of their own."""
NEVER_SHARED: Final = frozenset((RecordKind.JOURNAL,))
"""Each journal record has a place of its own, after those that it depends on."""


def stream_of(kind: RecordKind, stored_length: int) -> Stream:
    """Where a record belongs."""
    if stored_length >= BULK_MIN_BYTES:
        return Stream.BULK
    return Stream.SMALL if kind in (RecordKind.CHUNK, RecordKind.JOURNAL) else Stream.TREE


Goods = Buffer | Packed
"""A record to be stored: its plain bytes, or what others made of them."""


class UnpackedError(Exception):
    """A record came without its payload and isn't known (any more). Who puts the batch again finds what was stored."""


class _New(NamedTuple):
    """A payload that has to be stored, and its cost in the ledger's unit."""

    item: int
    payload: Payload
    cost: int


@dataclass(slots=True)
class _Run:
    """Records that are given places in one pack, one behind the other, while the state lock is held.

    `usable_before`: the pack's room when the run began; `first`: how many records of the batch had places then; `room`:
    what the pack has left at least, and `cost`: what the run took so far, in the ledger's unit (no record takes more
    than its cost).
    """

    pack: OpenPack
    stream: Stream
    usable_before: int
    first: int
    room: int
    cost: int = 0


@dataclass(slots=True)
class _Round:
    """One call of `put`. `results` and `waits` are by position in `ids`."""

    kind: RecordKind
    ids: Sequence[RecordId]
    goods: Sequence[Goods]
    lease: Lease
    claim: Claim
    results: dict[int, Stored] = field(default_factory=dict)
    waits: list[tuple[int, Batch]] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    batch: Batch = field(default_factory=Batch)

    @property
    def shared(self) -> bool:
        return self.kind not in NEVER_SHARED


class Putter:
    """Stores batches. Thread safe."""

    def __init__(
        self,
        *,
        codec: Codec,
        ledger: Ledger,
        index: Index,
        packs: OpenPacks,
        grower: PackGrower,
        writer: PackWriter,
        headroom: Headroom,
        climber: Climber,
        state_lock: threading.Lock,
    ) -> None:
        self._codec = codec
        self._ledger = ledger
        self._index = index
        self._packs = packs
        self._grower = grower
        self._writer = writer
        self._headroom = headroom
        self._climber = climber
        self._state = state_lock
        self._pending: dict[RecordId, Batch] = {}

    def wait_for(self, record_id: RecordId) -> None:
        """Return once `record_id` is not being written by a put."""
        batch = self._pending.get(record_id)
        if batch is not None:
            batch.done.wait()

    def put(
        self,
        kind: RecordKind,
        ids: Sequence[RecordId],
        goods: Sequence[Goods],
        lease: Lease,
        claim: Claim | None,
    ) -> list[Stored]:
        """See `RecordStore.put` and `put_packed`; `ids` are those of `goods`."""
        own = claim if claim is not None else Claim(0, 0, 0)
        this = _Round(kind, ids, goods, lease, own)
        try:
            if this.shared:
                self._look_up(this)
            first_of: dict[RecordId, int] = {}
            fresh: list[int] = []
            for item in range(len(ids)):
                if item not in this.results and (not this.shared or first_of.setdefault(ids[item], item) == item):
                    fresh.append(item)
            self._store(this, fresh)
        finally:
            if claim is None:
                self._ledger.forfeit(own)
        for item in range(len(ids)):
            if item not in this.results:
                this.results[item] = this.results[first_of[ids[item]]]._replace(new=False)
        for item, batch in this.waits:
            batch.done.wait()
            if batch.failed:
                this.results[item] = self.put(kind, [ids[item]], [goods[item]], lease, claim)[0]
        return [this.results[item] for item in range(len(ids))]

    def _look_up(self, this: _Round) -> None:
        places = self._index.find(this.ids, to_share=True)
        if any(places):
            with self._state:
                for item, place in enumerate(places):
                    if place is not None:
                        self._take_hit(this, item, place)

    def _take_hit(self, this: _Round, item: int, place: Place) -> bool:
        """Under the state lock: make a look-up's result a root, unless it was condemned meanwhile."""
        if not self._index.shareable(place.number):
            return False
        record_id = this.ids[item]
        this.lease.add(place.number)
        this.results[item] = Stored(record_id, place.number, place.raw_length, place.stored_length, new=False)
        batch = self._pending.get(record_id)
        if batch is not None and batch is not this.batch:
            this.waits.append((item, batch))
        return True

    def _store(self, this: _Round, fresh: list[int]) -> None:
        if not fresh:
            return
        packed = self._packed([this.goods[item] for item in fresh])
        news = [
            _New(item, payload, self._ledger.record_cost(HEADER_BYTES + len(payload.buffer)))
            for item, payload in zip(fresh, packed, strict=True)
        ]
        stream = stream_of(this.kind, HEADER_BYTES + len(news[0].payload.buffer))
        self._cover(this.claim, sum(new.cost for new in news), stream)
        try:
            self._place_all(this, news)
            self._write(this.placed)
        except BaseException:
            self._abandon(this)
            raise
        self._complete(this)
        self._writer.relieve()

    def _packed(self, goods: list[Goods]) -> list[Payload]:
        """What will be stored of each. Raises UnpackedError."""
        plain: list[Buffer] = []
        ready: list[Payload] = []
        for one in goods:
            if not isinstance(one, Packed):
                plain.append(one)
            elif one.payload is None:
                raise UnpackedError
            else:
                ready.append(one.payload)
        return self._codec.compress_many(plain) if plain else ready

    def _cover(self, claim: Claim, cost: int, stream: Stream) -> None:
        """Make `claim` worth `cost`: out of what is free, by allocating, by climbing, or out of the headroom."""
        while self._ledger.top_up(claim, cost) > 0:
            try:
                self._grower.make_room(lambda: self._ledger.top_up(claim, cost), stream)
            except NoSpaceError as error:
                try:
                    self._climber.climb(error)
                except NoSpaceError:
                    if not self._climber.may_draw or not self._headroom.top_up(claim, cost):
                        raise

    def _place_all(self, this: _Round, news: list[_New]) -> None:
        """Give every record a place: in its stream's packs, or where that cannot grow, wherever there is room."""
        done = 0
        anywhere = False
        while done < len(news):
            with self._state:
                done = self._settle(this, news, done, anywhere=anywhere)
            if done < len(news):
                stored_length = HEADER_BYTES + len(news[done].payload.buffer)
                try:
                    self._grower.extend(stream_of(this.kind, stored_length), news[done].cost)
                except NoSpaceError:
                    if anywhere:
                        raise
                    anywhere = True

    def _settle(self, this: _Round, news: list[_New], done: int, *, anywhere: bool) -> int:
        """Under the state lock: a place for each from number `done` on, or the one another thread just gave it.

        Returns the number of the first for which there is no room. What neighbours in a pack take is settled with the
        ledger and the lease once for all of them.
        """
        run: _Run | None = None
        try:
            while done < len(news):
                item, payload, cost = news[done]
                record_id = this.ids[item]
                if this.shared:
                    known = self._index.peek(record_id)
                    if known is not None and self._take_hit(this, item, known):
                        done += 1
                        continue
                stored_length = HEADER_BYTES + len(payload.buffer)
                stream = stream_of(this.kind, stored_length)
                if run is None or run.stream is not stream or run.room < cost:
                    self._account(this, run)
                    pack = self._packs.find(stream, cost, anywhere=anywhere)
                    if pack is None:
                        run = None
                        return done
                    run = _Run(pack, stream, pack.usable(self._ledger), len(this.placed), pack.room(self._ledger))
                goods = this.goods[item]
                raw_length = goods.raw_length if isinstance(goods, Packed) else len(goods)
                place = run.pack.append(this.kind, payload.flags, record_id, raw_length, stored_length)
                run.cost += cost
                run.room -= cost
                self._index.insert(record_id, place.number)
                self._pending[record_id] = this.batch
                this.placed.append(
                    Placed(place, this.kind, payload.flags, record_id, payload.buffer, payload.xxh3, run.pack)
                )
                this.results[item] = Stored(record_id, place.number, raw_length, stored_length, new=True)
                done += 1
        finally:
            self._account(this, run)
        return done

    def _account(self, this: _Round, run: _Run | None) -> None:
        """Under the state lock: what the records of a run took."""
        if run is None or not run.cost:
            return
        pack = run.pack
        self._ledger.spend(this.claim, run.cost, run.usable_before - pack.usable(self._ledger))
        run.cost = 0
        pack.dirty = True
        pack.batches.add(this.batch)
        this.lease.update([placed.place.number for placed in this.placed[run.first :]])

    def _write(self, placed: list[Placed]) -> None:
        by_pack: dict[PackIndex, list[Placed]] = {}
        for record in placed:
            by_pack.setdefault(record.pack.pack, []).append(record)
        for records in by_pack.values():
            try:
                self._writer.write(records[0].pack, records)
            except VolumeError as error:
                self._packs.fail(error)
                raise

    def _complete(self, this: _Round) -> None:
        now_ns = self._writer.now_ns()
        with self._state:
            for record in this.placed:
                record.pack.written_ns = max(record.pack.written_ns, now_ns)
                record.pack.batches.discard(this.batch)
                if self._pending.get(record.id) is this.batch:
                    del self._pending[record.id]
        this.batch.done.set()

    def _abandon(self, this: _Round) -> None:
        """Records that could not be written lose their places; who waits for them stores them again."""
        this.batch.failed = True
        with self._state:
            for record in this.placed:
                record.pack.void(position_of(record.place.number))
                self._index.remove(record.id, record.place.number)
        self._complete(this)
