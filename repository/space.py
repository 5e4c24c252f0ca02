"""Room: the reserve, the quota, and the rule that growth waits until the reserve is whole.

Owner of the invariant *the reserve is lent to recovery, never to data*: nobody else opens `ballast.reserve`, and
nothing that grows the repository is allocated while it is missing. Recovery (`recovery.py`) lends it by `release`
and gives it back by `restore`; so does `ballast reserve`.
"""

import errno
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from repository.errors import NoSpaceError, SyncFailedError, VolumeError
from repository.format.config import Config
from repository.policy.levels import Level, LevelWatch, Room
from repository.policy.room import Needs, Sight, cushion_bytes, margin_bytes
from repository.ports import Clock, SpaceProbe
from repository.quota import QuotaAccount
from repository.storage.reserving import allocate_reserve
from repository.storage.volume import FileHandle, Volume
from repository.units import MB, MIB, NS_PER_S, format_size

log = logging.getLogger(__name__)

RESERVE_FILE: Final = "ballast.reserve"
RESERVE_DEFAULT_BYTES: Final = 500 * MB
SHRINK_HEADROOM_BYTES: Final = 16 * MIB
"""Stays allocated beside the reserve, for shrinking operations and the closing commit."""
INDEX_DIRECTORY: Final = "index"
FIXED_FILES: Final = ("repository.json", "lock", "catalog", "events", "intent")
STAT_BLOCK_BYTES: Final = 512
"""Unit of st_blocks, whatever the volume's own is."""


class Usage(Protocol):
    """Who knows what the packs take."""

    def allocated_bytes(self) -> int:
        """Blocks of all packs, in bytes."""
        ...


WHOLE_STANDS_NS: Final = NS_PER_S
"""How long the reserve counts as whole after it was seen so: nobody but this process should touch it."""


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


def reserve_of(volume: Volume, config: Config) -> ReserveState:
    """What the reserve is now, by the blocks that its file has. Raises VolumeError."""
    return ReserveState(_allocated(volume, RESERVE_FILE), config.reserve_bytes)


def create_reserve(volume: Volume, reserve_bytes: int) -> None:
    """Allocate the reserve for the first time, durable. Raises NoSpaceError, VolumeError, and leaves nothing then."""
    with volume.create(RESERVE_FILE) as handle:
        try:
            if reserve_bytes:
                allocate_reserve(handle, reserve_bytes)
            handle.fsync()
        except BaseException:
            volume.unlink(RESERVE_FILE)
            raise


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
    """The room of one repository. Thread safe."""

    def __init__(self, volume: Volume, config: Config, probe: SpaceProbe, usage: Usage, clock: Clock) -> None:
        self._volume = volume
        self._config = config
        self._probe = probe
        self._usage = usage
        self._clock = clock
        self._account = QuotaAccount(config.quota_bytes, self.used_bytes) if config.quota_bytes else None
        self._lock = threading.Lock()
        self._watch = LevelWatch()
        self._whole_at_ns: int | None = None
        """When the reserve was last seen whole; None while it is not."""
        self._last_available_bytes = 0
        self._last_kept_bytes = 0

    @property
    def root(self) -> Path:
        """Where the repository lies."""
        return self._volume.root

    @property
    def frees_by_copying(self) -> bool:
        """Whether a collection has to copy before it can free, and so frees the more the more room it has."""
        return not self._volume.punches()

    # --- the volume ------------------------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """Blocks of all files under the repository, in bytes; looks at each of them."""
        caches = self._volume.listdir(INDEX_DIRECTORY) if self._volume.exists(INDEX_DIRECTORY) else []
        files = [RESERVE_FILE, *FIXED_FILES, *(f"{INDEX_DIRECTORY}/{name}" for name in caches)]
        return sum(_allocated(self._volume, name) for name in files) + self._usage.allocated_bytes()

    def room(self) -> Room:
        """The volume's room, cut by the quota. Raises VolumeError where the probe fails."""
        capacity, available = self._probe.capacity_bytes(), self._probe.available_bytes()
        if self._account is not None:
            capacity = min(capacity, self._config.quota_bytes)
            available = min(available, self._account.left_bytes())
        return Room(capacity, available, self._probe.capacity_inodes(), self._probe.available_inodes())

    def sight(self) -> Sight:
        """What recovery decides on. A probe that fails tells what it told last."""
        missing = self.reserve().missing_bytes
        inodes = True
        try:
            self._last_available_bytes, self._last_kept_bytes = self._look()
            inodes = not self._probe.capacity_inodes() or self._probe.available_inodes() > 0
        except VolumeError:  # told as a level
            pass
        available, kept = self._last_available_bytes, self._last_kept_bytes
        if self._account is not None and (left := self._account.left_bytes()) < available:
            available, kept = left, 0
        return Sight(available, missing, inodes, kept)

    def _look(self) -> tuple[int, int]:
        """What growth may take, and what is kept for root, which the reserve may take too. Raises VolumeError."""
        growth = self._probe.growth_bytes()
        if self._volume.frees_late:
            return max(0, growth - cushion_bytes(self._probe.capacity_bytes())), 0
        return growth, max(0, self._probe.allocatable_bytes() - growth)

    def needs(self) -> Needs:
        """What recovery measures room by. Where the probe fails, nothing beyond what must be."""
        try:
            capacity = self._probe.capacity_bytes()
        except VolumeError:
            capacity = 0
        quota = self._config.quota_bytes
        return Needs(self._config.segment_bytes, margin_bytes(min(capacity, quota) if quota else capacity))

    def level(self) -> Level:
        """The level now, with hysteresis against the last answer. A change is told in the log."""
        try:
            room = self.room()
        except VolumeError:
            room = None
        with self._lock:
            before = self._watch.level
            self._watch, tell = self._watch.look(room, self._clock.now_ns())
            level = self._watch.level
        if tell:
            figures = {} if room is None else {"nbytes": room.available_bytes, "capacity_bytes": room.capacity_bytes}
            log.info("space.level", extra={"level": level.value, "before": before.value, **figures})
        return level

    def freed(self, nbytes: int) -> None:
        """Packs gave so much back."""
        if self._account is not None:
            self._account.moved(-nbytes)

    def measure(self) -> None:
        """Forget what is known: files of the repository changed without a word to this."""
        with self._lock:
            self._whole_at_ns = None
        if self._account is not None:
            self._account.forget()

    # --- the reserve -----------------------------------------------------------------------------------------

    def reserve(self) -> ReserveState:
        """What the reserve is now."""
        state = reserve_of(self._volume, self._config)
        with self._lock:
            self._whole_at_ns = self._clock.now_ns() if state.whole else None
        return state

    def ensure_reserve(self) -> ReserveState:
        """At the opening for writing: give the reserve back what is missing, if it fits.

        A missing file is a new reserve and wants the headspace too; one that was lent needs room only for itself.
        Never an error: what does not fit is missing, and growth waits.
        """
        state = self.reserve()
        if state.whole or self._volume.exists(RESERVE_FILE):
            return self.restore()
        if self.sight().available_bytes >= state.wanted_bytes + self._config.headspace_bytes:
            try:
                create_reserve(self._volume, state.wanted_bytes)
                self._volume.fsync_dir("")
            except NoSpaceError:
                return self.reserve()
            if self._account is not None:
                self._account.moved(state.wanted_bytes)
        return self.reserve()

    def restore(self) -> ReserveState:
        """Give the reserve back all that is missing, or nothing at all.

        Raises SyncFailedError; another error of the volume leaves it missing.
        """
        state = self.reserve()
        if state.whole or not self.sight().refits:
            return state
        if not self._volume.exists(RESERVE_FILE):
            return self.ensure_reserve()
        with self._volume.open(RESERVE_FILE, writable=True) as handle:
            try:
                allocate_reserve(handle, state.wanted_bytes)
            except SyncFailedError:
                raise
            except (NoSpaceError, VolumeError) as error:
                log.info("reserve.not_restored", extra={"nbytes": state.missing_bytes, "error": str(error)})
                return self.reserve()
        if self._account is not None:
            self._account.moved(state.missing_bytes)
        log.info("reserve.restored", extra={"nbytes": state.missing_bytes})
        return self.reserve()

    def release(self, nbytes: int) -> int:
        """Lend up to `nbytes` of the reserve by cutting its end off; returns how many bytes came free."""
        if not self._volume.exists(RESERVE_FILE):
            return 0
        with self._lock:
            self._whole_at_ns = None
        with self._volume.open(RESERVE_FILE, writable=True) as handle:
            before = _allocated_of(handle)
            handle.truncate(max(0, handle.size() - nbytes))
            freed = before - _allocated_of(handle)
        if freed and self._volume.frees_late:
            self._volume.syncfs()
        if self._account is not None:
            self._account.moved(-freed)
        log.info("reserve.released", extra={"nbytes": freed})
        return freed

    def fits(self, nbytes: int) -> bool:
        """Whether `nbytes` can be allocated now: tried at the reserve's end, and cut off again.

        A volume may count room that it keeps for itself, or that a quota of the user forbids. Raises SyncFailedError,
        VolumeError.
        """
        if self.sight().available_bytes < nbytes or not self._volume.exists(RESERVE_FILE):
            return False
        with self._volume.open(RESERVE_FILE, writable=True) as handle:
            size = handle.size()
            try:
                try:
                    handle.allocate(size, nbytes, incompressible=True)
                finally:
                    handle.truncate(size)
            except NoSpaceError:
                return False
        return True

    # --- the guard -------------------------------------------------------------------------------------------

    def require_growth(self, needed_bytes: int = 0) -> None:
        """The guard before anything grows. Raises NoSpaceError while the reserve is missing, beyond the quota, and
        where an ordinary user would find no room: what a volume keeps for root is not for data.

        Asked for each segment: the reserve is looked at once a second, the quota's account is kept by addition.
        """
        if not self._known_whole() and not self.reserve().whole:
            raise NoSpaceError(self.shortage(), needed_bytes)
        if not self._growth_fits(needed_bytes):
            raise NoSpaceError(self.shortage(needed_bytes), needed_bytes)
        if self._account is not None and not self._account.grant(needed_bytes):
            raise NoSpaceError(self.shortage(needed_bytes), needed_bytes)

    def _growth_fits(self, nbytes: int) -> bool:
        """Whether the volume has so much for growth; a probe that fails stops nobody."""
        try:
            return self._look()[0] >= nbytes
        except VolumeError:
            return True

    def _known_whole(self) -> bool:
        with self._lock:
            at_ns = self._whole_at_ns
        return at_ns is not None and 0 <= self._clock.now_ns() - at_ns < WHOLE_STANDS_NS

    def shortage(self, needed_bytes: int = 0) -> str:
        """One sentence: why nothing grows, and what helps. `needed_bytes`: of what did not fit."""
        sight, state = self.sight(), self.reserve()
        free = f"{format_size(max(0, sight.available_bytes))} free"
        if not state.whole:
            short = max(0, state.missing_bytes - sight.available_bytes - sight.kept_bytes)
            return (
                f"The reserve ({format_size(state.wanted_bytes)}) is missing and does not fit: {free}. "
                f"Delete a snapshot (ballast snapshot list REPO) or free {format_size(short)} on this disk."
            )
        if self._account is not None and self._account.left_bytes() < needed_bytes:
            return (
                f"The quota of {format_size(self._config.quota_bytes)} is used up. "
                "Delete a snapshot (ballast snapshot list REPO)."
            )
        short = max(needed_bytes - sight.available_bytes, 0)
        more = f" or free {format_size(short)} on this disk" if short else ""
        return (
            f"The disk is full: {format_size(needed_bytes)} more do not fit ({free}), and nothing is left that could "
            f"be given up. Delete a snapshot (ballast snapshot list REPO){more}."
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
