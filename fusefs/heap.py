"""What is asked of the C library's heap, where there is glibc (elsewhere there is nobody to ask), and of the collector
of cycles, which stops every thread while it looks."""

import ctypes
import gc
from typing import Final

ARENAS_MAX: Final = 1
"""Each thread that allocates has an arena of its own otherwise, which keeps what it once took: 49 MB in five of them
after walks over 220 snapshots. Whoever allocates nearly always holds the interpreter's lock, so one is enough."""
GC_THRESHOLDS: Final = (10_000, 3, 300)
"""New containers between two looks at the youngest, looks at those between two at the middle ones, and those between
two at all. A look at all that was in memory after 50,000 files had been copied took 80 to 200 ms, in which no request
was served, and one at 100,000 middle ones 15 to 30; they found next to nothing."""
_M_ARENA_MAX: Final = -8
"""The name of that bound in glibc's malloc.h."""


def bound() -> bool:
    """Let threads share ARENAS_MAX arenas; before the first thread is started. Whether that could be had."""
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS_MAX))
    except (AttributeError, OSError):
        return False


def trim() -> bool:
    """Give free memory back to the kernel. Whether there was any."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False
