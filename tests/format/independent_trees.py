"""The independent reader's part for manifests, directories and bitmaps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pyroaring import BitMap64

from tests.format.independent import BITMAP, DIR_ATTRS, DIR_CONTENT, DIR_LIST, MANIFEST, NO_ID, need
from tests.format.independent_borders import SEGMENTS, Shape, of_bytes
from tests.format.independent_files import DIRECTORY, FILE, Bytes, Inode, Inodes, weight


@dataclass(frozen=True)
class Manifest:
    """A snapshot's root, and what else its manifest says."""

    root: Inode
    links: bytes | None
    totals: tuple[int, int]
    source: str
    kind: str
    name: str
    time_ns: int
    next_file_id: int


class Trees(Inodes):
    """Reads whole snapshots."""

    def manifest(self, record_id: bytes) -> Manifest:
        self.seen.add(record_id)
        said = json.loads(self.records.read(record_id, MANIFEST).payload)
        need(said["version"] == 1, "version of a manifest")
        root = said["root"]
        inode = Inode(
            DIRECTORY, root["file_id"], root["version"], root["mode"], root["uid"], root["gid"], 0, root["size"],
            root["nlink"], root["atime_ns"], root["mtime_ns"], root["ctime_ns"],
            tuple((bytes.fromhex(name), bytes.fromhex(value)) for name, value in root["xattrs"]),
            content=bytes.fromhex(root["content"] or "00" * 32), attrs=bytes.fromhex(root["attrs"] or "00" * 32),
            totals=(root["totals"]["files"], root["totals"]["content_bytes"]),
        )  # fmt: skip
        links = None if said["links"] is None else bytes.fromhex(said["links"])
        totals = said["totals"]["files"], said["totals"]["content_bytes"]
        return Manifest(
            inode, links, totals, said["source"], said["kind"], said["name"], said["time_ns"], said["next_file_id"]
        )

    # --- directories -----------------------------------------------------------------------------------------

    def listing(self, content: bytes, attrs: bytes) -> list[tuple[bytes, Inode]]:
        """All entries of a directory, in the order of their names."""
        if content == NO_ID:
            need(attrs == NO_ID, "an empty directory has neither listing")
            return []
        shape = Shape()
        found = self._listing(content, attrs, None, shape)
        shape.check(SEGMENTS)
        names = [name for name, _ in found]
        need(all(a < b for a, b in pairwise(names)), "names in order")
        return found

    def _listing(self, content: bytes, attrs: bytes, level: int | None, shape: Shape) -> list[tuple[bytes, Inode]]:
        """`level` is that of the list above; None at the top."""
        kind, data = self.read(content, DIR_CONTENT, DIR_LIST)
        attrs_kind, attrs_data = self.read(attrs, DIR_ATTRS, DIR_LIST)
        need((kind == DIR_LIST) == (attrs_kind == DIR_LIST), "listings of the same shape")
        if kind == DIR_CONTENT:
            need(level in (None, 1), "a segment below a list of level 1")
            segment = self._segment(data, attrs_data)
            shape.add(0, [of_bytes(name)._replace(weight=weight(inode)) for name, inode in segment])
            return segment
        need(data.number(1) == 1 and attrs_data.number(1) == 2, "flavours")
        here = data.number(1)
        need(attrs_data.number(1) == here and (level is None or here == level - 1), "levels")
        need(data.number(1) == attrs_data.number(1) == 0, "zero")
        count = data.number(4)
        need(attrs_data.number(4) == count and (count > 1 or level is not None), "children")
        rows = data.planes(count, 8, 8, 8)
        lengths = [data.number(1) for _ in range(count)]
        lasts = [data.take(length) for length in lengths]
        shape.add(here, [of_bytes(name, here) for name in lasts])
        counts = [row[0] for row in attrs_data.planes(count, 8)]
        need(counts == [row[0] for row in rows], "counts of entries")
        found: list[tuple[bytes, Inode]] = []
        children = zip(rows, lasts, data.ids(count), attrs_data.ids(count), strict=True)
        for (entries, files, content_bytes), last, content_id, attrs_id in children:
            part = self._listing(content_id, attrs_id, here, shape)
            need((len(part), part[-1][0]) == (entries, last), "a child of a list")
            need(total(part) == (files, content_bytes), "totals in a list")
            found += part
        data.end()
        attrs_data.end()
        return found

    def _segment(self, data: Bytes, attrs: Bytes) -> list[tuple[bytes, Inode]]:
        need(data.take(3) == attrs.take(3) == bytes(3), "zeros")
        count = data.number(4)
        lengths = data.take(count)
        names = [data.take(length) for length in lengths]
        inodes = self.file_columns(data, count)
        need(attrs.number(4) == count, "as many attributes as names")
        directories = attrs.number(4)
        need(directories == sum(inode.type == DIRECTORY for inode in inodes), "as many directories")
        inodes = self.attribute_columns(attrs, inodes)
        data.end()
        attrs.end()
        return list(zip(names, inodes, strict=True))

    # --- bitmaps

    def bitmap(self, head: bytes, manifest: bytes | None) -> tuple[BitMap64, bool, int]:
        """Numbers, whether they are exact, and the depth. `manifest`: what it must be bound to; None: a parent."""
        _, data = self.read(head, BITMAP)
        need(data.number(1) == 1, "role of a bitmap's head")
        flags = data.number(1)
        need(data.number(1) == 0, "zero")
        depth = data.number(4)
        bound, parent = data.take(32), data.take(32)
        need(manifest is None or bound == manifest, "a bitmap is bound to its manifest")
        need((depth == 0) == (parent == NO_ID) and depth < 64, "depth of a bitmap")
        added, removed, parts = data.number(8), data.number(8), data.number(4)
        need(data.number(4) == 0, "zero")
        text = b""
        for part in data.ids(parts):
            _, piece = self.read(part, BITMAP)
            need(piece.number(1) == 2 and piece.number(2) == 0, "role of a bitmap's part")
            text += piece.rest()
        text = text if parts else data.take(added + removed)
        data.end()
        need(len(text) == added + removed, "lengths of the sets")
        numbers = BitMap64()
        if depth:
            numbers, _, above = self.bitmap(parent, None)
            need(above == depth - 1, "depth of the parent")
        if added:
            numbers |= BitMap64.deserialize(text[:added])
        if removed:
            numbers -= BitMap64.deserialize(text[added:])
        return numbers, flags & 1 != 0, depth


def total(entries: Sequence[tuple[bytes, Inode]]) -> tuple[int, int]:
    """What entries add to the totals of their directory: names that are no directories, bytes."""
    files = content_bytes = 0
    for _, inode in entries:
        if inode.type == DIRECTORY:
            files += inode.totals[0]
            content_bytes += inode.totals[1]
        else:
            files += 1
            content_bytes += inode.size if inode.type == FILE else 0
    return files, content_bytes
