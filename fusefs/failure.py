"""The mode `failed` of a mount. Only a new mount, which reads back what is really on the disk, leaves it.

Owner of the rule: after a failed write or sync of the repository nothing more is acknowledged. Reading goes on.
"""

import errno
import logging
from typing import Final, Protocol

from repository.errors import BallastError, VolumeError

_log = logging.getLogger(__name__)


class FailingStore(Protocol):
    """The part of the record store that knows whether writing is over."""

    @property
    def failed(self) -> bool: ...

    def fail(self, error: BallastError) -> None: ...


class Failure:
    """Whether this mount's writing is over. Loop thread only."""

    def __init__(self, store: FailingStore) -> None:
        self._store: Final = store
        self.happened = False

    def declare(self, error: BallastError) -> None:
        """From now on nothing is acknowledged any more. The first error is told, in the log."""
        if not self.happened:
            _log.error("session.failed", extra={"error": str(error)})
            self.happened = True
            self._store.fail(error)

    def check(self) -> None:
        """Raises VolumeError where nothing may be acknowledged any more."""
        if not self.happened and self._store.failed:
            self.declare(VolumeError("writing to the repository has ended"))
        if self.happened:
            raise VolumeError("the disk failed while writing; unmount and mount again", errno.EIO)
