"""Writing trees: whole, or only what changed. Both give the same records for the same content."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from repository.format.extents import ExtentSegmentRef, splice
from repository.format.filerows import INLINE_EXTENTS_MAX
from repository.format.inode import EMPTY_DIR, DirRef, Entry, Extent, ExtentsRef, Inode, Totals
from repository.format.links import ListedLinks
from repository.format.packing import SIZE_MAX_BYTES
from repository.format.tree import ListedSegment
from repository.ids import FileId, RecordId
from repository.leases import Lease
from repository.ledger import Claim
from repository.trees.houses import DirectoryHouse, ExtentHouse, LinksHouse
from repository.trees.pen import Pen, RecordSink
from repository.trees.reader import TreeReader
from repository.trees.storeys import build, rewrite

NO_TOTALS = Totals(0, 0)


class TreeWriter:
    """Stores directories, extent lists and links tables; every record's number goes into `lease`.

    `reader` reads what is rewritten: one over a cache with inline=True, or NotCached comes through. With a claim
    the records are drawn from it. Raises what the store raises (NoSpaceError, ...), and ValueError for inodes that
    the format cannot hold. May be used by one thread at a time.
    """

    def __init__(self, store: RecordSink, reader: TreeReader, lease: Lease, claim: Claim | None = None) -> None:
        pen = Pen(store, lease, claim)
        self._reader = reader
        self._directory = DirectoryHouse(pen, reader)
        self._extents = ExtentHouse(pen, reader)
        self._links = LinksHouse(pen, reader)

    def write_directory(self, entries: Iterable[Entry]) -> tuple[DirRef, Totals]:
        """A directory of `entries`, sorted by name without repetition; streaming, about 4,000 in memory.

        Inodes with more than 64 extents in a tuple get their extents written too. Raises ValueError for names that
        are unsorted or not allowed.
        """
        return self._named(build(self._directory, self._prepared(_in_order(entries))))

    def rewrite_directory(self, base: DirRef, changes: Mapping[bytes, Inode | None]) -> tuple[DirRef, Totals]:
        """The directory `base` with some names given another inode, or (None) removed.

        Exactly what `write_directory` of the whole new listing gives, but only segments with a change in them are
        read and written, with the lists above them.
        """
        ordered = sorted(changes.items())
        if base.content is None or base.attrs is None:
            entries = [Entry(name, self._prepare(inode)) for name, inode in ordered if inode is not None]
            return self._named(build(self._directory, entries))
        if not ordered:
            return base, self._reader.totals(base)
        edits = [(name, None if inode is None else Entry(name, self._prepare(inode))) for name, inode in ordered]
        root = ListedSegment(b"", base.content, base.attrs, 0, 0, 0)
        return self._named(rewrite(self._directory, root, self._reader.height(base), edits))

    def write_extents(self, extents: Sequence[Extent]) -> tuple[Extent, ...] | ExtentsRef:
        """`extents` (sorted, apart) as an inode holds them: themselves, or a reference when there are more than 64."""
        if len(extents) <= INLINE_EXTENTS_MAX:
            return tuple(extents)
        return self._extents_ref(build(self._extents, extents))

    def rewrite_extents(
        self, base: ExtentsRef, changed: Sequence[tuple[int, int, Sequence[Extent]]]
    ) -> tuple[Extent, ...] | ExtentsRef:
        """The list `base` after changes laid over it in order: bytes `start` up to `end` are what the extents say.

        What they do not cover becomes a hole; (size, 2^63 - 1, ()) truncates. Only segments with a change in them
        are read and written, with the lists above. `TreeReader.extents_bytes` tells the new sum of lengths.
        """
        ranges = [(start, end, extents) for start, end, extents in changed if start < end]
        if not ranges:
            return base
        before = self._overlapped(base, [(start, end) for start, end, _ in ranges])
        after = before.copy()
        for start, end, extents in ranges:
            splice(after, start, end, extents)
        edits: dict[int, Extent | None] = dict.fromkeys(extent.offset + extent.length for extent in before)
        edits.update((extent.offset + extent.length, extent) for extent in after)
        height = self._reader.extent_list(base.head).level
        root = ExtentSegmentRef(0, SIZE_MAX_BYTES, base.count, 0, base.head)
        return self._extents_ref(rewrite(self._extents, root, height, sorted(edits.items(), key=_edit_key)))

    def rewrite_links(self, base: RecordId | None, changes: Mapping[FileId, Inode | None]) -> RecordId | None:
        """The links table `base` with some inodes given or (None) removed; None when it is empty.

        As with directories only what has a change in it is read and written; the result depends on content alone.
        """
        edits = sorted(
            ((int(file_id), None if inode is None else self._prepare(inode)) for file_id, inode in changes.items()),
            key=_edit_key,
        )
        if any(inode is not None and inode.file_id != file_id for file_id, inode in edits):
            raise ValueError("an inode in the links table stands under its own file id")
        if base is None:
            found = build(self._links, (inode for _, inode in edits if inode is not None))
        else:
            root = ListedLinks(0, 0, 0, base)
            found = rewrite(self._links, root, self._reader.links_height(base), edits)
        return None if found is None else found.id

    def _named(self, root: ListedSegment | None) -> tuple[DirRef, Totals]:
        if root is None:
            return EMPTY_DIR, NO_TOTALS
        return DirRef(root.content, root.attrs), Totals(root.files, root.content_bytes)

    def _extents_ref(self, root: ExtentSegmentRef | None) -> tuple[Extent, ...] | ExtentsRef:
        if root is None:
            return ()
        found = ExtentsRef(root.id, root.extent_count)
        if found.count > INLINE_EXTENTS_MAX:
            return found
        return tuple(self._reader.extents_in(found, 0, SIZE_MAX_BYTES))

    def _overlapped(self, base: ExtentsRef, ranges: Sequence[tuple[int, int]]) -> list[Extent]:
        """Extents of `base` that reach into any of `ranges`, each once, sorted."""
        found: list[Extent] = []
        covered = 0
        for start, end in sorted(ranges):
            if end > covered:
                fresh = self._reader.extents_in(base, max(start, covered), end)
                found += fresh[1:] if fresh and found and fresh[0] == found[-1] else fresh
                covered = end
        return found

    def _prepared(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for name, inode in entries:
            yield Entry(name, self._prepare(inode))

    def _prepare(self, inode: Inode) -> Inode:
        """`inode` with its extents in a form that an entry can hold."""
        extents = inode.extents
        if isinstance(extents, ExtentsRef) or len(extents) <= INLINE_EXTENTS_MAX:
            return inode
        allocated = sum(extent.length for extent in extents)
        return replace(inode, extents=self.write_extents(extents), allocated_bytes=allocated)


def _edit_key(edit: tuple[int, object]) -> int:
    return edit[0]


def _in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    before: bytes | None = None
    for entry in entries:
        if before is not None and entry.name <= before:
            raise ValueError(f"{entry.name!r} stands behind {before!r}")
        before = entry.name
        yield entry
