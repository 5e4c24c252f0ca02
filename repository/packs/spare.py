"""Spare packs: made before they are needed, so that there is room when nothing can be allocated or created any more.

Two files are kept, with the highest indexes of all. The *spare pack* has its header and its room; the *stub* behind it
has its header only, so that not even an inode or a directory's block is needed for the next spare pack. Both say so in
their headers (`SPARE_MARK`) as long as they hold no record.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from repository.errors import BallastError, DamagedError, NoSpaceError, VolumeError
from repository.format.config import Config
from repository.format.pack import (
    PACK_HEADER_BYTES,
    Stream,
    decode_pack_header,
    encode_pack_header,
    pack_directory_path,
    pack_path,
)
from repository.ids import PackIndex
from repository.storage.volume import STAT_BLOCK_BYTES, FileHandle, Volume
from repository.units import MIB

SPARE_BYTES_MAX: Final = 16 * MIB
"""What stays allocated for shrinking operations and the closing commit."""
WINDOW_BYTES: Final = 1 * MIB
"""Read at once while a pack is searched for anything but zeros."""

_log: Final = logging.getLogger(__name__)


def spare_bytes(config: Config) -> int:
    """Size of a whole spare pack: a sixteenth of the smallest volumes, less of all others."""
    return min(SPARE_BYTES_MAX, config.pack_bytes)


class Found(NamedTuple):
    """A spare pack or stub of an earlier process, open for writing. `size` is allocated wholly."""

    pack: PackIndex
    handle: FileHandle
    size: int
    created_ns: int


class Inherited(NamedTuple):
    """What earlier processes left behind."""

    spare: Found | None
    stub: PackIndex | None


def holds_nothing(handle: FileHandle, size: int) -> bool:
    """Whether nothing but zeros lies behind a pack's header. Blocks that were never written are not read."""
    at = PACK_HEADER_BYTES
    for start, end in [*handle.holes(size), (size, size)]:
        while at < start:
            piece = handle.pread(min(WINDOW_BYTES, start - at), at)
            if piece != bytes(len(piece)):
                return False
            at += WINDOW_BYTES
        at = max(at, end)
    return True


def inherit(
    volume: Volume,
    config: Config,
    packs: Iterable[PackIndex],
    highest: PackIndex,
    remove: Callable[[PackIndex], None],
) -> Inherited:
    """Choose a spare pack and a stub among `packs`, which hold no record; what is of no use goes through `remove`.

    Writes nothing where both are in order. A volume that does not answer makes a pack count for nothing.
    """
    found: list[Found] = []
    for pack in packs:
        try:
            one = _look(volume, config, pack)
            if one is None:
                remove(pack)
            else:
                found.append(one)
        except BallastError as error:
            _log.warning("pack.spare_not_taken", extra={"pack": pack, "reason": str(error)})
    spare = max((one for one in found if one.size > PACK_HEADER_BYTES), key=_size, default=None)
    stub: PackIndex | None = None
    for one in found:
        if one is spare:
            continue
        try:
            if one.pack == highest:
                if one.size > PACK_HEADER_BYTES:
                    one.handle.truncate(PACK_HEADER_BYTES)
                stub = one.pack
            else:
                remove(one.pack)
        except BallastError as error:
            _log.warning("pack.spare_not_taken", extra={"pack": one.pack, "reason": str(error)})
    return Inherited(spare, stub)


def _size(found: Found) -> int:
    return found.size


def _look(volume: Volume, config: Config, pack: PackIndex) -> Found | None:
    """A pack without a record, if it was made to be spare; cut to its header unless it is as it was made."""
    handle = volume.open(pack_path(pack), writable=True)
    try:
        header = decode_pack_header(handle.pread(PACK_HEADER_BYTES, 0))
    except DamagedError:
        return None
    if not header.spare or header.pack != pack or header.repository_id != config.repository_id:
        return None
    stat = handle.stat()
    size = stat.st_size
    if size > PACK_HEADER_BYTES and (stat.st_blocks * STAT_BLOCK_BYTES < size or not holds_nothing(handle, size)):
        handle.truncate(PACK_HEADER_BYTES)
        size = PACK_HEADER_BYTES
    return Found(pack, handle, size, header.created_ns)


def make_stub(volume: Volume, config: Config, pack: PackIndex, created_ns: int) -> bool:
    """A new stub, not yet durable; False where there is no room. It is a convenience: no error is raised."""
    path = pack_path(pack)
    try:
        with volume.create(path) as handle:
            handle.pwrite(encode_pack_header(config, pack, Stream.BULK, created_ns, spare=True), 0)
    except NoSpaceError:
        _remove_quietly(volume, path)
        return False
    except VolumeError as error:
        _log.warning("pack.no_stub", extra={"pack": pack, "reason": str(error)})
        _remove_quietly(volume, path)
        return False
    return True


def _remove_quietly(volume: Volume, path: str) -> None:
    try:
        volume.unlink(path)
    except BallastError:
        return  # most likely it never came to be


def found_spare(volume: Volume, config: Config, created_ns: int) -> None:
    """At init: the first spare pack and the stub behind it, durable. Raises NoSpaceError, VolumeError."""
    spare, stub = PackIndex(0), PackIndex(1)
    with volume.create(pack_path(spare)) as handle:
        handle.allocate(0, spare_bytes(config))
        handle.pwrite(encode_pack_header(config, spare, Stream.BULK, created_ns, spare=True), 0)
        handle.fsync()
    volume.fsync_dir(pack_directory_path(spare))
    if make_stub(volume, config, stub, created_ns):
        volume.fsync_dir(pack_directory_path(stub))


def unfound_spare(volume: Volume) -> None:
    """Take back what `found_spare` made."""
    for pack in (PackIndex(0), PackIndex(1)):
        _remove_quietly(volume, pack_path(pack))
