"""How much the file systems hold that some paths lie on: an upper bound of what they can hold, without a walk."""

import os
import re
from collections.abc import Iterable
from typing import Final

MOUNT_TABLE: Final = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def held_bytes(paths: Iterable[bytes], *, below: bool, table: str = MOUNT_TABLE) -> int | None:
    """Bytes in use on the file systems of absolute `paths`, each counted once; with `below` also on those that are
    mounted below them. None where that cannot be told.

    Compressed file systems and sparse files can hold more bytes than that: it is for deciding whether to look closer.
    """
    found: dict[int, int] = {}
    try:
        wanted = list(paths)
        if below:
            with open(table, "rb") as file:
                wanted += [mount for mount in map(_mountpoint, file) if mount and _lies_below(mount, wanted)]
        for path in wanted:
            figures = os.statvfs(path)
            found[os.stat(path).st_dev] = (figures.f_blocks - figures.f_bfree) * figures.f_frsize
    except OSError:
        return None
    return sum(found.values())


def _mountpoint(line: bytes) -> bytes:
    """The fifth column of a line of mountinfo (proc(5)), the kernel's octal escapes undone."""
    fields = line.split(b" ", 5)
    return _ESCAPE.sub(lambda match: bytes((int(match.group(1), 8),)), fields[4]) if len(fields) > 5 else b""


def _lies_below(mount: bytes, paths: Iterable[bytes]) -> bool:
    return any(mount.startswith(path.rstrip(b"/") + b"/") for path in paths)


def mountpoint_of(path: bytes) -> bytes:
    """Where the file system is mounted that holds the absolute `path` (or its nearest parent that exists)."""
    while path != b"/" and not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
