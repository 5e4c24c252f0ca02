"""What `df` shows of a mount."""

from typing import Final

import pyfuse3

BLOCK_BYTES: Final = 4096
NAME_BYTES_MAX: Final = 255
FILES: Final = (1 << 40) - 1
"""File ids have 40 bits; nothing else bounds the number of files."""


def statfs_of(capacity_bytes: int, available_bytes: int, files: int) -> pyfuse3.StatvfsData:
    """The reply: `available_bytes` is what data may really use, for root too; `files` how many there are."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = BLOCK_BYTES
    data.f_frsize = BLOCK_BYTES
    data.f_blocks = capacity_bytes // BLOCK_BYTES
    data.f_bfree = data.f_bavail = max(0, available_bytes) // BLOCK_BYTES
    data.f_files = FILES
    data.f_ffree = data.f_favail = FILES - files
    data.f_namemax = NAME_BYTES_MAX
    return data
