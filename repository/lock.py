"""One process writes a repository at a time: `flock` on a file that always exists.

The file tells who holds it (for the message of exit 11); only the kernel's lock decides.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from repository.errors import BallastError, LockedError, NoSpaceError
from repository.ports import Clock
from repository.storage.volume import FileHandle, Volume
from repository.units import NS_PER_S

LOCK_FILE: Final = "lock"
LOCK_BYTES: Final = 4096
"""Allocated at init; the holder's description is padded to it and written in one call."""
MOUNTPOINT_CHARACTERS_MAX: Final = 2048
"""A longer mountpoint is left out of the description."""
TAKE_TRIES: Final = 4
TAKE_PAUSE_S: Final = 0.05
"""A look at who holds the lock (`current_holder`) takes it for an instant; a writer is not turned away by that, unless
the file names a process that runs."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes, or wrote last. `since_ns` 0 and `pid` 0: nobody ever did, or the description is unreadable."""

    host: str = ""
    boot_id: str = ""
    pid: int = 0
    since_ns: int = 0
    mountpoint: str | None = None

    def encode(self) -> bytes:
        """The file's bytes: one line of JSON, padded with blanks to LOCK_BYTES."""
        document = {
            "host": self.host,
            "boot_id": self.boot_id,
            "pid": self.pid,
            "since_ns": self.since_ns,
            "mountpoint": self.mountpoint,
        }
        return json.dumps(document, sort_keys=True).encode().ljust(LOCK_BYTES - 1) + b"\n"


def decode_holder(data: bytes) -> Holder:
    """The description in `data`; an empty one where it cannot be read (it is never relied on)."""
    try:
        document: object = json.loads(data)
    except ValueError:
        return Holder()
    if not isinstance(document, dict):
        return Holder()
    mountpoint = document.get("mountpoint")
    try:
        return Holder(
            str(document.get("host", "")),
            str(document.get("boot_id", "")),
            int(document.get("pid", 0)),
            int(document.get("since_ns", 0)),
            None if mountpoint is None else str(mountpoint),
        )
    except (TypeError, ValueError):
        return Holder()


def this_process(clock: Clock, mountpoint: str | None = None) -> Holder:
    """The description of this process."""
    if mountpoint is not None and len(mountpoint) > MOUNTPOINT_CHARACTERS_MAX:
        mountpoint = None
    return Holder(socket.gethostname(), _boot_id(), os.getpid(), clock.now_ns(), mountpoint)


class WriteLock:
    """The writer's lock, held from `take` to `release`."""

    def __init__(self, handle: FileHandle, holder: Holder) -> None:
        self._handle = handle
        self._holder = holder

    @classmethod
    def create(cls, volume: Volume) -> None:
        """Make the file."""
        with volume.create(LOCK_FILE) as handle:
            handle.pwrite(Holder().encode(), 0)
            handle.fsync()

    @classmethod
    def take(cls, volume: Volume, clock: Clock) -> Self:
        """Lock for writing. Raises LockedError, which names the holder, where somebody else has it."""
        handle = volume.open(LOCK_FILE, writable=True)
        tries = TAKE_TRIES
        while not handle.flock(exclusive=True):
            tries -= 1
            holder = decode_holder(handle.pread(LOCK_BYTES, 0))
            if not tries or _runs_here(holder):
                handle.close()
                raise LockedError(_locked_message(holder))
            time.sleep(TAKE_PAUSE_S)
        lock = cls(handle, this_process(clock))
        try:
            lock._tell()
        except BallastError:
            handle.close()
            raise
        return lock

    @property
    def holder(self) -> Holder:
        return self._holder

    def describe(self, mountpoint: str | None) -> None:
        """Tell where the repository is mounted (None: it is not)."""
        old = self._holder
        if mountpoint is not None and len(mountpoint) > MOUNTPOINT_CHARACTERS_MAX:
            mountpoint = None
        self._holder = Holder(old.host, old.boot_id, old.pid, old.since_ns, mountpoint)
        self._tell()

    def _tell(self) -> None:
        """The kernel's lock is what counts; words for which a volume has no room are not worth an error."""
        with contextlib.suppress(NoSpaceError):
            self._handle.pwrite(self._holder.encode(), 0)

    def release(self) -> None:
        """Let go. The file stays, empty of a holder."""
        with contextlib.suppress(BallastError):  # the kernel's lock goes with the handle; the words are only for people
            self._handle.pwrite(Holder().encode(), 0)
        self._handle.close()


def _runs_here(holder: Holder) -> bool:
    """Whether the process that the file names runs on this machine."""
    return holder.pid > 0 and holder.boot_id == _boot_id() and Path(f"/proc/{holder.pid}").exists()


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def current_holder(volume: Volume) -> Holder | None:
    """Who holds the write lock now; None when nobody does. Takes nothing, writes nothing."""
    with volume.open(LOCK_FILE) as handle:
        if handle.flock(exclusive=False):
            return None
        return decode_holder(handle.pread(LOCK_BYTES, 0))


def _locked_message(holder: Holder, local: Callable[[int], str] | None = None) -> str:
    if holder.pid == 0:
        return "Another process is writing this repository; try again when it is done."
    since = (local or _local_time)(holder.since_ns)
    where = f", mounted at {holder.mountpoint}" if holder.mountpoint else ""
    host = "" if holder.host == socket.gethostname() else f" on {holder.host}"
    return f"Process {holder.pid}{host} has been writing this repository since {since}{where}; stop it or wait."


def _local_time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / NS_PER_S).astimezone().strftime("%Y-%m-%d %H:%M:%S")
