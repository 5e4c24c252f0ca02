"""What a scan is told: what is wanted, what is left out of it, and what it is compared with; and whom it asks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from repository.create.exclude import Excludes
from repository.create.skim import PlainLook
from repository.format.inode import DirRef, Inode, Totals
from repository.ids import FileId, RecordId
from repository.trees.reader import Placed, Segment


@dataclass(frozen=True, slots=True)
class Base:
    """The parent snapshot: its root, links table, and when it began (ns since 1970)."""

    root: Inode
    links: RecordId | None
    time_ns: int


@dataclass(slots=True)
class Wanted:
    """A directory on the way to the paths that were named: all of it (`whole`), or only some children. `inside` another
    one that is wanted as a whole, so is each that is no symlink on the way."""

    whole: bool = False
    inside: bool = False
    children: "dict[bytes, Wanted]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What is left out. `repository`: device and inode number of the repository's directory."""

    excludes: Excludes
    exclude_caches: bool
    one_file_system: bool
    repository: tuple[int, int]
    mounts: frozenset[bytes]
    """Absolute paths of Ballast mounts."""


class FileIds:
    """Hands out file ids; `next` is the first that was never used."""

    def __init__(self, next_id: FileId) -> None:
        self.next: int = next_id

    def fresh(self) -> FileId:
        self.next += 1
        return FileId(self.next - 1)


def wanted_tree(paths: list[bytes]) -> Wanted:
    """The directories that lead to these absolute, normalised paths."""
    root = Wanted()
    for path in paths:
        at = root
        for name in path.split(b"/"):
            if name:
                at = at.children.setdefault(name, Wanted())
        at.whole = True
    pending = [root]
    while pending:
        at = pending.pop()
        for child in at.children.values():
            child.inside = at.whole or at.inside
        pending += at.children.values()
    return root


class BaseReader(Protocol):
    """What is read of the parent snapshot."""

    def load_below(self, ref: DirRef) -> None: ...

    def scan_segments(self, ref: DirRef) -> Iterator[Segment]: ...

    def inode_of(self, row: Placed) -> Inode: ...

    def lookup(self, ref: DirRef, name: bytes) -> Inode | None: ...

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None: ...


class Lookahead(Protocol):
    """Looks ahead of the scanner. It is asked in the order of the walk."""

    def take(self, path: bytes) -> PlainLook | None:
        """What is known of the directory at an absolute path, once."""
        ...

    def looks_into(self, totals: Totals) -> bool:
        """Whether it looks at the directories below one of that size by themselves."""
        ...

    def close(self) -> None: ...
