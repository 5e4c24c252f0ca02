"""Where `snapshot create` puts what it makes: into the store, with the growth counted; trees a little later."""

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from repository.codec import Codec, Packed
from repository.create.recent import Recent
from repository.format.inode import DirRef, Extent, ExtentsRef, Inode, Totals
from repository.format.record import Buffer, RecordKind, Stored
from repository.ids import FileId, RecordId, RecordNumber
from repository.leases import Lease
from repository.ledger import Claim
from repository.repo import Repository
from repository.trees.reader import TreeReader
from repository.trees.writer import TreeWriter
from repository.units import KIB

HELD_RECORDS: Final = 256
HELD_BYTES: Final = 512 * KIB
"""Records of trees, and their bytes, that are held back. Each call of the store costs as much as ten records."""
_NO_NUMBER: Final = RecordNumber(0)


class Growth:
    """What the repository has grown by, in bytes. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.nbytes = 0

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes


class CountingStore:
    """The store, counting what it grows by, and finishing what recovery left for later. Thread safe."""

    def __init__(self, repo: Repository, growth: Growth) -> None:
        self._store = repo.store
        self._recovery = repo.recovery
        self._growth = growth
        self.recent: Final = Recent()

    def put(
        self, kind: RecordKind, payloads: Sequence[Buffer], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]:
        return self._count(self._store.put(kind, payloads, lease, claim))

    def put_packed(self, kind: RecordKind, packed: Sequence[Packed], lease: Lease) -> list[Stored]:
        stored = self._store.put_packed(kind, packed, lease)
        self.recent.note([one.id for one in packed])
        return self._count(stored)

    def _count(self, stored: list[Stored]) -> list[Stored]:
        self._growth.add(sum([one.stored_length for one in stored if one.new]))
        if self._recovery.unfinished:  # a climb freed just enough: now the margin, or the next segment climbs again
            self._recovery.finish()
        return stored


class SharedWriter:
    """Long extent lists from many threads through a writer that takes one at a time."""

    def __init__(self, trees: TreeWriter) -> None:
        self._trees = trees
        self._lock = threading.Lock()

    def write_extents(self, extents: Sequence[Extent]) -> tuple[Extent, ...] | ExtentsRef:
        with self._lock:
            return self._trees.write_extents(extents)

    def rewrite_extents(
        self, base: ExtentsRef, changed: Sequence[tuple[int, int, Sequence[Extent]]]
    ) -> tuple[Extent, ...] | ExtentsRef:
        with self._lock:
            return self._trees.rewrite_extents(base, changed)


class _Held:
    """Records on their way to the store. The answers have ids, but no numbers yet: writers of trees ask for no more."""

    def __init__(self, store: CountingStore, codec: Codec) -> None:
        self._store = store
        self._codec = codec
        self._payloads: dict[RecordKind, list[Buffer]] = {}
        self._nbytes = 0
        self.ids: set[RecordId] = set()

    def put(
        self, kind: RecordKind, payloads: Sequence[Buffer], lease: Lease, claim: Claim | None = None
    ) -> list[Stored]:
        ids = [self._codec.id_of(kind, payload) for payload in payloads]
        self._payloads.setdefault(kind, []).extend(payloads)
        self._nbytes += sum(map(len, payloads))
        self.ids.update(ids)
        if len(self.ids) >= HELD_RECORDS or self._nbytes >= HELD_BYTES:
            self.flush(lease, claim)
        return [
            Stored(record_id, _NO_NUMBER, len(payload), 0, new=True)
            for record_id, payload in zip(ids, payloads, strict=True)
        ]

    def flush(self, lease: Lease, claim: Claim | None = None) -> None:
        for kind, payloads in self._payloads.items():
            self._store.put(kind, payloads, lease, claim)
        self._payloads.clear()
        self._nbytes = 0
        self.ids.clear()


class HeldTrees:
    """Writes directories and links tables, a little later than it says. Used by one thread; `flush` ends it."""

    def __init__(self, store: CountingStore, codec: Codec, reader: TreeReader, lease: Lease) -> None:
        self._held = _Held(store, codec)
        self._lease = lease
        self._writer = TreeWriter(self._held, reader, lease)

    def rewrite_directory(self, base: DirRef, changes: Mapping[bytes, Inode | None]) -> tuple[DirRef, Totals]:
        self._readable(base.content)
        return self._writer.rewrite_directory(base, changes)

    def rewrite_links(self, base: RecordId | None, changes: Mapping[FileId, Inode | None]) -> RecordId | None:
        self._readable(base)
        return self._writer.rewrite_links(base, changes)

    def _readable(self, root: RecordId | None) -> None:
        """A tree is held or stored as a whole, so its root tells: nothing is put behind the root."""
        if root in self._held.ids:
            self.flush()

    def flush(self) -> None:
        """Everything that was written is in the store when this returns. Raises what the store raises."""
        self._held.flush(self._lease)
