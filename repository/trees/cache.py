"""Decoded tree records, bounded by their memory. Owns the rule who may read: threads do, the event loop is told to."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from repository.errors import DamagedError
from repository.format.extents import ExtentList, ExtentSegment
from repository.format.links import LinksList, LinksSegment
from repository.format.record import Record, RecordKind
from repository.format.tree import AttrsList, ContentList, DirAttrs, DirContent, decode_list
from repository.format.xattrs import Xattrs, decode_xattrs
from repository.ids import RecordId

KEPT_MIN: Final = 64
"""The youngest records stay whatever they weigh: what one `load` brought in is there when its caller tries again."""


class RecordReader(Protocol):
    """What the cache asks of the store."""

    def read_many(self, ids: Sequence[RecordId]) -> list[Record]:
        """Records in the order of `ids`, verified. Raises MissingRecordError, DamagedError."""
        ...


class NotCached(Exception):
    """`ids` are needed and not in memory. Load them (in a thread), then ask again. Nothing has happened yet."""

    def __init__(self, ids: Sequence[RecordId]) -> None:
        super().__init__(f"{len(ids)} records are not in memory")
        self.ids = tuple(ids)


class XattrsNode:
    """A decoded XATTRS record."""

    __slots__ = ("nbytes", "xattrs")

    def __init__(self, payload: bytes, origin: RecordId) -> None:
        self.xattrs: Xattrs = decode_xattrs(payload, origin)
        self.nbytes = 200 + len(payload) + 200 * len(self.xattrs)


Node = (
    DirContent | DirAttrs | ContentList | AttrsList | ExtentSegment | ExtentList | LinksSegment | LinksList | XattrsNode
)
_N = TypeVar("_N", DirContent, DirAttrs, ContentList, AttrsList, ExtentSegment, ExtentList, LinksSegment, LinksList,
             XattrsNode)  # fmt: skip


def decode_node(kind: RecordKind, payload: bytes, origin: RecordId) -> Node:
    """A tree record of any kind, decoded. Raises DamagedError naming `origin`."""
    match kind:
        case RecordKind.DIR_CONTENT:
            return DirContent(payload, origin)
        case RecordKind.DIR_ATTRS:
            return DirAttrs(payload, origin)
        case RecordKind.DIR_LIST:
            return decode_list(payload, origin)
        case RecordKind.EXTENT_SEGMENT:
            return ExtentSegment(payload, origin)
        case RecordKind.EXTENT_LIST:
            return ExtentList(payload, origin)
        case RecordKind.LINKS_SEGMENT:
            return LinksSegment(payload, origin)
        case RecordKind.LINKS_LIST:
            return LinksList(payload, origin)
        case RecordKind.XATTRS:
            return XattrsNode(payload, origin)
        case _:
            raise DamagedError(f"Record {origin.hex()} stands in a tree, but is of kind {kind.name}.")


def expect(node: Node, form: type[_N], record_id: RecordId) -> _N:
    """`node`, which has to be a `form`. Raises DamagedError where a record of another kind stands in its place."""
    if not isinstance(node, form):
        raise DamagedError(f"Record {record_id.hex()} is a {type(node).__name__} where a {form.__name__} belongs.")
    return node


def check_level(level: int, demanded: int | None, record_id: RecordId) -> None:
    """Levels go down by one at each step, so that no record can stand below itself. Raises DamagedError."""
    if demanded is not None and level != demanded:
        raise DamagedError(f"Record {record_id.hex()} is of level {level} where {demanded} belongs.")


class _Shelf:
    """The records themselves, least recently used first. Thread safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self._lock = threading.Lock()
        self._nodes: OrderedDict[RecordId, Node] = OrderedDict()
        self._capacity_bytes = capacity_bytes
        self.used_bytes = 0

    def find(self, record_id: RecordId) -> Node | None:
        with self._lock:
            node = self._nodes.get(record_id)
            if node is not None:
                self._nodes.move_to_end(record_id)
            return node

    def keep(self, record_id: RecordId, node: Node) -> None:
        with self._lock:
            if record_id in self._nodes:
                return
            self._nodes[record_id] = node
            self.used_bytes += node.nbytes
            while self.used_bytes > self._capacity_bytes and len(self._nodes) > KEPT_MIN:
                _, gone = self._nodes.popitem(last=False)
                self.used_bytes -= gone.nbytes

    def clear(self) -> None:
        with self._lock:
            self._nodes.clear()
            self.used_bytes = 0


class RecordCache:
    """Decoded segments and lists, at most about `capacity_bytes` of them (KEPT_MIN records in any case).

    inline=True: what is missing is read at once (in the calling thread). inline=False: NotCached is raised instead,
    for the event loop; `load` in a thread, then ask again. Thread safe; one of each kind can share their records.
    """

    def __init__(
        self, store: RecordReader, capacity_bytes: int, *, inline: bool, shared: "RecordCache | None" = None
    ) -> None:
        self._store = store
        self._inline = inline
        self._shelf: _Shelf = _Shelf(capacity_bytes) if shared is None else shared._shelf
        self._capacity_bytes = capacity_bytes

    def view(self, *, inline: bool) -> "RecordCache":
        """Another cache over the same records, for callers that may (or may not) wait."""
        return RecordCache(self._store, self._capacity_bytes, inline=inline, shared=self)

    @property
    def used_bytes(self) -> int:
        """Estimated memory of what is held."""
        return self._shelf.used_bytes

    def get(self, record_id: RecordId) -> Node:
        """One record. Raises NotCached, MissingRecordError, DamagedError."""
        node = self._shelf.find(record_id)
        return self.fetch((record_id,))[0] if node is None else node

    def holds(self, record_id: RecordId) -> bool:
        """Whether it is in memory."""
        return self._shelf.find(record_id) is not None

    def fetch(self, needed: Sequence[RecordId], ahead: Iterable[RecordId] = ()) -> list[Node]:
        """The records `needed`, in order; where one of them is missing, those `ahead` come along in the same hop.

        Raises NotCached (all that are missing, of both), MissingRecordError, DamagedError.
        """
        found = [self._shelf.find(one) for one in needed]
        nodes = [node for node in found if node is not None]
        if len(nodes) == len(needed):
            return nodes
        missing = [one for one, node in zip(needed, found, strict=True) if node is None]
        missing += self.missing(ahead)
        if not self._inline:
            raise NotCached(tuple(dict.fromkeys(missing)))
        loaded = self.load(missing)
        return [loaded[one] if node is None else node for one, node in zip(needed, found, strict=True)]

    def missing(self, ids: Iterable[RecordId]) -> list[RecordId]:
        """Those of `ids` that are not in memory."""
        return [one for one in ids if self._shelf.find(one) is None]

    def load(self, ids: Iterable[RecordId]) -> dict[RecordId, Node]:
        """Reads and decodes `ids`, except those that are here already. Blocks: never on the event loop.

        Raises MissingRecordError, DamagedError.
        """
        nodes: dict[RecordId, Node] = {}
        missing: list[RecordId] = []
        for record_id in dict.fromkeys(ids):
            node = self._shelf.find(record_id)
            if node is None:
                missing.append(record_id)
            else:
                nodes[record_id] = node
        for record_id, record in zip(missing, self._store.read_many(missing) if missing else (), strict=True):
            node = decode_node(record.kind, record.payload, record_id)
            self._shelf.keep(record_id, node)
            nodes[record_id] = node
        return nodes

    def clear(self) -> None:
        """Forgets everything, for every view."""
        self._shelf.clear()
