"""Reachability bitmaps in the store: written as a difference to an earlier one, read by following the chain."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from pyroaring import BitMap64

from repository.errors import DamagedError
from repository.format.bitmap import (
    CHAIN_MAX,
    PART_BYTES_MAX,
    BitmapHead,
    BitmapPart,
    decode_bitmap,
    encode_head,
    encode_part,
    pack_numbers,
    split_parts,
    unpack_numbers,
)
from repository.format.record import Place, Record, RecordKind, Stored
from repository.ids import RecordId
from repository.leases import Lease
from repository.ledger import Claim
from repository.reach import locate_all

INLINE_BYTES_MAX: Final = PART_BYTES_MAX // 2
"""Sets up to this stay in the head record itself."""
KEPT_BITMAPS: Final = 8
"""Bitmaps that a BitmapReader keeps: about 0.5 MB each for a million records."""


class BitmapStore(Protocol):
    """What bitmaps ask of the store."""

    def put(
        self, kind: RecordKind, payloads: Sequence[bytes], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]: ...

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]: ...

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]: ...


class SnapshotBitmap(NamedTuple):
    """A bitmap as read. `numbers`: what the root needs. `chain`: the bitmap's own records, which need keeping too."""

    root: RecordId
    exact: bool
    depth: int
    numbers: BitMap64
    chain: BitMap64

    @property
    def kept(self) -> BitMap64:
        """Everything that a catalog slot with this bitmap keeps."""
        return self.numbers | self.chain


class BitmapStep(NamedTuple):
    """A bitmap as stored: the numbers are (those of `parent`, a bitmap's head, with `added`) without `removed`.

    `own`: the numbers of its own records.
    """

    parent: RecordId | None
    added: BitMap64
    removed: BitMap64
    own: BitMap64


class BitmapReader:
    """Reads bitmaps; remembers the last few, so that a series in time order reads each difference once.

    Not thread safe. The sets it returns are shared: copy before changing one.
    """

    def __init__(self, store: BitmapStore) -> None:
        self._store = store
        self._kept: OrderedDict[RecordId, SnapshotBitmap] = OrderedDict()

    def read(self, head: RecordId, *, root: RecordId | None = None) -> SnapshotBitmap:
        """The bitmap whose head is `head`, its chain followed.

        Raises MissingRecordError and DamagedError where it cannot be read or (with `root`) belongs to another root:
        the root has to be walked then.
        """
        heads: list[tuple[RecordId, BitmapHead]] = []
        base: SnapshotBitmap | None = None
        at: RecordId | None = head
        while at is not None:
            base = self._kept.get(at)
            if base is not None:
                self._kept.move_to_end(at)
                break
            found = self._head(at)
            if heads and found.depth != heads[-1][1].depth - 1:
                raise DamagedError(f"Record {at.hex()} (a bitmap) stands at the wrong place of its chain.")
            heads.append((at, found))
            at = found.parent
        for record_id, found in reversed(heads):
            base = self._apply(base, record_id, found)
            self._remember(record_id, base)
        assert base is not None
        if root is not None and base.root != root:
            raise DamagedError(f"Record {head.hex()} (a bitmap) belongs to another snapshot.")
        return base

    def step(self, head: RecordId, *, root: RecordId) -> BitmapStep:
        """The bitmap whose head is `head` as it was stored, its chain not followed. Raises as `read`."""
        found = self._head(head)
        if found.root != root:
            raise DamagedError(f"Record {head.hex()} (a bitmap) belongs to another snapshot.")
        added, removed = self._sets(head, found)
        return BitmapStep(found.parent, added, removed, self._own(head, found))

    def remember(self, head: RecordId, bitmap: SnapshotBitmap) -> None:
        """Takes in a bitmap that was just written."""
        self._remember(head, bitmap)

    def _remember(self, head: RecordId, bitmap: SnapshotBitmap) -> None:
        self._kept[head] = bitmap
        self._kept.move_to_end(head)
        while len(self._kept) > KEPT_BITMAPS:
            self._kept.popitem(last=False)

    def _head(self, record_id: RecordId) -> BitmapHead:
        found = self._decoded([record_id])[0]
        if not isinstance(found, BitmapHead):
            raise DamagedError(f"Record {record_id.hex()} is a part of a bitmap where its head belongs.")
        return found

    def _decoded(self, ids: Sequence[RecordId]) -> list[BitmapHead | BitmapPart]:
        decoded: list[BitmapHead | BitmapPart] = []
        for record_id, record in zip(ids, self._store.read_many(ids), strict=True):
            if record.kind is not RecordKind.BITMAP:
                raise DamagedError(f"Record {record_id.hex()} is of kind {record.kind.name} where a bitmap belongs.")
            decoded.append(decode_bitmap(record.payload, record_id))
        return decoded

    def _own(self, record_id: RecordId, head: BitmapHead) -> BitMap64:
        return BitMap64(locate_all(self._store, [record_id, *head.parts]))

    def _sets(self, record_id: RecordId, head: BitmapHead) -> tuple[BitMap64, BitMap64]:
        """What a head adds and removes."""
        data = head.inline
        if head.parts:
            parts: list[bytes] = []
            for part in self._decoded(head.parts):
                if not isinstance(part, BitmapPart):
                    raise DamagedError(f"Record {record_id.hex()} (a bitmap) names a head as its part.")
                parts.append(part.data)
            data = b"".join(parts)
        if len(data) != head.added_bytes + head.removed_bytes:
            raise DamagedError(f"Record {record_id.hex()} (a bitmap) does not get its whole length.")
        added = unpack_numbers(data[: head.added_bytes], record_id)
        return added, unpack_numbers(data[head.added_bytes :], record_id)

    def _apply(self, base: SnapshotBitmap | None, record_id: RecordId, head: BitmapHead) -> SnapshotBitmap:
        added, removed = self._sets(record_id, head)
        chain = self._own(record_id, head)
        if base is None:
            return SnapshotBitmap(head.root, head.exact, head.depth, added - removed, chain)
        numbers = base.numbers | added
        numbers -= removed
        return SnapshotBitmap(head.root, head.exact, head.depth, numbers, chain | base.chain)


def load_bitmap(store: BitmapStore, head: RecordId) -> BitMap64:
    """All numbers that a slot with this bitmap keeps, the bitmap's own records included. Raises DamagedError."""
    return BitmapReader(store).read(head).kept


def store_bitmap(
    store: BitmapStore,
    lease: Lease,
    root: RecordId,
    numbers: BitMap64,
    *,
    exact: bool,
    parent: tuple[RecordId, SnapshotBitmap] | None = None,
    claim: Claim | None = None,
) -> tuple[Stored, SnapshotBitmap]:
    """Stores what `root` needs; as a difference to `parent` (its head and content) where that is shorter.

    Full after CHAIN_MAX differences in a row. Returns the head's record, and the bitmap as reading would give it.
    Raises what the store's put raises.
    """
    full = pack_numbers(numbers)
    added, removed, depth, base = full, b"", 0, None
    if parent is not None and parent[1].depth < CHAIN_MAX:
        before = parent[1].numbers
        more, less = pack_numbers(numbers - before), pack_numbers(before - numbers)
        if len(more) + len(less) < len(full):
            added, removed, depth, base = more, less, parent[1].depth + 1, parent[0]
    data = added + removed
    parts: list[Stored] = []
    if len(data) > INLINE_BYTES_MAX:
        parts = store.put(RecordKind.BITMAP, [encode_part(part) for part in split_parts(data)], lease, claim)
    head = BitmapHead(
        root, base, exact, depth, len(added), len(removed), tuple(part.id for part in parts), b"" if parts else data
    )
    stored = store.put(RecordKind.BITMAP, [encode_head(head)], lease, claim)[0]
    chain = BitMap64([stored.number, *(part.number for part in parts)])
    if parent is not None and base is not None:
        chain |= parent[1].chain
    return stored, SnapshotBitmap(root, exact, depth, numbers.copy(), chain)


def bitmap_bytes_max(numbers: BitMap64) -> int:
    """Raw bytes that `store_bitmap` can need at most for `numbers`, heads included, record headers not."""
    return len(pack_numbers(numbers)) + 4096
