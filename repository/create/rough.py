"""How much the named paths can hold, roughly: sizes summed up, in a walk that ends as soon as there is too much.

Looks at nothing else, so it costs a fifth of a scan. It counts what a scan would leave out (excluded files, further
names of hard links, holes): whoever needs to know better scans.
"""

import os
import stat
from collections.abc import Callable, Iterable
from typing import Final

PULSE_NAMES: Final = 4096
"""Names between two calls of `pulse`."""


def sizes_fit(
    paths: Iterable[bytes],
    fits: Callable[[int], bool],
    *,
    left_out: frozenset[bytes],
    one_file_system: bool,
    pulse: Callable[[], None],
) -> bool:
    """Whether so many bytes fit as the files at and below the absolute `paths` have, each size taken as it is.

    Directories in `left_out` are not entered. What cannot be looked at counts nothing: the scan will tell about it.
    """
    total = seen = 0
    pending: list[tuple[bytes, int | None]] = []
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode):
            pending.append((path, found.st_dev if one_file_system else None))
        else:
            total += found.st_size
    while pending and fits(total):
        path, device = pending.pop()
        if path in left_out:
            continue
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    seen += 1
                    if seen % PULSE_NAMES == 0:
                        pulse()
                    found = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(found.st_mode):
                        total += found.st_size
                    elif device is None or found.st_dev == device:
                        pending.append((entry.path, device))
        except OSError:
            continue
    return fits(total)
