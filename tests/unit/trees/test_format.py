"""FORMAT.md, followed by a reader that shares nothing with the program; and payloads that must not change."""

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import xxhash
from hypothesis import given

from repository.format.inode import Entry, Extent, ExtentsRef, Inode, NodeKind
from repository.format.record import RecordKind
from repository.ids import FileId, RecordId
from repository.trees.cache import RecordCache
from repository.trees.reader import TreeReader
from repository.trees.writer import TreeWriter
from tests.support.inodes import directories
from tests.support.memory_store import MemoryStore

U64: Final = 1 << 64


class Bytes:
    """Takes a payload apart as the document says."""

    def __init__(self, payload: bytes) -> None:
        self.left = payload

    def take(self, length: int) -> bytes:
        found, self.left = self.left[:length], self.left[length:]
        assert len(found) == length
        return found

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def planes(self, rows: int, *fields: int) -> list[tuple[int, ...]]:
        width = sum(fields)
        planes = [self.take(rows) for _ in range(width)]
        found: list[tuple[int, ...]] = []
        for row in range(rows):
            line = Bytes(bytes(plane[row] for plane in planes))
            found.append(tuple(line.number(length) for length in fields))
        return found

    def ids(self, count: int) -> Iterator[RecordId | None]:
        for _ in range(count):
            found = self.take(32)
            yield RecordId(found) if any(found) else None


def content_of(payload: bytes) -> list[tuple[bytes, dict[str, object]]]:
    """Names and what the content side says about each."""
    left = Bytes(payload)
    assert left.number(1) == 1
    left.take(3)
    count = left.number(4)
    names = [left.take(length) for length in list(left.take(count))]
    kinds = list(left.take(count))
    forms = list(left.take(kinds.count(1)))
    sizes = left.planes(count, 8)
    inline = sum(form for form in forms if form != 255)
    extents = left.planes(inline, 8, 4, 4)
    lists = left.planes(forms.count(255), 8, 8)
    folders = left.planes(kinds.count(2), 8, 8)
    devices = left.planes(kinds.count(6) + kinds.count(7), 8)
    lengths = left.planes(kinds.count(3), 2)
    targets = [left.take(length) for (length,) in lengths]
    chunks, heads, children = (list(left.ids(number)) for number in (inline, len(lists), len(folders)))
    assert not left.left
    found: list[tuple[bytes, dict[str, object]]] = []
    for name, kind, (size,) in zip(names, kinds, sizes, strict=True):
        row: dict[str, object] = {"kind": kind, "size": size}
        if kind == 1:
            form = forms.pop(0)
            if form == 255:
                number, allocated = lists.pop(0)
                row |= {"extents": (heads.pop(0), number), "allocated": allocated}
            else:
                end, allocated, parts = 0, 0, []
                for _ in range(form):
                    gap, length, within = extents.pop(0)
                    parts.append((end + gap, length, chunks.pop(0), within))
                    end, allocated = end + gap + length, allocated + length
                row |= {"extents": tuple(parts), "allocated": allocated, "size": (end + size) % U64}
        elif kind == 2:
            row |= {"child": children.pop(0), "totals": folders.pop(0)}
        elif kind == 3:
            row["target"] = targets.pop(0)
        elif kind in (6, 7):
            row["rdev"] = devices.pop(0)[0]
        found.append((name, row))
    return found


def signed(number: int) -> int:
    return number - U64 if number >= U64 // 2 else number


def attributes_of(payload: bytes, kinds: list[int], xattrs: dict[RecordId, bytes]) -> list[dict[str, object]]:
    """What the attribute side says about each entry."""
    left = Bytes(payload)
    assert left.number(1) == 1
    left.take(3)
    count, folders = left.number(4), left.number(4)
    rows = left.planes(count, 8, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4, 2)
    lengths = [length for (length,) in left.planes(count, 2)]
    inline = [left.take(length) for length in lengths if length not in (0, 65535)]
    records, children = (list(left.ids(number)) for number in (lengths.count(65535), folders))
    assert not left.left
    found: list[dict[str, object]] = []
    before: tuple[int, ...] = (0, 0, 0, 0)
    for row, kind, length in zip(rows, kinds, lengths, strict=True):
        before = tuple((old + new) % U64 for old, new in zip(before, row[:4], strict=True))
        file_id, *seconds = before
        mtime_n = row[5]
        parts = ((row[4] + mtime_n) % (1 << 32), mtime_n, (row[6] + mtime_n) % (1 << 32))
        times = tuple(signed(second) * 10**9 + part for second, part in zip(seconds, parts, strict=True))
        encoded = b"" if not length else inline.pop(0) if length != 65535 else xattrs[records.pop(0) or RecordId(b"")]
        pairs = []
        pieces = Bytes(encoded)
        while pieces.left:
            name_length, value_length = pieces.number(1), pieces.number(4)
            pairs.append((pieces.take(name_length), pieces.take(value_length)))
        version, uid, gid, nlink, mode = row[7:]
        child = children.pop(0) if kind == 2 else None
        found.append(
            {"file_id": file_id, "times": times, "xattrs": tuple(pairs), "child": child,
             "rest": (version, uid, gid, nlink, mode)}
        )  # fmt: skip
    return found


@given(directories())
def test_the_document_tells_how_to_read_a_directory(entries: list[Entry]) -> None:
    store = MemoryStore()
    reader = TreeReader(RecordCache(store, 1 << 26, inline=True))
    ref, _ = TreeWriter(store, reader, store.lease()).write_directory(entries)
    if ref.content is None or ref.attrs is None:
        assert not entries
        return
    content = content_of(store.records[ref.content].payload)
    xattrs = {one: record.payload for one, record in store.records.items() if record.kind is RecordKind.XATTRS}
    kinds = [entry.inode.kind.value for entry in entries]
    attributes = attributes_of(store.records[ref.attrs].payload, kinds, xattrs)
    assert [name for name, _ in content] == [entry.name for entry in entries]
    for (_, row), attrs, (_, inode) in zip(content, attributes, entries, strict=True):
        assert (row["kind"], row["size"]) == (inode.kind, inode.size)
        assert attrs["file_id"] == inode.file_id
        if inode.kind is NodeKind.LINK:
            assert (attrs["times"], attrs["rest"]) == ((0, 0, 0), (0, 0, 0, 0, 0))
            continue
        assert attrs["times"] == (inode.atime_ns, inode.mtime_ns, inode.ctime_ns)
        assert attrs["rest"] == (inode.version, inode.uid, inode.gid, inode.nlink, inode.mode)
        assert attrs["xattrs"] == inode.xattrs
        assert row.get("target", b"") == inode.target
        assert row.get("rdev", 0) == inode.rdev
        if inode.kind is NodeKind.DIRECTORY:
            assert (row["child"], attrs["child"]) == (inode.directory.content, inode.directory.attrs)
            assert row["totals"] == inode.totals
        if inode.kind is NodeKind.FILE:
            extents = inode.extents
            expected = (extents.head, extents.count) if isinstance(extents, ExtentsRef) else extents
            assert (row["extents"], row["allocated"]) == (expected, inode.allocated_bytes)


def test_the_document_tells_where_segments_end() -> None:
    """And how lists are read, of one level."""
    store = MemoryStore()
    reader = TreeReader(RecordCache(store, 1 << 26, inline=True))
    chunk = RecordId(b"c" * 32)
    entries: list[Entry] = []
    for number in range(5000):
        extents = tuple(Extent(at * 9, 9, chunk, 0) for at in range(number % 20))
        target = b"t" * (number % 900) if number % 7 == 0 else b""
        kind = NodeKind.SYMLINK if target else NodeKind.FILE
        entries.append(
            Entry(b"n%05d" % number, Inode(kind, FileId(number), target=target, extents=() if target else extents))
        )
    ref, _ = TreeWriter(store, reader, store.lease()).write_directory(entries)
    groups: list[list[bytes]] = [[]]
    total = 0
    for name, inode in entries:
        assert not isinstance(inode.extents, ExtentsRef)
        weight = 1 + len(inode.extents) // 4 + len(inode.target) // 128
        total += weight
        groups[-1].append(name)
        if total >= 1024 or (total >= 64 and xxhash.xxh3_64_intdigest(name) < weight * (2**64 // 192)):
            groups.append([])
            total = 0
    groups = [group for group in groups if group]
    assert ref.content is not None and ref.attrs is not None
    left = Bytes(store.records[ref.content].payload)
    assert (left.number(1), left.number(1), left.number(1), left.number(1)) == (1, 1, 1, 0)
    count = left.number(4)
    rows = left.planes(count, 8, 8, 8)
    names = [left.take(length) for length in list(left.take(count))]
    ids = list(left.ids(count))
    assert [row[0] for row in rows] == [len(group) for group in groups]
    assert names == [group[-1] for group in groups]
    assert [[name for name, _ in content_of(store.records[one].payload)] for one in ids if one] == groups
    attrs = Bytes(store.records[ref.attrs].payload)
    assert (attrs.number(1), attrs.number(1), attrs.number(1), attrs.number(1), attrs.number(4)) == (1, 2, 1, 0, count)
    assert [entries for (entries,) in attrs.planes(count, 8)] == [len(group) for group in groups]
    assert all(one is not None and store.records[one].kind is RecordKind.DIR_ATTRS for one in attrs.ids(count))


def test_payloads_stay_what_they_are() -> None:
    """A repository deduplicates against what earlier releases wrote: the same tree is the same bytes for ever."""
    store = MemoryStore()
    reader = TreeReader(RecordCache(store, 1 << 26, inline=True))
    writer = TreeWriter(store, reader, store.lease())
    chunks = [RecordId(hashlib.sha256(struct.pack("<I", number)).digest()) for number in range(2000)]
    extents = [Extent(number * 4096, 4096, chunk, number % 3) for number, chunk in enumerate(chunks)]
    entries = []
    for number in range(3000):
        kind = (NodeKind.FILE, NodeKind.SYMLINK, NodeKind.CHARACTER, NodeKind.FILE, NodeKind.DIRECTORY)[number % 5]
        inode = Inode(
            kind,
            FileId(number + 2),
            version=number % 9,
            mode=0o644,
            uid=number % 4,
            gid=100,
            rdev=7 if kind is NodeKind.CHARACTER else 0,
            size=number * 99,
            atime_ns=number * 10**9 + 5,
            mtime_ns=1_700_000_000_123_456_789 - number,
            ctime_ns=-number,
            xattrs=((b"user.name", b"v" * (number % 500)),) if number % 3 == 0 else (),
            target=b"target-%d" % number if kind is NodeKind.SYMLINK else b"",
            extents=tuple(extents[: number % 9]) if kind is NodeKind.FILE else (),
        )
        entries.append(Entry(b"entry-%05d" % number, inode))
    writer.write_directory(entries)
    writer.write_extents(extents)
    writer.rewrite_links(None, {inode.file_id: inode for _, inode in entries if inode.kind is NodeKind.FILE})
    digests = {
        kind.name: hashlib.sha256(b"".join(sorted(one.payload for one in store.records.values() if one.kind is kind)))
        for kind in sorted({record.kind for record in store.records.values()})
    }
    assert {name: digest.hexdigest()[:16] for name, digest in digests.items()} == GOLDEN


GOLDEN: Final = {
    "DIR_ATTRS": "f84c03928d207da8",
    "DIR_CONTENT": "20297be2b749cd11",
    "DIR_LIST": "a16f9db974ce328e",
    "EXTENT_LIST": "410ee503f0f92bad",
    "EXTENT_SEGMENT": "3e2b3a82f130556a",
    "LINKS_LIST": "0266c06f80311207",
    "LINKS_SEGMENT": "26ceabc6a5b00a6e",
    "XATTRS": "3f27766e7ae88a2c",
}
"""SHA-256 over the sorted payloads of each kind, its first 16 digits."""
