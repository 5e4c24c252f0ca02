"""From errors to errno, in one table; and the one boundary that every FUSE handler stands behind.

pyfuse3 ends its main loop, and with it the mount, when anything but FUSEError leaves a handler. So `boundary` lets
nothing else out: errors of the table become their errno, unknown ones EIO, logged in full.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Concatenate, Final, ParamSpec, TypeVar

import pyfuse3

from repository import errors

_log = logging.getLogger(__name__)

_TABLE: Final[dict[type[errors.BallastError], int]] = {
    errors.BallastError: errno.EIO,
    errors.UsageError: errno.EINVAL,
    errors.NoRepositoryError: errno.EIO,
    errors.LockedError: errno.EBUSY,
    errors.NoSpaceError: errno.ENOSPC,
    errors.VolumeError: errno.EIO,
    errors.SyncFailedError: errno.EIO,
    errors.ReadOnlyError: errno.EROFS,
    errors.DamagedError: errno.EIO,
    errors.MissingRecordError: errno.EIO,
    errors.NoSuchSnapshotError: errno.ENOENT,
    errors.NameTakenError: errno.EEXIST,
    errors.BusyError: errno.EBUSY,
    errors.RefusedError: errno.EPERM,
    errors.PartialError: errno.EIO,
    errors.InterruptedByUserError: errno.EINTR,
}

_QUIET: Final = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.EROFS, errno.EINVAL, errno.EINTR, errno.ENOSPC}
)
"""Answers that a program's own request explains; nothing is wrong with the repository, so they are not logged. That the
disk is full is told once by recovery, not at each write."""

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")


def errno_of(error: errors.BallastError) -> int:
    """The errno that a program gets: where POSIX names one, that; else the table's entry of the nearest class."""
    if isinstance(error, errors.RefusedError):
        return error.errno
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    raise AssertionError("BallastError is in the table")


def boundary(
    handler: Callable[Concatenate[S, P], Coroutine[object, object, R]],
) -> Callable[Concatenate[S, P], Coroutine[object, object, R]]:
    """Decorates a handler so that only FUSEError leaves it (cancellation passes)."""
    name = handler.__name__

    @functools.wraps(handler)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except errors.BallastError as error:
            number = errno_of(error)
            if number not in _QUIET and not isinstance(error, errors.RefusedError):
                reason = {"op": name, "errno": errno.errorcode.get(number, str(number)), "error": str(error)}
                _log.error("handler.failed", extra=reason)
            raise pyfuse3.FUSEError(number) from None
        except Exception:
            _log.exception("handler.crashed", extra={"op": name})
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded
