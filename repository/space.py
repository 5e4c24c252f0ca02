"""Room: the reserve, the quota, and the rule that growth waits until the reserve is whole.

Owner of the invariant *the reserve is lent to recovery, never to data*: nobody else opens `ballast.reserve`, and
nothing that grows the repository is allocated while it is missing. The ladder, which lends it, has its place here
too: it calls `release` and `restore`.
"""

import errno
import logging
from dataclasses import dataclass
from typing import Final, Protocol

from repository.errors import NoSpaceError, VolumeError
from repository.format.config import Config
from repository.policy.levels import Level, Room, level_of
from repository.storage.volume import FileHandle, Volume
from repository.units import MB, MIB, format_size

log = logging.getLogger(__name__)

RESERVE_FILE: Final = "ballast.reserve"
RESERVE_DEFAULT_BYTES: Final = 500 * MB
SHRINK_HEADROOM_BYTES: Final = 16 * MIB
"""Stays allocated beside the reserve, for shrinking operations and the closing commit."""
INDEX_DIRECTORY: Final = "index"
FIXED_FILES: Final = ("repository.json", "lock", "catalog", "events", "intent")
STAT_BLOCK_BYTES: Final = 512
"""Unit of st_blocks, whatever the volume's own is."""


class Probe(Protocol):
    """What the volume says (storage.room asks it; tests script it)."""

    def capacity_bytes(self) -> int: ...

    def available_bytes(self) -> int: ...

    def available_inodes(self) -> int: ...

    def capacity_inodes(self) -> int: ...


class Usage(Protocol):
    """Who knows what the packs take."""

    def allocated_bytes(self) -> int:
        """Blocks of all packs, in bytes."""
        ...


@dataclass(frozen=True, slots=True)
class ReserveState:
    """The reserve as it is. `bytes_` is what is allocated now; whole when that is `wanted_bytes`."""

    bytes_: int
    wanted_bytes: int

    @property
    def whole(self) -> bool:
        return self.bytes_ >= self.wanted_bytes

    @property
    def missing_bytes(self) -> int:
        return max(0, self.wanted_bytes - self.bytes_)


def create_reserve(volume: Volume, reserve_bytes: int) -> None:
    """Allocate the reserve for the first time, durable. Raises NoSpaceError and leaves nothing then."""
    handle = volume.create(RESERVE_FILE)
    try:
        if reserve_bytes:
            handle.fallocate(0, reserve_bytes)
        handle.fsync()
    except NoSpaceError:
        handle.close()
        volume.unlink(RESERVE_FILE)
        raise
    handle.close()


def check_room_for_init(available_bytes: int, reserve_bytes: int, headspace_bytes: int, fixed_bytes: int) -> None:
    """Raises NoSpaceError, with the figures and the ways out, where a new repository does not fit."""
    needed = reserve_bytes + headspace_bytes + fixed_bytes
    if available_bytes >= needed:
        return
    parts = f"reserve {format_size(reserve_bytes)}, headspace {format_size(headspace_bytes)}"
    raise NoSpaceError(
        f"There is too little room for a repository: {format_size(available_bytes)} available, "
        f"{format_size(needed)} needed ({parts}). Free {format_size(needed - available_bytes)}, or choose a smaller "
        "--reserve or --headspace; --reserve 0 runs without one.",
        needed,
    )


class Space:
    """The room of one repository. Thread safe: everything is asked anew."""

    def __init__(self, volume: Volume, config: Config, probe: Probe, usage: Usage) -> None:
        self._volume = volume
        self._config = config
        self._probe = probe
        self._usage = usage
        self._level = Level.HEALTHY

    # --- the volume ------------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Blocks of all files under the repository, in bytes."""
        files = [
            RESERVE_FILE,
            *FIXED_FILES,
            *(f"{INDEX_DIRECTORY}/{name}" for name in self._volume.listdir(INDEX_DIRECTORY)),
        ]
        return sum(_allocated(self._volume, name) for name in files) + self._usage.allocated_bytes()

    def room(self) -> Room:
        """The volume's room, cut by the quota. Raises VolumeError where the probe fails."""
        capacity, available = self._probe.capacity_bytes(), self._probe.available_bytes()
        quota = self._config.quota_bytes
        if quota:
            capacity = min(capacity, quota)
            available = min(available, max(0, quota - self.used_bytes()))
        return Room(capacity, available, self._probe.capacity_inodes(), self._probe.available_inodes())

    def level(self) -> Level:
        """The level now, with hysteresis against the last answer; UNKNOWN where the probe fails."""
        try:
            self._level = level_of(self.room(), self._level)
        except VolumeError as error:
            log.warning("space.probe_failed", extra={"error": str(error)})
            return Level.UNKNOWN
        return self._level

    # --- the reserve -----------------------------------------------------------------------------------------

    def reserve(self) -> ReserveState:
        """What the reserve is now."""
        return ReserveState(_allocated(self._volume, RESERVE_FILE), self._config.reserve_bytes)

    def ensure_reserve(self) -> ReserveState:
        """At the opening for writing: give the reserve back what is missing, if it fits.

        A missing file is a new reserve and wants the headspace too; one that was lent needs room only for itself.
        Never an error: what does not fit is missing, and growth waits.
        """
        state = self.reserve()
        if state.whole:
            return state
        new = not self._volume.exists(RESERVE_FILE)
        wanted = state.missing_bytes + (self._config.headspace_bytes if new else 0)
        if self.room().available_bytes < wanted:
            return state
        if new:
            try:
                create_reserve(self._volume, state.wanted_bytes)
                self._volume.fsync_dir("")
            except NoSpaceError:
                return self.reserve()
            return self.reserve()
        return self.restore()

    def restore(self) -> ReserveState:
        """Give the reserve back all that is missing, or nothing at all. The file exists."""
        state = self.reserve()
        if state.whole or not self._volume.exists(RESERVE_FILE):
            return state
        with self._volume.open(RESERVE_FILE, writable=True) as handle:
            before = handle.size()
            try:
                handle.fallocate(0, state.wanted_bytes)
                handle.fsync()
            except NoSpaceError:
                handle.truncate(min(before, state.wanted_bytes))
                return self.reserve()
        log.info("reserve.restored", extra={"nbytes": state.wanted_bytes})
        return self.reserve()

    def release(self, nbytes: int) -> int:
        """Lend up to `nbytes` of the reserve by cutting its end off; returns how many bytes came free."""
        with self._volume.open(RESERVE_FILE, writable=True) as handle:
            before = _allocated_of(handle)
            handle.truncate(max(0, handle.size() - nbytes))
            freed = before - _allocated_of(handle)
        log.info("reserve.released", extra={"nbytes": freed})
        return freed

    def require_growth(self, needed_bytes: int = 0) -> None:
        """The guard before anything grows. Raises NoSpaceError while the reserve is missing, or beyond the quota."""
        state = self.reserve()
        if not state.whole:
            state = self.ensure_reserve()
        if not state.whole:
            room = self.room()
            short = max(0, state.missing_bytes - room.available_bytes)
            raise NoSpaceError(
                f"The reserve ({format_size(state.wanted_bytes)}) is missing and does not fit: "
                f"{format_size(room.available_bytes)} free. Delete a snapshot (ballast snapshot list REPO) or free "
                f"{format_size(short)} on this disk.",
                needed_bytes,
            )
        quota = self._config.quota_bytes
        if quota and self.used_bytes() + needed_bytes > quota:
            raise NoSpaceError(
                f"The quota of {format_size(quota)} is used up. Delete a snapshot (ballast snapshot list REPO).",
                needed_bytes,
            )


def _allocated_of(handle: FileHandle) -> int:
    return handle.stat().st_blocks * STAT_BLOCK_BYTES


def _allocated(volume: Volume, name: str) -> int:
    try:
        return volume.stat(name).st_blocks * STAT_BLOCK_BYTES
    except VolumeError as error:
        if error.errno == errno.ENOENT:
            return 0
        raise
