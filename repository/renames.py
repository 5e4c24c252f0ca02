"""Which of the paths that are gone went where: pairs of a deleted and an added path that are the same thing.

Two paths are the same thing where they have the same file id (`live` keeps it over a rename), or where kind, content
and modification time are the same (a rename changes none of them; `snapshot create` gives such a file a fresh id).
What moved along with its directory is no rename of its own.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from repository.format.inode import Inode, NodeKind

RENAMES_MAX: Final = 100_000
"""Deleted paths, and added ones, among which renames are looked for: about 60 MB. Beyond it none are named."""
CANDIDATES_MAX: Final = 64
"""Deleted paths with the same content that are looked at for one with the same name."""


class Traces(NamedTuple):
    """What is remembered of a path, instead of its inode. `content` None: nothing that could be told from another."""

    is_directory: bool
    identity: int
    content: int | None


def traces_of(inode: Inode) -> Traces:
    """The traces of something, a hard link resolved."""
    content: int | None = None
    if inode.kind is NodeKind.FILE and inode.size:
        content = hash((inode.kind, inode.size, inode.mtime_ns, inode.extents))
    elif inode.kind is NodeKind.SYMLINK:
        content = hash((inode.kind, inode.target, inode.mtime_ns))
    elif inode.kind is NodeKind.DIRECTORY and inode.directory.content is not None:
        content = hash((inode.kind, inode.directory.content, inode.mtime_ns))
    return Traces(inode.kind is NodeKind.DIRECTORY, hash((inode.kind, inode.file_id)), content)


class Renames:
    """Pairs of paths. Built once from all that is gone and all that came; empty where there are too many of them."""

    def __init__(self, gone: dict[bytes, Traces], came: dict[bytes, Traces]) -> None:
        self.new_of: dict[bytes, bytes] = {}
        """Old path -> new path."""
        self.old_of: dict[bytes, bytes] = {}
        self._gone = gone
        self._came = came
        self._gone_paths = sorted(gone)
        self._taken: set[bytes] = set()
        """Old paths that moved along with their directories."""
        self._settled: set[bytes] = set()
        """New paths that came along with theirs."""
        if gone and came:
            for directories in (True, False):
                self._match(directories, self._identities(gone, directories), by_content=False)
                self._match(directories, self._contents(gone, directories), by_content=True)

    @staticmethod
    def _identities(traces: dict[bytes, Traces], directories: bool) -> Iterator[tuple[int, bytes]]:
        return ((one.identity, path) for path, one in traces.items() if one.is_directory == directories)

    @staticmethod
    def _contents(traces: dict[bytes, Traces], directories: bool) -> Iterator[tuple[int, bytes]]:
        for path, one in traces.items():
            if one.is_directory == directories and one.content is not None:
                yield one.content, path

    def _match(self, directories: bool, keys: Iterable[tuple[int, bytes]], *, by_content: bool) -> None:
        """Pair what has one key, the outermost directories first; of several with the same name if there is one."""
        by_key: dict[int, deque[bytes]] = {}
        for key, path in keys:
            by_key.setdefault(key, deque()).append(path)
        wanted = [path for path, one in self._came.items() if one.is_directory == directories]
        for path in sorted(wanted, key=lambda one: (one.count(b"/"), one)):
            traces = self._came[path]
            own = traces.content if by_content else traces.identity
            if own is None or own not in by_key or path in self._settled or path in self.old_of:
                continue
            old = self._candidate(by_key[own], path.rpartition(b"/")[2])
            if old is not None and (not directories or self._take_along(old, path)):
                self.new_of[old], self.old_of[path] = path, old

    def _candidate(self, paths: deque[bytes], name: bytes) -> bytes | None:
        """One of `paths` that is free yet, called `name` if one of the next is; those in front that are not free go."""
        while paths and (paths[0] in self._taken or paths[0] in self.new_of):
            paths.popleft()
        some = [one for one in islice(paths, CANDIDATES_MAX) if one not in self._taken and one not in self.new_of]
        return next((one for one in some if one.rpartition(b"/")[2] == name), some[0] if some else None)

    def _take_along(self, old: bytes, new: bytes) -> bool:
        """What lies under the same name in both directories stayed where it was in them. False, and nothing is taken,
        where something of that came from elsewhere."""
        prefix = old + b"/"
        inside: list[tuple[bytes, bytes]] = []
        at = bisect_left(self._gone_paths, prefix)
        while at < len(self._gone_paths) and self._gone_paths[at].startswith(prefix):
            path = self._gone_paths[at]
            at += 1
            there = new + b"/" + path[len(prefix) :]
            if there in self.old_of:
                return False
            if path not in self.new_of and there in self._came:
                inside.append((path, there))
        self._taken.update(path for path, _ in inside)
        self._settled.update(there for _, there in inside)
        return True


NO_RENAMES: Final = Renames({}, {})
