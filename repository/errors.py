"""The one hierarchy of errors that `repository` raises.

Each class carries a stable exit code for the command line. Messages are one sentence that says what is
wrong and, where something helps, what to do next. `OSError` never leaves `repository.storage`.
"""

import os
from typing import ClassVar, Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_PARTIAL: Final = 3
EXIT_NO_REPOSITORY: Final = 10
EXIT_LOCKED: Final = 11
EXIT_NO_SPACE: Final = 28
EXIT_INTERRUPTED: Final = 130


class BallastError(Exception):
    """Base of everything that Ballast raises on purpose."""

    exit_code: ClassVar[int] = EXIT_FAILED


class UsageError(BallastError):
    """The words of a command do not fit together."""

    exit_code: ClassVar[int] = EXIT_USAGE


class NoRepositoryError(BallastError):
    """The directory is missing, foreign, or of a format that this version cannot read."""

    exit_code: ClassVar[int] = EXIT_NO_REPOSITORY


class LockedError(BallastError):
    """Another process writes this repository."""

    exit_code: ClassVar[int] = EXIT_LOCKED


class NoSpaceError(BallastError):
    """The volume or its quota has no room: ENOSPC or EDQUOT, wherever it appeared.

    `needed_bytes` is what was asked for when that is known, else 0.
    """

    exit_code: ClassVar[int] = EXIT_NO_SPACE

    def __init__(self, message: str, needed_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class VolumeError(BallastError):
    """The operating system refused an operation on the repository's volume.

    `errno` is the kernel's number (EIO, EROFS, EACCES, ...); 0 where there was none.
    """

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class SyncFailedError(VolumeError):
    """An fsync failed: what was written since the last one is unknown, and it is never tried again."""


class ReadOnlyError(VolumeError):
    """A change was asked of a repository that was opened for reading, or that failed."""


class DamagedError(BallastError):
    """Bytes on disk are not what was written. The message names the place."""


class MissingRecordError(DamagedError):
    """A record that something refers to is nowhere in the packs."""


class NoSuchSnapshotError(BallastError):
    """No snapshot has that name or id."""


class NameTakenError(BallastError):
    """A snapshot, or a file that a restore would write, exists already under this name."""


class BusyError(BallastError):
    """The snapshot is pinned, or something is in use."""


class RefusedError(BallastError):
    """A file operation that POSIX refuses; `errno` says why (ENOENT, EEXIST, ENOTEMPTY, ...)."""

    def __init__(self, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno


class PartialError(BallastError):
    """The work was done, but some files could not be read (exit 3)."""

    exit_code: ClassVar[int] = EXIT_PARTIAL


class InterruptedByUserError(BallastError):
    """SIGINT or SIGTERM ended a command."""

    exit_code: ClassVar[int] = EXIT_INTERRUPTED
