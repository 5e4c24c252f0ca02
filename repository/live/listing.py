"""Listing a directory of the live tree: what is committed, straight from its columns, and laid over it what changed
since."""

from typing import NamedTuple

from repository.format.inode import DirRef, NodeKind
from repository.format.stats import Stat
from repository.ids import FileId
from repository.live.node import View
from repository.live.tree import LiveTree


class Seen(NamedTuple):
    """An entry as a listing shows it."""

    name: bytes
    view: View | Stat
    linked: bool
    """Whether this name is a LINK entry."""


class Listing:
    """A directory's entries in name order, in batches: those that were there when the listing was made, without those
    that are gone since.

    Each keeps its number, whatever goes or is committed later, so a reader may come back to one. A committed listing is
    immutable; entries that are made later are not seen, as POSIX allows.
    """

    def __init__(self, tree: LiveTree, directory: FileId) -> None:
        self._tree = tree
        self._directory = directory
        changes: dict[bytes, FileId | None] = {}
        for layer in (tree.frozen, tree.overlay):
            node = layer.get(directory)
            if node is not None:
                changes.update(node.changes)
        self.committed = tree.listing_of(directory) if directory not in tree.orphans else DirRef(None, None)
        """What lies under the changes."""
        self._changes = changes
        self._names = sorted(name for name, child in changes.items() if child is not None)
        self._next = 0
        self._ordinal = 0
        """Committed entries that were passed."""
        self._as_of = tree.changes
        """The tree's count of changes, and its latest commit, when this was made."""
        self._serial = tree.base.serial

    def rewind(self) -> None:
        """The next batch is the first."""
        self._next = self._ordinal = 0

    def batch(self) -> list[Seen | None]:
        """The next entries, those of one committed segment and what belongs between them; None for each that is gone,
        and nothing at the end.

        Raises NotCached as a TreeReader does: asked again, it tells the same.
        """
        tree = self._tree
        is_base = tree.base.serial == self._serial
        at, ordinal = self._next, self._ordinal
        while True:
            found: list[tuple[bytes, Seen | None]] = []
            page = tree.reader.page(self.committed, ordinal)
            limit: bytes | None = None
            if page is not None:
                ordinal += len(page.names)
                limit = page.names[-1] if ordinal < page.entries else None
                for name, stat in zip(page.names, page.stats, strict=True):
                    if name in self._changes:
                        continue
                    if is_base:
                        found.append((name, Seen(name, tree.newest(stat), stat.kind is NodeKind.LINK)))
                    else:
                        found.append((name, self._found(name)))
            while at < len(self._names) and (limit is None or self._names[at] <= limit):
                found.append((self._names[at], self._found(self._names[at])))
                at += 1
            if found or limit is None:
                break
        found.sort(key=_name)
        self._next, self._ordinal = at, ordinal
        return [seen for _, seen in found]

    def holds(self) -> bool:
        """Whether nothing changed, anywhere, since this was made: then every entry is as it was told."""
        return self._tree.changes == self._as_of

    def current(self, seen: Seen) -> Seen | None:
        """What became of an entry of a batch; None if it is gone. Raises NotCached as `batch` does."""
        tree, directory = self._tree, self._directory
        if tree.base.serial == self._serial and directory not in tree.orphans:
            layers = (tree.overlay, tree.frozen)
            if not any((node := layer.get(directory)) is not None and seen.name in node.changes for layer in layers):
                file_id = seen.view.file_id
                return seen._replace(view=tree.overlay.get(file_id) or tree.frozen.get(file_id) or seen.view)
        return self._found(seen.name)

    def _found(self, name: bytes) -> Seen | None:
        found = self._tree.find(self._directory, name)
        return None if found is None else Seen(name, *found)


def _name(found: tuple[bytes, Seen | None]) -> bytes:
    return found[0]
