"""The independent reader's part for what describes an inode: its columns, extent lists, links tables, xattrs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tests.format.independent import (
    CHUNK,
    EXTENT_LIST,
    EXTENT_SEGMENT,
    LINKS_LIST,
    LINKS_SEGMENT,
    NO_ID,
    XATTRS,
    Records,
    need,
)
from tests.format.independent_borders import EXTENT_SEGMENTS, SEGMENTS, Shape, of_file, of_id

FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK, LINK = range(1, 9)
M64: Final = (1 << 64) - 1
EXTENTS_HERE_MAX: Final = 64
IN_A_LIST: Final = 255
XATTRS_APART: Final = 65_535


class Extent(NamedTuple):
    """`length` bytes from `offset` on are those of `chunk` from `start` on."""

    offset: int
    length: int
    chunk: bytes
    start: int


@dataclass(frozen=True)
class Inode:
    """Everything that a tree says of an inode. Of a directory, `totals` and its two listings."""

    type: int
    file_id: int = 0
    version: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    nlink: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    extents: tuple[Extent, ...] = ()
    content: bytes = NO_ID
    attrs: bytes = NO_ID
    totals: tuple[int, int] = (0, 0)


class Bytes:
    """A payload that is read from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        need(self._at + count <= len(self._data), "a payload ends early")
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def planes(self, rows: int, *sizes: int) -> list[tuple[int, ...]]:
        """A table in byte planes, by rows."""
        columns: list[list[int]] = []
        for size in sizes:
            block = self.take(size * rows)
            columns.append([int.from_bytes(block[row::rows], "little") for row in range(rows)])
        return list(zip(*columns, strict=True))

    def ids(self, count: int) -> list[bytes]:
        return [self.take(32) for _ in range(count)]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        need(self._at == len(self._data), "a payload ends late")

    @property
    def more(self) -> bool:
        return self._at < len(self._data)


def pairs(data: Bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Encoded xattrs up to the end."""
    found: list[tuple[bytes, bytes]] = []
    while data.more:
        lengths = data.number(1), data.number(4)
        found.append((data.take(lengths[0]), data.take(lengths[1])))
    return tuple(found)


def signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def weight(inode: Inode) -> int:
    """An entry's, for borders."""
    extents = len(inode.extents) if len(inode.extents) <= EXTENTS_HERE_MAX else 0
    return 1 + extents // 4 + len(inode.target) // 128


class Inodes:
    """Reads inodes, and notes the ids of all records that it came by since `seen` was emptied."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.seen: set[bytes] = set()

    def read(self, record_id: bytes, *kinds: int) -> tuple[int, Bytes]:
        """Kind and payload, behind its layout."""
        self.seen.add(record_id)
        record = self.records.read(record_id, *kinds)
        data = Bytes(record.payload)
        if record.kind != XATTRS:
            need(data.number(1) == 1, "layout")
        return record.kind, data

    # --- columns -----------------------------------------------------------------------------------------------

    def file_columns(self, data: Bytes, count: int) -> list[Inode]:
        """Types, sizes, extents, targets, devices, content listings."""
        types = data.take(count)
        numbers = iter(data.take(types.count(FILE)))
        in_list = [next(numbers) if kind == FILE else 0 for kind in types]
        sizes = [row[0] for row in data.planes(count, 8)]
        here = sum(number for number in in_list if number != IN_A_LIST)
        gaps = iter(data.planes(here, 8, 4, 4))
        listed = iter(data.planes(in_list.count(IN_A_LIST), 8, 8))
        below = iter(data.planes(types.count(DIRECTORY), 8, 8))
        devices = iter(data.planes(types.count(CHARACTER) + types.count(BLOCK), 8))
        targets = [data.take(length) for (length,) in data.planes(types.count(SYMLINK), 2)]
        chunks = iter(data.ids(here))
        lists = iter(data.ids(in_list.count(IN_A_LIST)))
        listings = iter(data.ids(types.count(DIRECTORY)))
        links = iter(targets)
        found: list[Inode] = []
        for kind, extents, size in zip(types, in_list, sizes, strict=True):
            inode = Inode(kind, size=size)
            if kind == FILE and extents == IN_A_LIST:
                inode = replace(inode, extents=self.extent_list(next(lists), *next(listed)))
            elif kind == FILE:
                runs = self._runs([next(gaps) for _ in range(extents)], [next(chunks) for _ in range(extents)], 0)
                end = runs[-1].offset + runs[-1].length if runs else 0
                inode = replace(inode, extents=runs, size=(size + end) & M64)
            elif kind == DIRECTORY:
                files, content_bytes = next(below)
                inode = replace(inode, content=next(listings), totals=(files, content_bytes))
            elif kind in (CHARACTER, BLOCK):
                inode = replace(inode, rdev=next(devices)[0])
            elif kind == SYMLINK:
                inode = replace(inode, target=next(links))
            found.append(inode)
        return found

    def attribute_columns(self, data: Bytes, inodes: Sequence[Inode]) -> list[Inode]:
        """Identity, times, owners, xattrs, attribute listings."""
        rows = data.planes(len(inodes), 8, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4, 2)
        # In a row: file id; seconds, then nanoseconds, of atime, mtime, ctime; version, uid, gid, nlink, mode.
        lengths = [length for (length,) in data.planes(len(inodes), 2)]
        here = [data.take(length) if length != XATTRS_APART else b"" for length in lengths]
        apart = iter(data.ids(lengths.count(XATTRS_APART)))
        listings = iter(data.ids(sum(inode.type == DIRECTORY for inode in inodes)))
        file_id, seconds = 0, (0, 0, 0)
        found: list[Inode] = []
        for inode, row, length, text in zip(inodes, rows, lengths, here, strict=True):
            file_id = (file_id + row[0]) & M64
            seconds = ((seconds[0] + row[1]) & M64, (seconds[1] + row[2]) & M64, (seconds[2] + row[3]) & M64)
            mtime = row[5]
            nanoseconds = (row[4] + mtime) % (1 << 32), mtime, (row[6] + mtime) % (1 << 32)
            times = [signed(s) * 1_000_000_000 + n for s, n in zip(seconds, nanoseconds, strict=True)]
            need(file_id < 1 << 40 and max(nanoseconds) < 1_000_000_000, "bounds of attributes")
            xattrs = pairs(self.read(next(apart), XATTRS)[1] if length == XATTRS_APART else Bytes(text))
            attrs = next(listings) if inode.type == DIRECTORY else NO_ID
            version, uid, gid, nlink, mode = row[7:]
            named = replace(inode, file_id=file_id, version=version, uid=uid, gid=gid, nlink=nlink, mode=mode)
            timed = replace(named, atime_ns=times[0], mtime_ns=times[1], ctime_ns=times[2])
            found.append(replace(timed, xattrs=xattrs, attrs=attrs))
        return found

    # --- extents ---------------------------------------------------------------------------------------------

    def _runs(self, rows: Sequence[tuple[int, ...]], chunks: Sequence[bytes], at: int) -> tuple[Extent, ...]:
        found: list[Extent] = []
        for (gap, length, start), chunk in zip(rows, chunks, strict=True):
            found.append(Extent(at + gap, length, chunk, start))
            at += gap + length
        return tuple(found)

    def extent_list(self, head: bytes, count: int, covered: int | None) -> tuple[Extent, ...]:
        """All extents under an EXTENT_LIST, which has `count` of them with `covered` bytes (None: not told)."""
        shape = Shape()
        found = self._extent_list(head, None, shape)
        shape.check(EXTENT_SEGMENTS)
        sums = len(found), sum(extent.length for extent in found)
        need(sums == (count, sums[1] if covered is None else covered), "an extent list's sums")
        return found

    def _extent_list(self, head: bytes, level: int | None, shape: Shape) -> tuple[Extent, ...]:
        _, data = self.read(head, EXTENT_LIST)
        here = data.number(1)
        need(data.number(2) == 0 and (level is None or here == level - 1), "an extent list's level")
        count = data.number(4)
        rows = data.planes(count, 8, 8, 8, 8)
        found: list[Extent] = []
        children = data.ids(count)
        shape.add(here, [of_id(child) for child in children])
        for (first, end, extents, covered), child in zip(rows, children, strict=True):
            part = self._extent_segment(child, first) if here == 1 else self._extent_list(child, here, shape)
            if here == 1:
                shape.add(0, [of_id(run.chunk) for run in part])
            sums = part[0].offset, part[-1].offset + part[-1].length, len(part), sum(run.length for run in part)
            need(sums == (first, end, extents, covered), "a row of an extent list")
            found += part
        data.end()
        return tuple(found)

    def _extent_segment(self, record_id: bytes, first: int) -> tuple[Extent, ...]:
        _, data = self.read(record_id, EXTENT_SEGMENT)
        need(data.take(3) == bytes(3), "zeros")
        count = data.number(4)
        rows = data.planes(count, 8, 4, 4)
        need(rows[0][0] == 0, "the first gap is 0")
        runs = self._runs(rows, data.ids(count), first)
        data.end()
        return runs

    def content(self, inode: Inode) -> bytes:
        """A file's bytes."""
        out = bytearray(inode.size)
        for offset, length, chunk, start in inode.extents:
            self.seen.add(chunk)
            part = self.records.read(chunk, CHUNK).payload[start : start + length]
            need(len(part) == length and offset + length <= inode.size, "an extent within its chunk and its file")
            out[offset : offset + length] = part
        return bytes(out)

    # --- links -----------------------------------------------------------------------------------------------

    def links(self, table: bytes | None) -> dict[int, Inode]:
        """The links table, by file id."""
        shape = Shape()
        found = [] if table is None else self._links(table, None, shape)
        shape.check(SEGMENTS)
        need(found == sorted(found, key=lambda inode: inode.file_id), "links by file id")
        return {inode.file_id: inode for inode in found}

    def _links(self, table: bytes, level: int | None, shape: Shape) -> list[Inode]:
        kind, data = self.read(table, LINKS_SEGMENT, LINKS_LIST)
        if kind == LINKS_SEGMENT:
            need(data.take(3) == bytes(3) and level in (None, 1), "a links segment's place")
            inodes = self.file_columns(data, data.number(4))
            inodes = self.attribute_columns(data, inodes)
            shape.add(0, [of_file(inode.file_id)._replace(weight=weight(inode)) for inode in inodes])
            data.end()
            return inodes
        here = data.number(1)
        need(data.number(2) == 0 and (level is None or here == level - 1), "a links list's level")
        count = data.number(4)
        rows = data.planes(count, 8, 8, 8)
        shape.add(here, [of_file(last, here) for last, _, _ in rows])
        found: list[Inode] = []
        for (last, inodes_below, size), child in zip(rows, data.ids(count), strict=True):
            part = self._links(child, here, shape)
            sums = part[-1].file_id, len(part), sum(inode.size for inode in part if inode.type == FILE)
            need(sums == (last, inodes_below, size), "a row of a links list")
            found += part
        data.end()
        return found
