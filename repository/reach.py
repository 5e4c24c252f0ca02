"""What a root needs: its records' numbers, found by walking, or kept up to date by counting references.

Owns the rule which ids a record refers to (`references`), and with it what a collection must keep.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from pyroaring import BitMap64

from repository.errors import DamagedError, MissingRecordError
from repository.format.bitmap import BitmapHead, decode_bitmap
from repository.format.extents import ExtentList, ExtentSegment
from repository.format.links import LinksList, LinksSegment
from repository.format.manifest import decode_manifest
from repository.format.record import Place, Record, RecordKind
from repository.format.tree import AttrsList, ContentList, DirAttrs, DirContent
from repository.ids import NO_ID, RecordId, RecordNumber
from repository.trees.cache import Node, XattrsNode, decode_node

READ_BATCH: Final = 64
"""Records read in one call while walking: a few MiB of segments."""


class RecordSource(Protocol):
    """What walking asks of the store."""

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        """Records in the order of `ids`. Raises MissingRecordError, DamagedError."""
        ...

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]:
        """Where the records are, None for each that is nowhere."""
        ...


class References(NamedTuple):
    """What one record refers to. `leaves` (chunks, xattrs) refer to nothing further; `nodes` may."""

    nodes: list[RecordId]
    leaves: list[RecordId]


NOTHING: Final = References([], [])


def split_references(kind: RecordKind, payload: bytes, origin: RecordId = NO_ID) -> References:
    """What a record refers to. Raises DamagedError naming `origin` where it cannot be decoded."""
    match kind:
        case RecordKind.CHUNK | RecordKind.XATTRS | RecordKind.JOURNAL | RecordKind.PACK_DIRECTORY:
            return NOTHING
        case RecordKind.MANIFEST:
            manifest = decode_manifest(payload)
            roots = (manifest.root.directory.content, manifest.root.directory.attrs, manifest.links)
            return References([one for one in roots if one is not None], [])
        case RecordKind.BITMAP:
            found = decode_bitmap(payload, origin)
            if not isinstance(found, BitmapHead):
                return NOTHING
            return References([*found.parts, *([] if found.parent is None else [found.parent])], [])
        case _:
            return _of_node(decode_node(kind, payload, origin))


def _of_node(node: Node) -> References:
    match node:
        case DirContent():
            return References(node.files.node_ids(), node.files.chunk_ids())
        case DirAttrs():
            return References(node.columns.node_ids(), node.columns.xattr_ids())
        case LinksSegment():
            leaves = node.files.chunk_ids() + node.attrs.xattr_ids()
            return References(node.files.node_ids(), leaves)
        case ExtentSegment():
            return References([], node.chunk_ids())
        case ContentList() | AttrsList() | ExtentList() | LinksList():
            return References(node.node_ids(), [])
        case XattrsNode():
            return NOTHING


def references(kind: RecordKind, payload: bytes) -> list[RecordId]:
    """All ids that a record refers to, in no particular order. Raises DamagedError."""
    nodes, leaves = split_references(kind, payload)
    return nodes + leaves


def locate_all(store: RecordSource, ids: Sequence[RecordId]) -> list[RecordNumber]:
    """Numbers of `ids`, in order. Raises MissingRecordError for one that is nowhere."""
    numbers: list[RecordNumber] = []
    for record_id, place in zip(ids, store.locate(ids), strict=True):
        if place is None:
            raise MissingRecordError(f"Record {record_id.hex()} is referred to, but is nowhere in the packs.")
        numbers.append(place.number)
    return numbers


def walk(store: RecordSource, roots: Iterable[RecordId]) -> BitMap64:
    """Numbers of everything that `roots` need, themselves included.

    Raises DamagedError or MissingRecordError where the tree cannot be read to its end: nothing may be freed then.
    """
    seen = BitMap64()
    pending = _unseen(store, list(roots), seen)
    while pending:
        batch, pending = pending[-READ_BATCH:], pending[:-READ_BATCH]
        nodes: list[RecordId] = []
        leaves: list[RecordId] = []
        for record_id, record in zip(batch, store.read_many(batch), strict=True):
            found = split_references(record.kind, record.payload, record_id)
            nodes += found.nodes
            leaves += found.leaves
        seen.update(locate_all(store, leaves))
        pending += _unseen(store, nodes, seen)
    return seen


def _unseen(store: RecordSource, ids: Sequence[RecordId], seen: BitMap64) -> list[RecordId]:
    """Those whose numbers were not in `seen`; they are now."""
    fresh: list[RecordId] = []
    for record_id, number in zip(ids, locate_all(store, ids), strict=True):
        if number not in seen:
            seen.add(number)
            fresh.append(record_id)
    return fresh


class ReachCounter:
    """Exactly what one root needs, kept up to date while the root changes, at a cost that follows the change.

    Counts the references between distinct records below the root. A record is walked when it gets its first
    reference and when it loses its last. Memory: one bitmap, and an entry for each record with several references.
    Not thread safe. After an error it is spoiled: build another.
    """

    def __init__(self, store: RecordSource, pause: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._pause = pause
        """Called now and then while walking. May raise to end it: the counter is spoiled then."""
        self.numbers = BitMap64()
        """What is reachable. Copy it before it is kept."""
        self.exact = True
        """False once something had to be kept that may be unreachable (a record that was stored anew elsewhere)."""
        self._further: dict[int, int] = {}
        """References beyond the first, for numbers that have any."""
        self._spoiled = False

    def add(self, roots: Iterable[RecordId]) -> None:
        """One more reference to each of `roots`. Raises DamagedError, MissingRecordError."""
        self._walk(list(roots), self._gain)

    def remove(self, roots: Iterable[RecordId]) -> None:
        """One reference less to each of `roots`. Raises DamagedError, MissingRecordError."""
        self._walk(list(roots), self._lose)

    def advance(self, old_roots: Iterable[RecordId], new_roots: Iterable[RecordId]) -> None:
        """From `old_roots` to `new_roots`: what both need is never walked. Raises as the two others."""
        self.add(new_roots)
        self.remove(old_roots)

    def _walk(self, roots: list[RecordId], count: "_Count") -> None:
        if self._spoiled:
            raise DamagedError("The reachability count met an error earlier; it has to be made anew.")
        try:
            pending = self._counted(roots, count)
            while pending:
                self._pause()
                batch, pending = pending[-READ_BATCH:], pending[:-READ_BATCH]
                nodes: list[RecordId] = []
                leaves: list[RecordId] = []
                for record_id, record in zip(batch, self._store.read_many(batch), strict=True):
                    found = split_references(record.kind, record.payload, record_id)
                    nodes += dict.fromkeys(found.nodes)
                    leaves += dict.fromkeys(found.leaves)
                self._counted(leaves, count)
                pending += self._counted(nodes, count)
        except BaseException:
            self._spoiled = True
            raise

    def _counted(self, ids: list[RecordId], count: "_Count") -> list[RecordId]:
        """Counts one reference to each; returns those whose own references have to be counted too."""
        numbers = locate_all(self._store, ids)
        return [record_id for record_id, number in zip(ids, numbers, strict=True) if count(number)]

    def _gain(self, number: RecordNumber) -> bool:
        if number in self.numbers:
            self._further[number] = self._further.get(number, 0) + 1
            return False
        self.numbers.add(number)
        return True

    def _lose(self, number: RecordNumber) -> bool:
        further = self._further.get(number, 0)
        if further > 1:
            self._further[number] = further - 1
        elif further == 1:
            del self._further[number]
        elif number in self.numbers:
            self.numbers.discard(number)
            return True
        else:
            self.exact = False
        return False


class _Count(Protocol):
    def __call__(self, number: RecordNumber, /) -> bool: ...
