"""What pack files hold, as found on the volume: sealed ones by their directories, others by scanning."""

import errno
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from repository.codec import Codec
from repository.errors import DamagedError, NoSpaceError, VolumeError
from repository.format.config import Config
from repository.format.pack import (
    PACK_HEADER_BYTES,
    PACKS_DIRECTORY,
    PUNCHED_OFFSET,
    PackDirectory,
    Stream,
    decode_pack_header,
    encode_pack_header,
    pack_directory_path,
    pack_index_of,
    pack_path,
)
from repository.format.record import HEADER_BYTES, Place
from repository.ids import PackIndex, position_of
from repository.packs.reader import read_directory, read_trailer
from repository.packs.scan import scan_pack
from repository.packs.seal import seal_file
from repository.packs.spare import holds_nothing
from repository.packs.table import KnownPack
from repository.storage.volume import FileHandle, Volume
from repository.units import KIB

PACK_DIRECTORIES: Final = 256
HOLE_EDGE_BYTES: Final = 64 * KIB
"""The largest block of a volume: as much beside a hole may have been written over with zeros."""

_log: Final = logging.getLogger(__name__)


class _Head(NamedTuple):
    """What a pack's first bytes tell; guesses where they are damaged."""

    stream: Stream
    created_ns: int
    punched: bool
    damaged: bool = False
    foreign: bool = False
    """Sound, and of another pack or another repository."""
    spare: bool = False


def list_packs(volume: Volume) -> Iterator[PackIndex]:
    """The index of every pack file, directory by directory; one that is missing is logged. Raises VolumeError."""
    for low in range(PACK_DIRECTORIES):
        try:
            names = volume.listdir(f"{PACKS_DIRECTORY}/{low:02x}")
        except VolumeError as error:
            if error.errno != errno.ENOENT:
                raise
            _log.warning("packs.directory_missing", extra={"path": f"{PACKS_DIRECTORY}/{low:02x}"})
            continue
        for name in names:
            index = pack_index_of(name)
            if index is not None and index & 0xFF == low:
                yield index


def create_pack_directories(volume: Volume) -> None:
    """packs/00 to packs/ff, at init."""
    volume.mkdir(PACKS_DIRECTORY)
    for low in range(PACK_DIRECTORIES):
        volume.mkdir(f"{PACKS_DIRECTORY}/{low:02x}")


class PackLoader:
    """Reads whole packs' directories."""

    def __init__(self, volume: Volume, config: Config, codec: Codec) -> None:
        self._volume = volume
        self._config = config
        self._codec = codec

    def load(self, pack: PackIndex, *, seal: bool) -> KnownPack | None:
        """The pack as its file tells. One without a sound end is scanned, and sealed where `seal` and there is room.

        What is damaged is left out, and logged. A pack whose trailer holds, or that could not be read everywhere, is
        never written to: a record that cannot be read today must not be cut off.
        None where the file is gone meanwhile, is another pack's, or tells nothing. Raises VolumeError, SyncFailedError.
        """
        try:
            handle = self._volume.open(pack_path(pack), writable=seal)
        except VolumeError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        unsure: set[int] = set()
        with handle:
            head = self._head(handle, pack)
            directory, sealed, readable = self._end(handle, pack)
            if directory is None:
                written_ns = handle.stat().st_mtime_ns
                if sealed:
                    _log.warning("pack.directory_damaged", extra={"pack": pack})
                elif head.spare and not head.foreign and holds_nothing(handle, handle.size()):
                    return _empty(pack, head)
                verify = seal and not sealed and readable
                if verify:
                    self._make_durable(handle, pack)
                scan = scan_pack(handle, self._codec, pack, written_ns=written_ns, verify_payloads=verify)
                directory = scan.directory
                if scan.unreadable or not readable:
                    _log.warning("pack.unreadable", extra={"pack": pack})
                elif verify and len(directory):
                    sealed = self._seal(handle, head, directory, scan.end_offset)
                elif head.foreign:
                    _log.warning("pack.foreign", extra={"pack": pack})
                if not len(directory) and (scan.unreadable or not readable or head.foreign):
                    return None  # not empty, as far as anybody can tell: not to be taken for one that a crash left
            elif head.punched:
                directory = without_gone(handle, self._codec, directory, check_all_headers=True, unsure=unsure)
        return KnownPack(
            index=pack,
            sealed=sealed,
            records=len(directory),
            stream=head.stream,
            created_ns=head.created_ns,
            written_ns=directory.written_ns,
            columns=directory,
            unsure=frozenset(unsure),
        )

    def directory(self, pack: PackIndex, *, check_all_headers: bool) -> PackDirectory:
        """The directory of a sealed pack, without the records that are gone. Raises DamagedError, VolumeError.

        Without `check_all_headers` (for collections) a record that cannot be read is taken to be there.
        """
        with self._volume.open(pack_path(pack)) as handle:
            directory = read_directory(handle, self._codec, self._config.seed, pack)
            if directory is None:
                if handle.size() > PACK_HEADER_BYTES:  # else it was dropped while it was the newest
                    _log.warning("pack.directory_damaged", extra={"pack": pack})
                written_ns = handle.stat().st_mtime_ns
                scan = scan_pack(handle, self._codec, pack, written_ns=written_ns, verify_payloads=False)
                if scan.unreadable:
                    raise VolumeError(f"{pack_path(pack)} cannot be read everywhere.", errno.EIO)
                return scan.directory
            if self._head(handle, pack).punched:
                unsure: set[int] | None = None if check_all_headers else set()
                return without_gone(handle, self._codec, directory, check_all_headers=check_all_headers, unsure=unsure)
            return directory

    def _end(self, handle: FileHandle, pack: PackIndex) -> tuple[PackDirectory | None, bool, bool]:
        """The directory, if it holds; whether the pack is sealed; and whether its end could be read at all."""
        seed = self._config.seed
        try:
            directory = read_directory(handle, self._codec, seed, pack)
            return directory, directory is not None or read_trailer(handle, seed, pack) is not None, True
        except VolumeError:
            return None, False, False

    def _head(self, handle: FileHandle, pack: PackIndex) -> _Head:
        try:
            header = decode_pack_header(handle.pread(PACK_HEADER_BYTES, 0))
        except (DamagedError, VolumeError) as error:
            _log.warning("pack.header_damaged", extra={"pack": pack, "reason": str(error)})
            return _Head(Stream.BULK, handle.stat().st_mtime_ns, punched=True, damaged=True)
        foreign = header.pack != pack or header.repository_id != self._config.repository_id
        return _Head(header.stream, header.created_ns, header.punched, foreign=foreign, spare=header.spare)

    def _seal(self, handle: FileHandle, head: _Head, directory: PackDirectory, end_offset: int) -> bool:
        try:
            if head.damaged:
                self._mend_header(handle, head, directory.pack)
            elif head.spare:
                handle.pwrite(b"\0", PUNCHED_OFFSET)
            seal_file(handle, self._codec, directory, end_offset, self._config.seed)
            handle.fdatasync()
        except NoSpaceError:
            _log.warning("pack.not_sealed", extra={"pack": directory.pack})
            return False
        _log.info("pack.sealed_after_crash", extra={"pack": directory.pack, "records": len(directory)})
        return True

    def _make_durable(self, handle: FileHandle, pack: PackIndex) -> None:
        """What a killed process left is only in the page cache, perhaps; records that are shared from now on must not
        rest on that."""
        handle.fdatasync()
        self._volume.fsync_dir(pack_directory_path(pack))

    def _mend_header(self, handle: FileHandle, head: _Head, pack: PackIndex) -> None:
        """A header that was never durable is written anew; marked as punched, for nobody knows that it was not."""
        header = bytearray(encode_pack_header(self._config, pack, head.stream, head.created_ns))
        header[PUNCHED_OFFSET] = 1
        handle.pwrite(header, 0)


def _empty(pack: PackIndex, head: _Head) -> KnownPack:
    """A pack that was made beforehand and not used."""
    return KnownPack(
        index=pack,
        sealed=False,
        records=0,
        stream=head.stream,
        created_ns=head.created_ns,
        written_ns=head.created_ns,
        columns=None,
    )


def without_gone(
    handle: FileHandle,
    codec: Codec,
    directory: PackDirectory,
    *,
    check_all_headers: bool,
    unsure: set[int] | None = None,
) -> PackDirectory:
    """`directory`, of a punched pack, with kind 0 for the records that were punched.

    A record that lies in a hole must verify wholly to be kept. With `check_all_headers`, every other record's header
    must stand too; and where the file has no hole at all, because somebody copied the repository without them,
    every record must verify.

    What cannot be read now may be there: such positions are kept, and added to `unsure`. Raises VolumeError without
    `unsure`. To take them for punched would have a collection punch what somebody needs.
    """
    rows = np.flatnonzero(directory.kind)
    stops = directory.offset.astype(np.int64) + directory.stored
    holes = list(handle.holes(int(stops[rows].max()) if len(rows) else 0))
    if check_all_headers and not holes:
        doubtful = set(rows.tolist())
    else:
        doubtful = _rows_in_holes(holes, directory, rows)
    # Blocks that a punch took in part hold zeros, beside the hole: who lies there has no header any more.
    beside = [(start - HOLE_EDGE_BYTES, end + HOLE_EDGE_BYTES) for start, end in holes]
    examined = rows.tolist() if check_all_headers else sorted(_rows_in_holes(beside, directory, rows))
    kind = directory.kind.copy()
    for position in examined:
        place = directory.place(position)
        try:
            if not _stands(handle, codec, directory, place) or (
                position in doubtful and not _verifies(handle, codec, directory, place)
            ):
                kind[position] = 0
        except VolumeError as error:
            if unsure is None:
                raise
            _log.warning("pack.unreadable", extra={"pack": directory.pack, "reason": str(error)})
            unsure.add(position)
    return replace(directory, kind=kind)


def _rows_in_holes(holes: list[tuple[int, int]], directory: PackDirectory, rows: NDArray[np.intp]) -> set[int]:
    starts = directory.offset[rows].astype(np.int64)
    stops = starts + directory.stored[rows]
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    found: set[int] = set()
    for hole_start, hole_end in holes:
        first = int(np.searchsorted(stops, hole_start, "right"))
        last = int(np.searchsorted(starts, hole_end, "left"))
        found.update(rows[order[first:last]].tolist())
    return found


def _stands(handle: FileHandle, codec: Codec, directory: PackDirectory, place: Place) -> bool:
    try:
        header = codec.header_at(handle.pread(HEADER_BYTES, place.offset), directory.pack, place.offset)
    except DamagedError:
        return False
    return header.position == position_of(place.number)


def _verifies(handle: FileHandle, codec: Codec, directory: PackDirectory, place: Place) -> bool:
    try:
        codec.decode(handle.pread(place.stored_length, place.offset), directory.pack, place.offset)
    except DamagedError:
        return False
    return True
