"""Going from one root to the next: counts come out as if every reference were looked up, and few are.

`PlainCounter` is the definition: every reference of what came is counted, then every one of what went is given back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from repository import counting, reach
from repository.counting import ReachCounter, cancel
from repository.format.catalog import SnapshotKind
from repository.format.inode import DirRef, Entry, Extent, Inode, NodeKind, Totals
from repository.format.manifest import Manifest, encode_manifest
from repository.format.record import Place, Record, RecordKind
from repository.ids import FileId, RecordId, RecordNumber
from repository.reach import References, walk
from repository.roots import next_counter
from repository.trees.cache import RecordCache
from repository.trees.reader import TreeReader
from repository.trees.writer import TreeWriter
from tests.support.amounts import examples
from tests.support.memory_store import MemoryStore

ANEW = RecordNumber(1 << 20)


@dataclass(frozen=True)
class Node:
    """A record that refers to `nodes` and `leaves`, to the same one several times too."""

    nodes: tuple["Node", ...] = ()
    leaves: tuple[int, ...] = ()

    @property
    def id(self) -> RecordId:
        return RecordId(b"n" + (hash((self.nodes, self.leaves)) & ((1 << 62) - 1)).to_bytes(31, "big"))


def leaf_id(leaf: int) -> RecordId:
    return RecordId(b"l" + leaf.to_bytes(31, "big"))


@dataclass
class Graph:
    """A store of such records; each may be stored anew, at a later place."""

    nodes: dict[RecordId, Node] = field(default_factory=dict)
    numbers: dict[RecordId, RecordNumber] = field(default_factory=dict)
    places: dict[RecordId, set[RecordNumber]] = field(default_factory=dict)

    def put(self, node: Node) -> None:
        for one in node.nodes:
            self.put(one)
        self.nodes[node.id] = node
        for record_id in (node.id, *map(leaf_id, node.leaves)):
            if record_id not in self.numbers:
                self.store_anew(record_id)

    def store_anew(self, record_id: RecordId) -> None:
        number = RecordNumber(sum(map(len, self.places.values())))
        self.numbers[record_id] = number
        self.places.setdefault(record_id, set()).add(number)

    def locate(self, ids: Sequence[RecordId]) -> list[Place | None]:
        return [Place(self.numbers[one], 0, 0, 0) for one in ids]

    def read_located(self, ids: Sequence[RecordId], places: Sequence[Place | None]) -> list[Record]:
        return [Record(RecordKind.DIR_LIST, one) for one in ids]

    def find_numbers(self, ids: Sequence[RecordId]) -> list[RecordNumber | None]:
        return [self.numbers[one] for one in ids]

    def refers(self, kind: RecordKind, payload: bytes, origin: RecordId) -> References:
        assert payload == origin
        node = self.nodes[origin]
        return References([one.id for one in node.nodes], [leaf_id(one) for one in node.leaves])

    def needed(self, roots: Sequence[RecordId]) -> set[RecordId]:
        seen: set[RecordId] = set()
        pending = list(roots)
        while pending:
            one = pending.pop()
            if one not in seen:
                seen.add(one)
                node = self.nodes.get(one)
                pending += [] if node is None else [*(n.id for n in node.nodes), *map(leaf_id, node.leaves)]
        return seen


class PlainCounter:
    """One reference at a time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.counts: dict[int, int] = {}
        self.exact = True

    def advance(self, old: Sequence[RecordId], new: Sequence[RecordId]) -> None:
        for roots, step in ((new, 1), (old, -1)):
            pending = list(roots)
            while pending:
                record_id = pending.pop()
                number = self.graph.numbers[record_id]
                before = self.counts.get(number, 0)
                if before + step < 0:
                    self.exact = False
                    continue
                self.counts[number] = before + step
                node = self.graph.nodes.get(record_id)
                if node is not None and 0 in (before, before + step):
                    pending += [*(one.id for one in node.nodes), *map(leaf_id, node.leaves)]

    @property
    def numbers(self) -> BitMap64:
        return BitMap64(number for number, count in self.counts.items() if count)

    @property
    def further(self) -> dict[int, int]:
        return {number: count - 1 for number, count in self.counts.items() if count > 1}


LEAVES = st.lists(st.integers(0, 12), max_size=6).map(tuple)
NODES = st.recursive(
    st.builds(Node, leaves=LEAVES),
    lambda below: st.builds(Node, st.lists(below, max_size=4).map(tuple), LEAVES),
    max_leaves=12,
)


@st.composite
def series(draw: st.DrawFn) -> list[tuple[Node, list[float]]]:
    """Roots that share parts with those before them; and which records are stored anew before each."""
    pool: list[Node] = draw(st.lists(NODES, min_size=1, max_size=4))
    found: list[tuple[Node, list[float]]] = []
    for _ in range(draw(st.integers(2, 6))):
        children = draw(st.lists(st.sampled_from(pool), max_size=5))
        root = Node(tuple(children), draw(LEAVES))
        if draw(st.booleans()):
            pool.append(Node((root,), draw(LEAVES)))
        if draw(st.booleans()):
            pool.append(draw(NODES))
        found.append((root, draw(st.lists(st.floats(0, 0.999), max_size=3))))
    return found


@pytest.mark.parametrize(
    "bounds", [(1, 1, 1, 1, 0), (3, 4, 2, 5, 9), (64, 4096, 16_384, 131_072, 131_072)], ids=["one", "few", "all"]
)
@given(roots=series(), anew=st.booleans())
@settings(max_examples=examples(150))
def test_the_counts_are_those_of_one_look_up_for_each_reference(
    bounds: tuple[int, int, int, int, int], roots: list[tuple[Node, list[float]]], anew: bool
) -> None:
    """However much is read, looked up and cancelled at once; also where records lie elsewhere in between."""
    graph = Graph()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "BATCH_MIN", bounds[0])
        patch.setattr(reach, "NODES_AT_ONCE", bounds[1])
        for name, bound in zip(("LEAVES_AT_ONCE", "CANCEL_MAX", "KNOWN_MAX"), bounds[2:], strict=True):
            patch.setattr(counting, name, bound)
        counter, plain = ReachCounter(graph, refers=graph.refers), PlainCounter(graph)
        before: list[RecordId] = []
        for root, moving in roots:
            graph.put(root)
            for share in moving if anew else ():
                graph.store_anew(list(graph.numbers)[int(share * len(graph.numbers))])
            counter.advance(before, [root.id])
            plain.advance(before, [root.id])
            before = [root.id]
            assert counter.exact == plain.exact
            assert counter.numbers == plain.numbers
            assert counter._further == plain.further
            needed = graph.needed(before)
            assert all(graph.places[one] & set(counter.numbers) for one in needed), "of everything needed a copy stays"
            if counter.exact:
                known = set[int]().union(*(graph.places[one] for one in needed))
                assert set(counter.numbers) <= known, "and nothing else does"
            if not anew:
                assert counter.exact
                assert set(counter.numbers) == {graph.numbers[one] for one in needed}


@given(roots=series())
def test_a_counter_that_goes_on_or_begins_anew_keeps_a_copy_of_all_and_of_nothing_else(
    roots: list[tuple[Node, list[float]]],
) -> None:
    graph = Graph()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReachCounter.__init__, "__defaults__", (lambda: None, graph.refers))
        counter: ReachCounter | None = None
        standing: RecordId | None = None
        for root, moving in roots:
            graph.put(root)
            for share in moving:
                graph.store_anew(list(graph.numbers)[int(share * len(graph.numbers))])
            counter = next_counter(graph, counter, standing, root.id)
            standing = root.id
            needed = graph.needed([root.id])
            assert counter.exact
            assert all(graph.places[one] & set(counter.numbers) for one in needed)
            assert set(counter.numbers) <= set[int]().union(*(graph.places[one] for one in needed))


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_cancelling_takes_pairs_and_nothing_else(some: list[int], others: list[int]) -> None:
    left, right = [leaf_id(one) for one in some], [leaf_id(one) for one in others]
    cancel(left, right)
    for one in range(6):
        surplus = some.count(one) - others.count(one)
        assert left.count(leaf_id(one)) == max(0, surplus)
        assert right.count(leaf_id(one)) == max(0, -surplus)


class Tree:
    """Directories of files over a store that counts."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.lease = self.store.lease()
        self.writer = TreeWriter(self.store, TreeReader(RecordCache(self.store, 1 << 26, inline=True)), self.lease)

    def file(self, number: int, content: int) -> Inode:
        chunk = self.store.put(RecordKind.CHUNK, [b"chunk %d" % content], self.lease)[0].id
        return Inode(NodeKind.FILE, FileId(number), size=10, extents=(Extent(0, 10, chunk, 0),))

    def directory(self, entries: dict[bytes, Inode]) -> DirRef:
        return self.writer.write_directory(Entry(name, entries[name]) for name in sorted(entries))[0]

    def root(self, files: dict[bytes, Inode]) -> RecordId:
        inode = Inode(NodeKind.DIRECTORY, FileId(1), directory=self.directory(files))
        manifest = Manifest(0, "", "", SnapshotKind.NAMED, inode, None, Totals(0, 0), FileId(2))
        return self.store.put(RecordKind.MANIFEST, [encode_manifest(manifest)], self.lease)[0].id

    def cost(self, counter: ReachCounter, old: RecordId, new: RecordId) -> tuple[int, int]:
        """Look-ups and reads of a step, whose outcome is right."""
        self.store.forget_counts()
        counter.advance([old], [new])
        found = self.store.looked_up, sum(self.store.reads.values())
        assert counter.exact
        assert counter.numbers == walk(self.store, [new])
        return found


@pytest.mark.parametrize("size", [20, 60])
@pytest.mark.parametrize("remembers", [True, False])
def test_look_ups_follow_the_change_and_not_the_directory(
    size: int, remembers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of a directory changes, one has another name, one is new, one is gone."""
    if not remembers:
        monkeypatch.setattr(counting, "KNOWN_MAX", 0)
    tree = Tree()
    files = {b"%05d" % number: tree.file(number + 2, number) for number in range(size)}
    roots = [tree.root(files)]
    files[b"00007"] = tree.file(9, 70_007)
    files[b"00008x"] = files.pop(b"00008")
    files[b"00009x"] = tree.file(5000, 70_009)
    del files[b"00010"]
    roots.append(tree.root(files))
    counter = ReachCounter(tree.store)
    counter.add(roots[:1])
    look_ups, reads = tree.cost(counter, *roots)
    listings, chunks = 2 * 3, 4  # a manifest, content and attributes; new: 7 and 9, gone: 7 and 10
    assert (look_ups, reads) == (listings + chunks, listings // 2 if remembers else listings)


@pytest.mark.parametrize("count", [200, 2000])
def test_listings_of_a_first_root_are_looked_up_once_and_in_few_calls(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For number and place together; a call costs as much as dozens of ids."""
    tree = Tree()
    files = {
        b"%05d" % number: Inode(
            NodeKind.DIRECTORY, FileId(number + 2), directory=tree.directory({b"f": tree.file(number + 9000, number)})
        )
        for number in range(count)
    }
    root = tree.root(files)
    calls: list[int] = []
    locate = tree.store.locate

    def counted(ids: Sequence[RecordId]) -> list[Place | None]:
        calls.append(len(ids))
        return locate(ids)

    monkeypatch.setattr(tree.store, "locate", counted)
    tree.store.forget_counts()
    counter = ReachCounter(tree.store)
    counter.add([root])
    assert counter.numbers == walk(tree.store, [root])
    nodes = sum(record.kind is not RecordKind.CHUNK for record in tree.store.records.values())
    tree.store.forget_counts()
    calls.clear()
    ReachCounter(tree.store).add([root])
    references = 2 * count + (nodes - 2 * count)  # attributes that are alike are one record, and several references
    assert sum(calls) <= references + 2 * count
    assert sum(tree.store.reads.values()) == nodes
    assert len(calls) <= 5 + sum(calls) // reach.NODES_AT_ONCE


def test_look_ups_in_a_directory_of_many_segments_follow_the_segments() -> None:
    """Their lists are looked up, which are a hundredth of the names; of the files only those of one segment changed."""
    tree = Tree()
    files = {b"%05d" % number: tree.file(number + 2, number) for number in range(9000)}
    roots = [tree.root(files)]
    files[b"04000"] = tree.file(4002, 70_000)
    roots.append(tree.root(files))
    counter = ReachCounter(tree.store)
    counter.add(roots[:1])
    look_ups, reads = tree.cost(counter, *roots)
    assert reads == 3  # a manifest, a list of contents, a segment; attributes are the same
    segments = sum(record.kind is RecordKind.DIR_CONTENT for record in tree.store.records.values())
    assert look_ups <= 4 * segments + 10


def test_a_directory_that_is_moved_is_not_walked() -> None:
    """From anywhere to anywhere: it gets its new reference before it loses the old one."""
    tree = Tree()
    inside = {b"%05d" % number: tree.file(number + 100, number) for number in range(300)}
    deep = {
        b"%d" % one: Inode(NodeKind.DIRECTORY, FileId(50 + one), directory=tree.directory(inside)) for one in (1, 2)
    }
    moved = Inode(NodeKind.DIRECTORY, FileId(40), directory=tree.directory(deep))
    outer = Inode(NodeKind.DIRECTORY, FileId(30), directory=tree.directory({b"moved": moved}))
    around = Inode(NodeKind.DIRECTORY, FileId(31), directory=tree.directory({b"outer": outer}))
    near, far = tree.root({b"moved": moved}), tree.root({b"around": around})
    counter = ReachCounter(tree.store)
    counter.add([near])
    # A manifest, and content and attributes of two listings; back again: a manifest, as the rest is below it already.
    assert [tree.cost(counter, old, new)[1] for old, new in ((near, far), (far, near))] == [5, 1]
