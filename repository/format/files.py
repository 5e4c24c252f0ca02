"""The content side of inodes as columns: types, sizes, extents, link targets, devices, child listings. Pure."""

from collections.abc import Iterator
from itertools import accumulate, islice, pairwise
from typing import Final

import numpy as np

from repository.format.filerows import (
    EXTENT_ROW,
    FORM_REF,
    INLINE_EXTENTS_MAX,
    PAIR_ROW,
    FileRows,
)
from repository.format.inode import Extent, ExtentsRef, NodeKind, Totals
from repository.format.packing import (
    SIZE_MAX_BYTES,
    U16_ROW,
    U64_ROW,
    Cursor,
    id_at,
    id_or_none,
    refuse,
    split_ids,
)
from repository.format.record import RAW_MAX_BYTES
from repository.ids import RECORD_ID_BYTES, RecordId

EXTENT_DTYPE: Final = np.dtype([("gap", "<u8"), ("length", "<u4"), ("chunk_offset", "<u4")])

_U64: Final = (1 << 64) - 1
_FILE: Final = int(NodeKind.FILE)
FORMS: Final = bytes(range(INLINE_EXTENTS_MAX + 1)) + bytes([FORM_REF])
KINDS: Final = bytes(NodeKind)


def check_extent_rows(rows: bytes, origin: RecordId) -> None:
    """Raises DamagedError where an extent is empty, longer than any chunk, or reaches behind one."""
    if not rows:
        return
    table = np.frombuffer(rows, EXTENT_DTYPE)
    lengths, starts = table["length"], table["chunk_offset"]
    if int(lengths.min()) == 0 or int(lengths.max()) > RAW_MAX_BYTES or int(starts.max()) >= RAW_MAX_BYTES:
        refuse(origin, "an extent's length is impossible")


class FileColumns:
    """The content side of n inodes: types, sizes, extents, targets, device numbers, child listings.

    Decoded only as far as slices; one row's values are computed when asked for. Immutable, so thread safe.
    """

    __slots__ = ("_devices", "_directories", "_extents", "_forms", "_ids", "_refs", "_rests", "_target_ends",
                 "_targets", "count", "directories", "inline_count", "kinds", "origin")  # fmt: skip

    def __init__(self, cursor: Cursor, count: int) -> None:
        """Takes the columns of `count` inodes from `cursor`. Raises DamagedError."""
        origin = cursor.origin
        self.origin = origin
        self.count = count
        kinds = cursor.take(count)
        forms = cursor.take(kinds.count(NodeKind.FILE))
        if kinds.translate(None, KINDS) or forms.translate(None, FORMS):
            refuse(origin, "an entry's type is unknown")
        self.kinds = kinds
        self._forms = forms
        self._rests = cursor.rows(count, U64_ROW.size)
        references = forms.count(FORM_REF)
        inline = sum(forms) - FORM_REF * references
        self.inline_count = inline
        self.directories = kinds.count(NodeKind.DIRECTORY)
        self._extents = cursor.rows(inline, EXTENT_ROW.size)
        check_extent_rows(self._extents, origin)
        self._refs = cursor.rows(references, PAIR_ROW.size)
        self._directories = cursor.rows(self.directories, PAIR_ROW.size)
        devices = kinds.count(NodeKind.CHARACTER) + kinds.count(NodeKind.BLOCK)
        self._devices = cursor.rows(devices, U64_ROW.size)
        links = kinds.count(NodeKind.SYMLINK)
        lengths = cursor.rows(links, U16_ROW.size)
        ends = list(accumulate((length for (length,) in U16_ROW.iter_unpack(lengths)), initial=0))
        self._target_ends = ends
        self._targets = cursor.take(ends[-1])
        self._ids = cursor.take((inline + references + self.directories) * RECORD_ID_BYTES)

    @property
    def nbytes(self) -> int:
        """Estimated memory in bytes."""
        fixed = len(self._rests) + len(self._extents) + len(self._refs) + len(self._directories) + len(self._devices)
        return 700 + 2 * self.count + fixed + 8 * len(self._target_ends) + len(self._targets) + len(self._ids)

    def chunk_ids(self) -> list[RecordId]:
        """The chunks of the inline extents."""
        return split_ids(self._ids[: self.inline_count * RECORD_ID_BYTES])

    def node_ids(self) -> list[RecordId]:
        """Extent lists and child listings."""
        return split_ids(self._ids[self.inline_count * RECORD_ID_BYTES :])

    def extents(self, row: int) -> tuple[tuple[Extent, ...] | ExtentsRef, int, int]:
        """Extents, size and allocated bytes of the FILE at `row`."""
        forms = self._forms
        ordinal = self.kinds.count(NodeKind.FILE, 0, row)
        form = forms[ordinal]
        (rest,) = U64_ROW.unpack_from(self._rests, row * U64_ROW.size)
        if form == 0:
            return (), self._size(rest), 0
        if form == FORM_REF:
            index = forms.count(FORM_REF, 0, ordinal)
            count, allocated = PAIR_ROW.unpack_from(self._refs, index * PAIR_ROW.size)
            if allocated > SIZE_MAX_BYTES:
                refuse(self.origin, "an extent list is impossibly long")
            head = id_at(self._ids, self.inline_count + index)
            return ExtentsRef(head, count), self._size(rest), allocated
        first = sum(forms[:ordinal]) - FORM_REF * forms.count(FORM_REF, 0, ordinal)
        end = allocated = 0
        found: list[Extent] = []
        for index in range(first, first + form):
            gap, length, chunk_offset = EXTENT_ROW.unpack_from(self._extents, index * EXTENT_ROW.size)
            start = end + gap
            end = start + length
            allocated += length
            found.append(Extent(start, length, id_at(self._ids, index), chunk_offset))
        if end > SIZE_MAX_BYTES:
            refuse(self.origin, "an extent reaches behind the largest offset")
        return tuple(found), self._size((end + rest) & _U64), allocated

    def contents(self) -> Iterator[tuple[tuple[Extent, ...] | ExtentsRef, int, int]]:
        """What `extents` tells, of all rows in order and at a third of the cost; nothing for what is no FILE."""
        forms = iter(self._forms)
        extents = EXTENT_ROW.iter_unpack(self._extents)
        ids = self._ids
        at = 0
        for row, kind in enumerate(self.kinds):
            if kind != _FILE:
                yield (), 0, 0
                continue
            form = next(forms)
            if form == 1:
                gap, length, chunk_offset = next(extents)
                chunk = RecordId(ids[at : at + RECORD_ID_BYTES])
                at += RECORD_ID_BYTES
                (rest,) = U64_ROW.unpack_from(self._rests, row * U64_ROW.size)
                end = gap + length
                if end > SIZE_MAX_BYTES:
                    refuse(self.origin, "an extent reaches behind the largest offset")
                yield (Extent(gap, length, chunk, chunk_offset),), self._size((end + rest) & _U64), length
            else:
                if form != FORM_REF:
                    at += form * RECORD_ID_BYTES
                    for _ in islice(extents, form):
                        pass
                yield self.extents(row)

    def sizes(self, first: int) -> Iterator[tuple[int, int]]:
        """Size and allocated bytes of the rows from `first` on; zeros for a LINK. Raises DamagedError."""
        forms = self._forms
        ordinal = self.kinds.count(NodeKind.FILE, 0, first)
        references = forms.count(FORM_REF, 0, ordinal)
        inline = sum(forms[:ordinal]) - FORM_REF * references
        extents = EXTENT_ROW.iter_unpack(memoryview(self._extents)[inline * EXTENT_ROW.size :])
        rests = U64_ROW.iter_unpack(memoryview(self._rests)[first * U64_ROW.size :])
        for kind, (rest,) in zip(self.kinds[first:], rests, strict=True):
            size = rest
            allocated = 0
            if kind == _FILE:
                form = forms[ordinal]
                ordinal += 1
                if form == FORM_REF:
                    _, allocated = PAIR_ROW.unpack_from(self._refs, references * PAIR_ROW.size)
                    references += 1
                    if allocated > SIZE_MAX_BYTES:
                        refuse(self.origin, "an extent list is impossibly long")
                elif form == 1:
                    gap, allocated, _ = next(extents)
                    size = (gap + allocated + rest) & _U64
                    if gap > SIZE_MAX_BYTES - allocated:
                        refuse(self.origin, "an extent reaches behind the largest offset")
                elif form:
                    end = 0
                    for gap, length, _ in islice(extents, form):
                        end += gap + length
                        allocated += length
                    if end > SIZE_MAX_BYTES:
                        refuse(self.origin, "an extent reaches behind the largest offset")
                    size = (end + rest) & _U64
            yield self._size(size), allocated

    def plain_sizes(self) -> list[int]:
        """The size of every row, at a third of the cost of `sizes`; impossible ones are not refused."""
        kinds, forms = self.kinds, self._forms
        if forms.translate(None, b"\0\1"):
            return [size for size, _ in self.sizes(0)]
        rests = U64_ROW.iter_unpack(self._rests)
        extents = EXTENT_ROW.iter_unpack(self._extents)
        if self.inline_count == len(kinds):
            return [(gap + length + rest) & _U64 for (gap, length, _), (rest,) in zip(extents, rests, strict=True)]
        ends = iter([gap + length for gap, length, _ in extents])
        filled = iter(forms)
        return [
            (rest + next(ends)) & _U64 if kind == _FILE and next(filled) else rest
            for kind, (rest,) in zip(kinds, rests, strict=True)
        ]

    def _size(self, size: int) -> int:
        if size > SIZE_MAX_BYTES:
            refuse(self.origin, "a size is impossible")
        return size

    def size(self, row: int) -> int:
        """Size in bytes of an inode that is not a FILE."""
        (size,) = U64_ROW.unpack_from(self._rests, row * U64_ROW.size)
        return self._size(size)

    def target(self, row: int) -> bytes:
        """Target of the SYMLINK at `row`."""
        ordinal = self.kinds.count(NodeKind.SYMLINK, 0, row)
        return self._targets[self._target_ends[ordinal] : self._target_ends[ordinal + 1]]

    def device(self, row: int) -> int:
        """Device number of the CHARACTER or BLOCK at `row`."""
        kinds = self.kinds
        ordinal = kinds.count(NodeKind.CHARACTER, 0, row) + kinds.count(NodeKind.BLOCK, 0, row)
        (rdev,) = U64_ROW.unpack_from(self._devices, ordinal * U64_ROW.size)
        return int(rdev)

    def directory(self, row: int) -> tuple[RecordId | None, Totals]:
        """Content listing of the DIRECTORY at `row`, and what lies below it."""
        ordinal = self.kinds.count(NodeKind.DIRECTORY, 0, row)
        files, content_bytes = PAIR_ROW.unpack_from(self._directories, ordinal * PAIR_ROW.size)
        child = id_or_none(self._ids, len(self._ids) // RECORD_ID_BYTES - self.directories + ordinal)
        return child, Totals(files, content_bytes)

    def children(self, ordinal: int, most: int) -> list[RecordId]:
        """Content listings of the directories number `ordinal` and following, `most` of them; without empty ones."""
        first = len(self._ids) // RECORD_ID_BYTES - self.directories + ordinal
        return split_ids(self._ids[first * RECORD_ID_BYTES : (first + most) * RECORD_ID_BYTES])

    def bulks(self) -> Iterator[tuple[int, int]]:
        """How many extents each row holds itself, and how many bytes of a target."""
        forms = iter(self._forms)
        targets = pairwise(self._target_ends)
        for kind in self.kinds:
            if kind == _FILE:
                form = next(forms)
                yield 0 if form == FORM_REF else form, 0
            elif kind == NodeKind.SYMLINK:
                start, end = next(targets)
                yield 0, end - start
            else:
                yield 0, 0

    def part(self, first: int, end: int) -> FileRows:
        """The rows from `first` up to `end` as they are written."""
        kinds, forms, ids = self.kinds, self._forms, self._ids

        def of(*wanted: NodeKind) -> tuple[int, int]:
            before = sum(kinds.count(kind, 0, first) for kind in wanted)
            return before, before + sum(kinds.count(kind, first, end) for kind in wanted)

        file, file_end = of(NodeKind.FILE)
        ref = forms.count(FORM_REF, 0, file)
        ref_end = ref + forms.count(FORM_REF, file, file_end)
        inline = sum(forms[:file]) - FORM_REF * ref
        inline_end = sum(forms[:file_end]) - FORM_REF * ref_end
        directory, directory_end = of(NodeKind.DIRECTORY)
        device, device_end = of(NodeKind.CHARACTER, NodeKind.BLOCK)
        link, link_end = of(NodeKind.SYMLINK)
        heads = self.inline_count
        children = len(ids) // RECORD_ID_BYTES - self.directories
        ends = self._target_ends[link : link_end + 1]
        return FileRows(
            kinds[first:end],
            forms[file:file_end],
            self._rests[first * U64_ROW.size : end * U64_ROW.size],
            self._extents[inline * EXTENT_ROW.size : inline_end * EXTENT_ROW.size],
            self._refs[ref * PAIR_ROW.size : ref_end * PAIR_ROW.size],
            self._directories[directory * PAIR_ROW.size : directory_end * PAIR_ROW.size],
            self._devices[device * U64_ROW.size : device_end * U64_ROW.size],
            b"".join(U16_ROW.pack(behind - start) for start, behind in pairwise(ends)),
            self._targets[ends[0] : ends[-1]],
            ids[inline * RECORD_ID_BYTES : inline_end * RECORD_ID_BYTES],
            ids[(heads + ref) * RECORD_ID_BYTES : (heads + ref_end) * RECORD_ID_BYTES],
            ids[(children + directory) * RECORD_ID_BYTES : (children + directory_end) * RECORD_ID_BYTES],
        )

    def totals(self, first: int, end: int) -> tuple[int, Totals]:
        """How many directories are among the rows from `first` up to `end`, and what these rows add to their
        directory's totals, without a bound. Raises DamagedError."""
        kinds = self.kinds[first:end]
        content_bytes = sum(size for kind, (size, _) in zip(kinds, self.sizes(first), strict=False) if kind == _FILE)
        before = self.kinds.count(NodeKind.DIRECTORY, 0, first)
        directories = kinds.count(NodeKind.DIRECTORY)
        rows = self._directories[before * PAIR_ROW.size : (before + directories) * PAIR_ROW.size]
        files = len(kinds) - directories
        for below, below_bytes in PAIR_ROW.iter_unpack(rows):
            files += below
            content_bytes += below_bytes
        return directories, Totals(files, content_bytes)

    def row_totals(self, row: int) -> Totals:
        """What the entry at `row` adds to its directory's totals."""
        kind = self.kinds[row]
        if kind == NodeKind.DIRECTORY:
            return self.directory(row)[1]
        return Totals(1, self.extents(row)[1] if kind == NodeKind.FILE else 0)
