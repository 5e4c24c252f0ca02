"""What `df` shows of a mount."""

from collections.abc import Callable
from typing import Final

import pyfuse3
import trio

from fusefs.workers import Workers
from repository.live.tree import NAME_BYTES_MAX
from repository.recovery import Mode
from repository.space import Space

BLOCK_BYTES: Final = 4096
FILES: Final = (1 << 40) - 1
"""File ids have 40 bits; nothing else bounds the number of files, and none is missing from it here."""
FRESH_S: Final = 1.0
"""For this long one answer serves: under a quota it takes a system call for each pack."""


def statfs_of(capacity_bytes: int, available_bytes: int) -> pyfuse3.StatvfsData:
    """The reply: `available_bytes` is what data may really use, for root too."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = BLOCK_BYTES
    data.f_frsize = BLOCK_BYTES
    data.f_blocks = capacity_bytes // BLOCK_BYTES
    data.f_bfree = data.f_bavail = max(0, available_bytes) // BLOCK_BYTES
    data.f_files = data.f_ffree = data.f_favail = FILES
    data.f_namemax = NAME_BYTES_MAX
    return data


class Statfs:
    """Answers for `df`: cut by the quota, and without what the reserve still lacks; nothing in read-only mode, when
    growth is refused whatever there is. Loop thread only."""

    def __init__(self, space: Space, mode: Callable[[], Mode], workers: Workers) -> None:
        self._space: Final = space
        self._mode: Final = mode
        self._workers: Final = workers
        self._answer: pyfuse3.StatvfsData | None = None
        self._asked_s = 0.0

    async def ask(self) -> pyfuse3.StatvfsData:
        """The room as it was within the last second. Raises VolumeError."""
        now_s = trio.current_time()
        if self._answer is None or now_s - self._asked_s > FRESH_S:
            self._answer = await self._workers.slow(self._look)
            self._asked_s = now_s
        return self._answer

    def _look(self) -> pyfuse3.StatvfsData:
        room = self._space.room()
        available_bytes = room.available_bytes - self._space.reserve().missing_bytes
        return statfs_of(room.capacity_bytes, 0 if self._mode() is Mode.READ_ONLY else available_bytes)
