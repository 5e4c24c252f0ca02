"""What a root needs: its records' numbers, found by walking.

Owns the rule which ids a record refers to (`references`), and with it what a collection must keep.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from pyroaring import BitMap64

from repository.errors import MissingRecordError
from repository.format.bitmap import BitmapHead, decode_bitmap
from repository.format.extents import ExtentList, ExtentSegment
from repository.format.links import LinksList, LinksSegment
from repository.format.manifest import decode_manifest
from repository.format.record import Place, Record, RecordKind
from repository.format.references import attrs_references, content_references
from repository.format.tree import AttrsList, ContentList, DirAttrs, DirContent
from repository.ids import NO_ID, RecordId, RecordNumber
from repository.trees.cache import Node, XattrsNode, decode_node
from repository.units import MIB

BATCH_MIN: Final = 64
BATCH_MAX: Final = 512
"""Nodes read in one call while walking."""
BATCH_BYTES: Final = 4 * MIB
"""What more than BATCH_MIN of them may be, unpacked, if they are like those before."""
NODES_AT_ONCE: Final = 4096
"""Nodes that wait for one look-up, which tells their places too: 1.5 MiB."""
LEAVES_AT_ONCE: Final = 16_384
"""References to leaves that wait for one look-up: 1.5 MiB. A look-up of few ids costs as much as one of a thousand."""


class RecordSource(Protocol):
    """What walking asks of the store."""

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]:
        """Where the records are, None for each that is nowhere."""
        ...

    def read_located(self, ids: Sequence[RecordId], places: Sequence[Place | None]) -> list[Record]:
        """Records in the order of `ids`, which were found at `places`. Raises MissingRecordError, DamagedError."""
        ...

    def find_numbers(self, ids: Sequence[RecordId]) -> list[RecordNumber | None]:
        """The records' numbers, None for each that is nowhere."""
        ...


class PlaceSource(Protocol):
    """What bitmaps and commits ask of the store."""

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]:
        """Where the records are, None for each that is nowhere."""
        ...


_F = TypeVar("_F")


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


Refers = Callable[[RecordKind, bytes, RecordId], References]
"""`split_references`, or what tells the same."""


def quick_references(kind: RecordKind, payload: bytes, origin: RecordId = NO_ID) -> References:
    """As `split_references`, at a tenth of the cost for directories, of which only the ids are looked at."""
    match kind:
        case RecordKind.DIR_CONTENT:
            return References(*content_references(payload, origin))
        case RecordKind.DIR_ATTRS:
            return References(*attrs_references(payload, origin))
        case _:
            return split_references(kind, payload, origin)


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


def locate_all(store: PlaceSource, ids: Sequence[RecordId]) -> list[RecordNumber]:
    """Numbers of `ids`, in order. Raises MissingRecordError for one that is nowhere."""
    return [place.number for place in _all_there(ids, store.locate(ids))]


def find_all(store: RecordSource, ids: Sequence[RecordId]) -> list[RecordNumber]:
    """As `locate_all`, at a third of the cost."""
    return _all_there(ids, store.find_numbers(ids))


def _all_there(ids: Sequence[RecordId], found: Sequence[_F | None]) -> list[_F]:
    there = [one for one in found if one is not None]
    if len(there) != len(ids):
        missing = ids[found.index(None)]
        raise MissingRecordError(f"Record {missing.hex()} is referred to, but is nowhere in the packs.")
    return there


class Nodes:
    """Nodes that wait for their references to be followed. Owner of how many are looked up and read at once.

    Each is looked up once, for its number and its place. Of those that were looked up together, neighbours are read
    together.
    """

    def __init__(self, store: RecordSource, wanted: Callable[[RecordNumber], bool], refers: Refers) -> None:
        self._store = store
        self._wanted = wanted
        self._refers = refers
        self._unasked: list[RecordId] = []
        self._waiting: list[tuple[RecordId, Place]] = []
        self._most = BATCH_MIN

    def __bool__(self) -> bool:
        return bool(self._waiting or self._unasked)

    def add(self, ids: Sequence[RecordId]) -> None:
        """Those of `ids` that will be wanted, which is asked once of each."""
        self._unasked += ids

    def take(self) -> list[tuple[RecordId, Place]]:
        """Some of those that were added last, and where they are: they wait no more. Raises MissingRecordError."""
        if not self._waiting or len(self._unasked) >= NODES_AT_ONCE:
            self._look_up()
        batch = self._waiting[-self._most :]
        del self._waiting[-self._most :]
        return batch

    def _look_up(self) -> None:
        ids, self._unasked = self._unasked, []
        places = _all_there(ids, self._store.locate(ids))
        found = [one for one in zip(ids, places, strict=True) if self._wanted(one[1].number)]
        found.sort(key=_number_of, reverse=True)  # taken from the end
        self._waiting += found

    def read(self, batch: Sequence[tuple[RecordId, Place]]) -> list[References]:
        """What each refers to. Raises MissingRecordError, DamagedError."""
        if not batch:
            return []
        records = self._store.read_located([record_id for record_id, _ in batch], [place for _, place in batch])
        mean_bytes = 1 + sum(len(record.payload) for record in records) // len(records)
        self._most = max(BATCH_MIN, min(BATCH_MAX, 2 * self._most, BATCH_BYTES // mean_bytes))
        return [
            self._refers(record.kind, record.payload, record_id)
            for (record_id, _), record in zip(batch, records, strict=True)
        ]


def _number_of(found: tuple[RecordId, Place]) -> RecordNumber:
    return found[1].number


def walk(store: RecordSource, roots: Iterable[RecordId]) -> BitMap64:
    """Numbers of everything that `roots` need, themselves included.

    Raises DamagedError or MissingRecordError where the tree cannot be read to its end: nothing may be freed then.
    """
    seen = BitMap64()

    def is_new(number: RecordNumber) -> bool:
        if number in seen:
            return False
        seen.add(number)
        return True

    pending = Nodes(store, is_new, quick_references)
    pending.add(list(roots))
    leaves: list[RecordId] = []
    while pending:
        nodes: list[RecordId] = []
        for found in pending.read(pending.take()):
            nodes += found.nodes
            leaves += found.leaves
        if len(leaves) >= LEAVES_AT_ONCE:
            seen.update(find_all(store, leaves))
            leaves = []
        pending.add(nodes)
    seen.update(find_all(store, leaves))
    return seen
