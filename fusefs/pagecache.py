"""Small files of snapshots go into the kernel's page cache with their `open`: whoever copies them asks for no `read`.

Loop thread only, which must not wait for the kernel while the kernel waits for it. A store waits for pages that are
locked, and pages are locked while they are being read, which takes an open handle: so where there is one, nothing is
stored.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import pyfuse3

from fusefs.inodes import InodeNumber
from repository.units import KIB

_log = logging.getLogger(__name__)

STORE_BYTES_MAX: Final = 128 * KIB
"""What one `read` would have brought. Larger files are read ahead in windows, and often not to their end."""
REMEMBERED_MAX: Final = 4096
"""Files that were handed over and should still be in the page cache; about 150 bytes each. Who opens a file again and
again shall not pay for it each time; where the kernel has let go of it, it asks."""

Store = Callable[[pyfuse3.InodeT, int, bytes | memoryview], None]


class PageCache:
    """What the kernel was given of files that are open or were lately."""

    def __init__(self, store: Store = pyfuse3.notify_store) -> None:  # type: ignore[assignment]  # it takes any buffer
        self._store = store
        self._open: dict[InodeNumber, int] = {}
        """Handles of each file. Bounded as they are."""
        self._given: OrderedDict[InodeNumber, None] = OrderedDict()

    def wants(self, number: InodeNumber, size: int) -> bool:
        """Whether the bytes of a file that is about to be opened are of use."""
        return 0 < size <= STORE_BYTES_MAX and number not in self._open and number not in self._given

    def give(self, number: InodeNumber, data: bytes | memoryview) -> None:
        """All bytes of a file that `wants` was asked about just now. What fails costs a `read` later, and nothing
        else."""
        try:
            self._store(pyfuse3.InodeT(number), 0, data)
        except OSError as error:
            _log.debug("pagecache.refused", extra={"error": str(error)})
        self._given[number] = None
        if len(self._given) > REMEMBERED_MAX:
            self._given.popitem(last=False)

    def opened(self, number: InodeNumber) -> None:
        """One handle more; before the answer to its `open`."""
        self._open[number] = self._open.get(number, 0) + 1

    def closed(self, number: InodeNumber) -> None:
        """One handle less: the kernel sends `release` when nothing is being read through it any more."""
        left = self._open[number] - 1
        if left:
            self._open[number] = left
        else:
            del self._open[number]
