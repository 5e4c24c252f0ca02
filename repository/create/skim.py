"""Passing over what is as the parent snapshot has it: one look at each file, and only what is compared is decoded.

Owner of what "unchanged" means, for files (by what lstat says) and for inodes.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

from repository.create.source import Directory, kind_of, type_of
from repository.format.inode import DirRef, Inode, NodeKind, Totals
from repository.format.stats import looks_of
from repository.format.tree import DirAttrs, DirContent
from repository.ids import RecordId
from repository.trees.reader import Segment


class Known(NamedTuple):
    """An entry of the parent snapshot, by its row, and what its file is compared by. Of a LINK only `kind` counts."""

    content: DirContent
    attrs: DirAttrs
    position: int
    kind: NodeKind
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True)
class ScanCounts:
    """What was seen: files that are not directories, and among them those that the parent has unchanged."""

    files: int = 0
    unchanged_files: int = 0
    unchanged_bytes: int = 0
    directories: int = 0


class SegmentReader(Protocol):
    """Reads listings of the parent snapshot."""

    def scan_segments(self, ref: DirRef) -> Iterator[Segment]: ...


class Look(NamedTuple):
    """What another process found when it compared a directory with the parent snapshot.

    Counted are files (and their `nbytes`) and directories that are unchanged, in it and in pristine directories below.
    """

    identity: "Identity"
    files: int
    nbytes: int
    directories: int
    pristine: bool
    """Nothing differs, in it or below it; it counts itself."""
    gone: list[bytes]
    names: list[bytes]
    """What has to be looked at: sorted."""
    below: "dict[bytes, PlainLook]"
    """Those of `names` that are directories about which as much is known."""
    content: RecordId | None
    attrs: RecordId | None
    """Its listing in the parent snapshot."""

    def plain(self) -> "PlainLook":
        """As it travels."""
        return (self.identity, self.files, self.nbytes, self.directories, self.pristine, self.gone, self.names,
                self.below, self.content, self.attrs)  # fmt: skip


Identity = tuple[int, int, int, int]
PlainLook = tuple[
    Identity, int, int, int, bool, list[bytes], list[bytes], "dict[bytes, PlainLook]", RecordId | None, RecordId | None
]
"""A `Look` as it travels between processes."""


def identity_of(found: os.stat_result) -> Identity:
    """What a directory has that is still the same, and holds the same names: device, inode number, times."""
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


Gone = Callable[[bytes], None]
LeavesOut = Callable[[bytes], bool]

_KIND_OF: Final = (None, *NodeKind)
_TYPE_OF: Final = tuple(type_of(kind) for kind in _KIND_OF)
"""The type in st_mode of each kind that a look can settle; None for the others."""
_TYPE_MASK: Final = 0o170000


def same_file(known: Known | Inode, found: os.stat_result, racy_ns: int) -> bool:
    """Whether a file with one name is the one that the parent has. Times from `racy_ns` on prove nothing."""
    return (
        known.ctime_ns == found.st_ctime_ns < racy_ns
        and known.mtime_ns == found.st_mtime_ns < racy_ns
        and (known.size == found.st_size or known.kind is not NodeKind.FILE)
        and known.kind is kind_of(found.st_mode)
    )


def differing(
    directory: Directory,
    names: list[bytes],
    segments: Iterator[Segment],
    *,
    look: bool,
    racy_ns: int,
    leaves_out: LeavesOut | None,
    counts: ScanCounts,
    gone: Gone,
) -> Iterator[tuple[bytes, Known | None]]:
    """Those of the sorted `names` that need a closer look, in order, each with what the parent has under it.

    Files that are unchanged are counted instead; names that only the parent has go to `gone`. `look` False: every name
    needs a closer look. `leaves_out`: whether a pattern leaves out a file of that name.
    """
    stat = os.stat
    fd = directory.fd
    at, end = 0, len(names)
    for _, _, content, attrs in segments:
        rows = zip(content.names, looks_of(content.files, attrs.columns), strict=True)
        for position, (name, (kind, size, mtime_ns, ctime_ns)) in enumerate(rows):
            while at < end and names[at] < name:
                yield names[at], None
                at += 1
            if at == end or names[at] != name:
                gone(name)
                continue
            at += 1
            wanted_type = _TYPE_OF[kind]
            if look and wanted_type is not None:
                try:
                    found = stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    pass  # the closer look will tell
                else:
                    if (
                        found.st_ctime_ns == ctime_ns < racy_ns
                        and found.st_mtime_ns == mtime_ns < racy_ns
                        and found.st_nlink == 1
                        and found.st_mode & _TYPE_MASK == wanted_type
                        and (found.st_size == size or kind != NodeKind.FILE)
                        and (leaves_out is None or not leaves_out(name))
                    ):
                        counts.files += 1
                        counts.unchanged_files += 1
                        counts.unchanged_bytes += size
                        continue
            known_kind = _KIND_OF[kind]
            assert known_kind is not None
            yield name, Known(content, attrs, position, known_kind, size, mtime_ns, ctime_ns)
    for name in names[at:]:
        yield name, None


_IDENTITY: Final = frozenset({"file_id", "version", "atime_ns"})
"""What may differ without being a change: identity, and the time of the last reading."""
_LISTING: Final = frozenset({"directory", "totals"})
_attributes: Final = attrgetter(*[field.name for field in fields(Inode) if field.name not in _IDENTITY | _LISTING])


def same_inode(base: Inode, inode: Inode, listing: DirRef, totals: Totals) -> bool:
    """Whether `inode`, with that listing and those totals, is what `base` is."""
    same: bool = _attributes(base) == _attributes(inode)
    return same and base.directory == listing and base.totals == totals
