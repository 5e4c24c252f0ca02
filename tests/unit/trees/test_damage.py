"""Damaged and hostile payloads give DamagedError that names the record: no crash, no other error, no great memory."""

import struct
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from repository.errors import DamagedError
from repository.format.attributes import inode_at
from repository.format.bitmap import BitmapHead, encode_head, encode_part, pack_numbers
from repository.format.catalog import SnapshotKind
from repository.format.extents import ExtentList, ExtentSegment
from repository.format.files import FileColumns
from repository.format.inode import DirRef, Entry, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.format.links import LinksList, LinksSegment
from repository.format.manifest import Manifest, encode_manifest
from repository.format.record import RecordKind
from repository.format.stats import stats_of
from repository.format.tree import AttrsList, ContentList, DirAttrs, DirContent
from repository.ids import FileId, RecordId
from repository.reach import quick_references, split_references
from repository.trees.cache import RecordCache, decode_node
from repository.trees.houses import DirectoryHouse, ExtentHouse, LinksHouse
from repository.trees.pen import Pen
from repository.trees.reader import TreeReader
from repository.trees.storeys import build
from repository.trees.writer import TreeWriter
from tests.support.memory_store import MemoryStore

ORIGIN = RecordId(bytes(range(32)))
NODE_KINDS = (
    RecordKind.DIR_CONTENT, RecordKind.DIR_ATTRS, RecordKind.DIR_LIST, RecordKind.EXTENT_LIST,
    RecordKind.EXTENT_SEGMENT, RecordKind.LINKS_SEGMENT, RecordKind.LINKS_LIST, RecordKind.XATTRS,
)  # fmt: skip
ALL_KINDS = (*NODE_KINDS, RecordKind.MANIFEST, RecordKind.BITMAP)


def _samples() -> dict[RecordKind, list[bytes]]:
    """One or more good payloads of each kind, with everything in them that the kind can hold."""
    store = MemoryStore()
    reader = TreeReader(RecordCache(store, 1 << 26, inline=True))
    writer = TreeWriter(store, reader, store.lease())
    pen = Pen(store, store.lease(), None)
    chunk = RecordId(b"c" * 32)
    timed = Inode(NodeKind.SOCKET, FileId(18), 3, 0o755, 7, 8, 0, 0, 1, 10**18, -5, 3 * 10**9 + 1)
    two, long = (Extent(0, 50, chunk, 0), Extent(60, 9, chunk, 4)), ExtentsRef(chunk, 99)
    entries = [
        Entry(b"a-file", Inode(NodeKind.FILE, FileId(10), size=99, extents=two, allocated_bytes=59)),
        Entry(b"b-long", Inode(NodeKind.FILE, FileId(11), size=1 << 40, extents=long, allocated_bytes=77)),
        Entry(b"c-dir", Inode(NodeKind.DIRECTORY, FileId(12), directory=DirRef(chunk, chunk), totals=Totals(4, 5))),
        Entry(b"d-empty", Inode(NodeKind.DIRECTORY, FileId(13), xattrs=((b"user.x", b"1"),))),
        Entry(b"e-link", Inode(NodeKind.LINK, FileId(14))),
        Entry(b"f-symlink", Inode(NodeKind.SYMLINK, FileId(15), target=b"somewhere/else", size=14)),
        Entry(b"g-device", Inode(NodeKind.BLOCK, FileId(16), rdev=2049)),
        Entry(b"h-xattrs", Inode(NodeKind.FIFO, FileId(17), xattrs=((b"user.long", b"y" * 400),))),
        Entry(b"i-socket", timed),
    ]  # fmt: skip
    build(DirectoryHouse(pen, reader), entries)
    build(DirectoryHouse(pen, reader), (Entry(b"%06d" % one, Inode(NodeKind.FIFO, FileId(one))) for one in range(1000)))
    inodes = [entry.inode for entry in entries if entry.inode.kind not in (NodeKind.DIRECTORY, NodeKind.LINK)]
    build(LinksHouse(pen, reader), inodes)
    build(LinksHouse(pen, reader), (Inode(NodeKind.FIFO, FileId(one)) for one in range(1000)))
    build(
        ExtentHouse(pen, reader), [Extent(one * 9, 5, RecordId(one.to_bytes(32, "big")), one) for one in range(1, 1500)]
    )
    writer.write_extents([Extent(one * 9, 9, chunk, 0) for one in range(70)])
    samples: dict[RecordKind, list[bytes]] = {kind: [] for kind in ALL_KINDS}
    for record in store.records.values():
        samples[record.kind].append(record.payload)
    root = Inode(NodeKind.DIRECTORY, FileId(1), directory=DirRef(chunk, chunk), xattrs=((b"user.a", b"\xff"),))
    manifest = Manifest(5, "host:/home", "host", SnapshotKind.NAMED, root, chunk, Totals(1, 2), FileId(100), chunk, "n")
    samples[RecordKind.MANIFEST] = [encode_manifest(manifest)]
    numbers = pack_numbers(BitMap64([1, 2, 3, 1 << 33]))
    samples[RecordKind.BITMAP] = [
        encode_head(BitmapHead(chunk, None, True, 0, len(numbers), 0, (), numbers)),
        encode_head(BitmapHead(chunk, chunk, False, 3, 10, 20, (chunk, ORIGIN))),
        encode_part(numbers),
    ]
    return samples


SAMPLES = _samples()


def use_everything(kind: RecordKind, payload: bytes) -> None:
    """Decodes a payload and asks it all it can be asked."""
    refers = split_references(kind, payload, ORIGIN)
    assert quick_references(kind, payload, ORIGIN) == refers, "a walk follows what decoding tells"
    if kind not in NODE_KINDS:
        return
    node = decode_node(kind, payload, ORIGIN)
    assert node.nbytes > 0
    match node:
        case DirContent():
            assert node.find(b"x") is None or node.names
            for row in range(node.files.count):
                node.files.row_totals(row)
                _use_row(node.files, row)
        case DirAttrs():
            _use_attrs(node)
        case ContentList():
            for index in range(node.count):
                node.row(index)
                node.index_of(node.last_names[index])
        case LinksSegment():
            node.totals()
            for row in range(node.files.count):
                node.attrs.xattrs(row)
                inode_at(node.files, node.attrs, row, ())
            list(stats_of(node.files, node.attrs, 0))
        case ExtentSegment():
            node.extents(0, 0, (1 << 63) - 1)
        case ExtentList():
            node.overlapping(0, (1 << 63) - 1)
        case LinksList():
            node.index_of(500)
        case AttrsList():
            node.child(0)
        case _:
            pass


def _use_row(files: FileColumns, row: int) -> None:
    match NodeKind(files.kinds[row]):
        case NodeKind.FILE:
            files.extents(row)
        case NodeKind.DIRECTORY:
            files.directory(row)
        case NodeKind.SYMLINK:
            files.target(row)
        case NodeKind.CHARACTER | NodeKind.BLOCK:
            files.device(row)
        case NodeKind.FIFO | NodeKind.SOCKET | NodeKind.LINK:
            files.size(row)


def _use_attrs(node: DirAttrs) -> None:
    """Every row, as if it were a FIFO's."""
    columns = node.columns
    content = DirContent(_content([b"%05d" % row for row in range(columns.count)]), ORIGIN)
    for row in range(columns.count):
        columns.xattrs(row)
        columns.file_id(row)
        inode_at(content.files, columns, row, ())
    list(stats_of(content.files, columns, 0))
    for ordinal in range(columns.directories):
        columns.child(ordinal)


def expect_only_damage(kind: RecordKind, payload: bytes) -> None:
    """Either it decodes (nothing that matters changed), or DamagedError names the record."""
    try:
        use_everything(kind, payload)
    except DamagedError as error:
        assert ORIGIN.hex() in str(error) or "manifest" in str(error)
    try:
        quick_references(kind, payload, ORIGIN)
    except DamagedError as error:
        assert ORIGIN.hex() in str(error) or "manifest" in str(error)


def test_there_is_a_sample_of_each_kind() -> None:
    assert all(SAMPLES[kind] for kind in ALL_KINDS)
    for kind in ALL_KINDS:
        for payload in SAMPLES[kind]:
            use_everything(kind, payload)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_cut_is_noticed(kind: RecordKind) -> None:
    """A payload that ends early, or goes on, is damaged wherever that is. A part of a bitmap may have any length."""
    for payload in SAMPLES[kind]:
        if kind is RecordKind.BITMAP and payload[1] == 2:
            continue
        lengths = range(len(payload)) if len(payload) < 2000 else range(0, len(payload), 97)
        for length in lengths:
            if kind is RecordKind.XATTRS and length == 0:
                continue
            if kind in (RecordKind.DIR_CONTENT, RecordKind.DIR_ATTRS):
                with pytest.raises(DamagedError):
                    quick_references(kind, payload[:length], ORIGIN)
            with pytest.raises(DamagedError):
                use_everything(kind, payload[:length])
        with pytest.raises(DamagedError):
            use_everything(kind, payload + b"\1")


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(data=st.data())
def test_changed_bytes_do_no_harm(kind: RecordKind, data: st.DataObject) -> None:
    payload = bytearray(data.draw(st.sampled_from(SAMPLES[kind])))
    for _ in range(data.draw(st.integers(1, 4))):
        near = st.integers(0, min(len(payload), 120) - 1)
        at = data.draw(st.one_of(near, st.integers(0, len(payload) - 1)))
        payload[at] = data.draw(st.sampled_from((0, 1, 2, 8, 46, 47, 127, 128, 254, 255)))
    expect_only_damage(kind, bytes(payload))


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(payload=st.binary(max_size=400))
def test_any_bytes_do_no_harm(kind: RecordKind, payload: bytes) -> None:
    expect_only_damage(kind, payload)
    expect_only_damage(kind, b"\1" + payload)


def _content(names: Sequence[bytes], *, count: int | None = None, kind: int = 4, rest: int = 0) -> bytes:
    """A DIR_CONTENT payload by hand: FIFOs unless told otherwise."""
    head = struct.pack("<B3xI", 1, len(names) if count is None else count)
    kinds = bytes([kind]) * len(names) + bytes(len(names) if kind == 1 else 0)
    rests = b"".join(struct.pack("<Q", rest) for _ in names)
    planes = b"".join(rests[at::8] for at in range(8))
    return head + bytes(map(len, names)) + b"".join(names) + kinds + planes


def test_the_hand_made_segment_is_good() -> None:
    assert DirContent(_content([b"a", b"b"]), ORIGIN).names == [b"a", b"b"]


@pytest.mark.parametrize(
    "payload",
    [
        _content([b""]),
        _content([b"."]),
        _content([b".."]),
        _content([b"a/b"]),
        _content([b"a\0"]),
        _content([b"b", b"a"]),
        _content([b"a", b"a"]),
        _content([]),
        _content([b"a"], count=2),
        _content([b"a"], count=1 << 31),
        _content([b"a"], kind=0),
        _content([b"a"], kind=9),
        _content([b"a"], rest=1 << 63),
        _content([b"a"], kind=1, rest=1 << 63),
        b"\2" + _content([b"a"])[1:],
    ],
)
def test_what_no_directory_holds_is_damage(payload: bytes) -> None:
    with pytest.raises(DamagedError, match=ORIGIN.hex()):
        use_everything(RecordKind.DIR_CONTENT, payload)


def test_an_extent_beyond_the_largest_offset_is_damage() -> None:
    """Even where the size that comes out of it looks possible."""
    gap, length = (1 << 63) - 5, 10
    size_rest = (100 - gap - length) % (1 << 64)
    numbers = struct.pack("<QQII", size_rest, gap, length, 0)
    payload = struct.pack("<B3xI", 1, 1) + b"\1a" + bytes([1, 1]) + numbers + b"c" * 32
    assert DirContent(payload, ORIGIN).names == [b"a"]
    with pytest.raises(DamagedError, match=ORIGIN.hex()):
        use_everything(RecordKind.DIR_CONTENT, payload)


def _huge_counts() -> list[tuple[RecordKind, bytes]]:
    most = (1 << 32) - 1
    return [
        (RecordKind.DIR_CONTENT, struct.pack("<B3xI", 1, most)),
        (RecordKind.DIR_ATTRS, struct.pack("<B3xII", 1, most, most)),
        (RecordKind.DIR_ATTRS, struct.pack("<B3xII", 1, 1, most)),
        (RecordKind.DIR_LIST, struct.pack("<BBBxI", 1, 1, 1, most)),
        (RecordKind.DIR_LIST, struct.pack("<BBBxI", 1, 2, 1, most)),
        (RecordKind.EXTENT_SEGMENT, struct.pack("<B3xI", 1, most)),
        (RecordKind.EXTENT_LIST, struct.pack("<BBxxI", 1, 1, most)),
        (RecordKind.LINKS_SEGMENT, struct.pack("<B3xI", 1, most)),
        (RecordKind.LINKS_LIST, struct.pack("<BBxxI", 1, 1, most)),
        (RecordKind.XATTRS, struct.pack("<BI", 255, most)),
        (RecordKind.BITMAP, struct.pack("<BBBxI32s32sQQI4x", 1, 1, 0, 0, b"r", b"", 1 << 60, 1 << 60, most)),
        (RecordKind.MANIFEST, b"[" * 100_000),
    ]


@pytest.mark.parametrize(("kind", "payload"), _huge_counts())
def test_a_huge_count_allocates_nothing(kind: RecordKind, payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            use_everything(kind, payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
