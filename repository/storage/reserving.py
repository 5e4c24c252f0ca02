"""The blocks of `ballast.reserve`: really there, or an error and nothing."""

from typing import Final

from repository.errors import NoSpaceError, VolumeError
from repository.storage.volume import STAT_BLOCK_BYTES, FileHandle

BLOCK_BYTES: Final = 4096
"""What is kept of a reserve that was given back in part ends at a multiple of this."""


def allocate_reserve(handle: FileHandle, wanted_bytes: int) -> None:
    """Make the file behind `handle` hold `wanted_bytes` of blocks, durable: what it lacks is added at its end.

    Where the volume does not allocate, it is written: noise, which no volume can make smaller. On NoSpaceError the
    file is as it was before. Raises VolumeError where the blocks do not show (the volume compresses, or lies).
    """
    before = handle.size()
    allocated = handle.stat().st_blocks * STAT_BLOCK_BYTES
    if allocated < before:  # a crash may have left a size that nothing was written for
        before = allocated // BLOCK_BYTES * BLOCK_BYTES
        handle.truncate(before)
    start = min(before, wanted_bytes)
    try:
        # Not what is there already: xfs wants free blocks for all of a range, allocated or not.
        if start < wanted_bytes:
            handle.allocate(start, wanted_bytes - start, incompressible=True)
        handle.fsync()
    except NoSpaceError:
        handle.truncate(start)
        raise
    if handle.stat().st_blocks * STAT_BLOCK_BYTES < wanted_bytes:
        raise VolumeError("The volume does not keep what is allocated: there can be no reserve on it (--reserve 0).")
