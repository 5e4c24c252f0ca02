"""Making a repository: everything that is overwritten in place later is allocated and written now."""

import errno
import os
from dataclasses import replace
from typing import Final

from repository.catalog import SLOTS_AT_INIT, Catalog
from repository.errors import BallastError, UsageError, VolumeError
from repository.events import EventRing
from repository.format.catalog import Head, catalog_bytes
from repository.format.config import CONFIG_NAME, ID_KEY_BYTES, REPOSITORY_ID_BYTES, Config, new_config
from repository.format.events import EVENTS_BYTES
from repository.format.intent import INTENT_BYTES
from repository.intent import IntentFile
from repository.lock import LOCK_BYTES, WriteLock
from repository.packs.load import create_pack_directories
from repository.packs.spare import found_spare, unfound_spare
from repository.policy.levels import headspace_default_bytes
from repository.ports import Clock
from repository.space import INDEX_DIRECTORY, RESERVE_FILE, SHRINK_HEADROOM_BYTES, check_room_for_init, create_reserve
from repository.storage.probe import probe_volume
from repository.storage.room import RoomProbe
from repository.storage.volume import Volume
from repository.units import KIB

DIRECTORIES: Final = 258
DIRECTORY_BYTES_MIN: Final = 8 * KIB
"""What a directory takes: a block of 4 KiB and as much again, or the volume's larger one (exFAT: up to 128 KiB)."""


def found(
    volume: Volume,
    *,
    reserve_bytes: int,
    headspace_bytes: int | None,
    quota_bytes: int | None,
    clock: Clock,
) -> Config:
    """Make a repository in the volume's root, which is empty or missing: complete and durable, or nothing is left.

    `headspace_bytes` None: 10 % of the volume, at most 10 GiB. Raises UsageError for a directory that is in use,
    NoSpaceError with figures, VolumeError for volumes that cannot carry one.
    """
    made = _make_root(volume)
    try:
        config = _configure(volume, reserve_bytes, headspace_bytes, quota_bytes, clock)
        _fill(volume, config)
    except BaseException:
        _clear(volume, remove_root=made)
        raise
    return config


def _make_root(volume: Volume) -> bool:
    try:
        names = volume.listdir("")
    except VolumeError as error:
        if error.errno == errno.ENOTDIR:
            raise UsageError(f"'{volume.root}' is not a directory.") from error
        if error.errno != errno.ENOENT:
            raise
        volume.mkdir("")
        return True
    if CONFIG_NAME in names:
        raise UsageError(f"'{volume.root}' holds a repository already.")
    if [name for name in names if name != "lost+found"]:
        raise UsageError(f"'{volume.root}' is not empty; choose an empty directory or a new name.")
    return False


def _configure(
    volume: Volume, reserve_bytes: int, headspace_bytes: int | None, quota_bytes: int | None, clock: Clock
) -> Config:
    found = probe_volume(volume)
    probe = RoomProbe(volume)
    capacity, available = probe.capacity_bytes(), probe.available_bytes()
    if quota_bytes:
        capacity, available = min(capacity, quota_bytes), min(available, quota_bytes)
    headspace = headspace_default_bytes(capacity) if headspace_bytes is None else headspace_bytes
    config = new_config(
        repository_id=os.urandom(REPOSITORY_ID_BYTES),
        id_key=os.urandom(ID_KEY_BYTES),
        capacity_bytes=capacity,
        volume_class=found.volume_class,
        created_ns=clock.now_ns(),
    )
    directories = DIRECTORIES * max(DIRECTORY_BYTES_MIN, volume.statvfs().f_frsize)
    fixed = catalog_bytes(SLOTS_AT_INIT) + EVENTS_BYTES + INTENT_BYTES + LOCK_BYTES + directories
    if reserve_bytes:
        check_room_for_init(available, reserve_bytes, headspace, fixed + SHRINK_HEADROOM_BYTES)
    return replace(config, reserve_bytes=reserve_bytes, headspace_bytes=headspace, quota_bytes=quota_bytes or 0)


def _fill(volume: Volume, config: Config) -> None:
    create_pack_directories(volume)
    volume.mkdir(INDEX_DIRECTORY)
    WriteLock.create(volume)
    IntentFile.create(volume, config.seed)
    EventRing.create(volume)
    Catalog.create(volume, config.seed, Head(), SLOTS_AT_INIT)
    found_spare(volume, config, config.created_ns)
    create_reserve(volume, config.reserve_bytes)
    volume.fsync_dir("packs")
    volume.fsync_dir("")
    # The configuration comes last: a directory without it is no repository.
    with volume.create(CONFIG_NAME) as handle:
        handle.pwrite(config.encode(), 0)
        handle.fsync()
    volume.fsync_dir("")


def _clear(volume: Volume, *, remove_root: bool) -> None:
    """Take back what a refused or failed init made; best effort, because the first error is the one to tell."""
    for name in (CONFIG_NAME, RESERVE_FILE, "catalog", "events", "intent", "lock"):
        _quietly(volume, name, directory=False)
    unfound_spare(volume)
    for low in range(256):
        _quietly(volume, f"packs/{low:02x}", directory=True)
    for name in ("packs", INDEX_DIRECTORY):
        _quietly(volume, name, directory=True)
    if remove_root:
        _quietly(volume, "", directory=True)


def _quietly(volume: Volume, name: str, *, directory: bool) -> None:
    try:
        if directory:
            volume.rmdir(name)
        else:
            volume.unlink(name)
    except BallastError:
        return
