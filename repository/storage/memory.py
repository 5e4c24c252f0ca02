"""Memory that belongs to no file."""

import mmap


def shared_memory(nbytes: int) -> memoryview:
    """Zeros, writable; processes that are forked later see the same bytes, not a copy."""
    return memoryview(mmap.mmap(-1, nbytes))
