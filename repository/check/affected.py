"""Which files damage reaches: paths in snapshots whose bytes, or directories whose listings, cannot be read.

Looked for only where something is damaged. What snapshots share is walked once: a directory is known by the record of
its content, together with the links table that its hard links lead to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from repository.errors import BallastError, DamagedError
from repository.format.catalog import Head, Slot, SlotState
from repository.format.inode import ExtentsRef, Inode, NodeKind
from repository.ids import RecordId
from repository.units import GIB

if TYPE_CHECKING:
    from repository.repo import Repository

AFFECTED_MAX: Final = 1_000
"""Paths that are named; of the others there are too many to look at one by one."""
SNAPSHOTS_MAX: Final = 1_000
"""Snapshots named for one path."""
WINDOW_BYTES: Final = 1 * GIB
"""Of a file whose extents are looked at in one go: some thousand extents."""
UNREADABLE: Final = "it cannot be listed to its end"


@dataclass(frozen=True, slots=True)
class Affected:
    """A path that damage reaches, and the snapshots (or `live`) that have it so. `what` says what is lost of it."""

    path: bytes
    what: str
    snapshots: tuple[str, ...]


@dataclass(slots=True)
class _Visit:
    """A directory that is being walked; `found` are paths relative to it."""

    prefix: bytes
    key: tuple[RecordId | None, RecordId | None]
    entries: "Iterator[tuple[bytes, Inode]]"
    found: list[tuple[bytes, str]] = field(default_factory=list)


class AffectedFiles:
    """Finds what `lost` records (chunks, for the most part) take with them."""

    def __init__(self, repository: "Repository", lost: frozenset[RecordId]) -> None:
        self._repository = repository
        self._reader = repository.reader
        self._lost = lost
        self._known: dict[tuple[RecordId | None, RecordId | None], list[tuple[bytes, str]]] = {}
        """What was found in directories that were walked already: some 200 bytes for each that differs from all others,
        and AFFECTED_MAX paths at most."""

    def all(self) -> tuple[Affected, ...]:
        """Everything that is affected, by path; at most AFFECTED_MAX."""
        catalog = self._repository.catalog
        found: dict[tuple[bytes, str], list[str]] = {}
        roots: list[Slot | Head] = [*catalog.slots(), catalog.head()]
        for root in roots:
            for one in self._of_root(root):
                if one in found or len(found) < AFFECTED_MAX:
                    names = found.setdefault(one, [])
                    if len(names) < SNAPSHOTS_MAX:
                        names.append(_name(root))
        return tuple(Affected(path, what, tuple(names)) for (path, what), names in sorted(found.items()))

    def _of_root(self, root: Slot | Head) -> list[tuple[bytes, str]]:
        try:
            manifest = self._repository.manifest(root)
        except BallastError:
            return [(b"/", "nothing of it can be found: its manifest is lost")]
        if manifest is None:
            return []
        return [(b"/" + path, what) for path, what in self._of_directory(manifest.root, manifest.links)]

    def _of_directory(self, root: Inode, links: RecordId | None) -> list[tuple[bytes, str]]:
        stack = [self._visit(b"", root, links)]
        while True:
            visit = stack[-1]
            entry = next(visit.entries, None)
            if entry is None:
                stack.pop()
                self._known[visit.key] = visit.found
                if not stack:
                    return visit.found
                _add(stack[-1].found, visit.prefix, visit.found)
                continue
            name, inode = entry
            if inode.kind is not NodeKind.DIRECTORY:
                what = self._of_file(inode, links) if name else UNREADABLE
                _add(visit.found, b"", [(name, what)] if what else [])
                continue
            known = self._known.get((inode.directory.content, links))
            if known is None:
                stack.append(self._visit(name + b"/", inode, links))
            else:
                _add(visit.found, name + b"/", known)

    def _visit(self, prefix: bytes, inode: Inode, links: RecordId | None) -> _Visit:
        return _Visit(prefix, (inode.directory.content, links), self._entries(inode))

    def _entries(self, inode: Inode) -> Iterator[tuple[bytes, Inode]]:
        """The listing of a directory; an entry without a name stands for what cannot be read of it."""
        try:
            for entry in self._reader.scan(inode.directory):
                yield entry.name, entry.inode
        except BallastError:
            yield b"", Inode(NodeKind.FILE, inode.file_id)

    def _of_file(self, inode: Inode, links: RecordId | None) -> str:
        """What is lost of a file; empty for nothing."""
        try:
            if inode.kind is NodeKind.LINK:
                linked = self._reader.link(links, inode.file_id)
                if linked is None:
                    return "its entry in the table of hard links is missing"
                inode = linked
            lost, first = 0, -1
            for chunk, offset in self._chunks(inode):
                if chunk in self._lost:
                    lost, first = lost + 1, offset if first < 0 else first
        except DamagedError:
            return "where its bytes are cannot be told"
        except BallastError as error:
            return str(error)
        return f"{lost} of its chunks cannot be read, the first at byte {first}" if lost else ""

    def _chunks(self, inode: Inode) -> Iterator[tuple[RecordId, int]]:
        """Chunks of a file, and where in it they begin. One that spans windows comes once."""
        if not isinstance(inode.extents, ExtentsRef):
            yield from ((extent.chunk, extent.offset) for extent in inode.extents)
            return
        for start in range(0, inode.size, WINDOW_BYTES):
            for extent in self._reader.extents(inode, start, start + WINDOW_BYTES):
                if extent.offset >= start:
                    yield extent.chunk, extent.offset


def _add(found: list[tuple[bytes, str]], prefix: bytes, more: list[tuple[bytes, str]]) -> None:
    room = AFFECTED_MAX - len(found)
    found += [(prefix + path, what) for path, what in more[:room]]


def _name(root: Slot | Head) -> str:
    match root:
        case Head():
            return "live"
        case Slot(state=SlotState.TRASH, name=name):
            return f"{name} (deleted)"
        case Slot(name=name):
            return name
