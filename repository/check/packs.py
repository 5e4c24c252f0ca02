"""Verifying packs: headers, directories, and (when asked) every record's bytes."""

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from pyroaring import BitMap64

from repository.check.findings import Findings
from repository.codec import Codec
from repository.errors import BallastError, DamagedError, VolumeError
from repository.format.pack import (
    PACK_HEADER_BYTES,
    PackDirectory,
    decode_pack_header,
    pack_path,
)
from repository.format.record import HEADER_BYTES
from repository.ids import PackIndex, RecordId
from repository.packs.load import list_packs
from repository.packs.reader import read_directory
from repository.packs.spare import holds_nothing
from repository.packs.table import PackInfo
from repository.policy.collect import live_rows, pack_numbers, packs_of
from repository.roots import all_kept, surely_kept
from repository.storage.volume import FileHandle
from repository.units import MIB

if TYPE_CHECKING:
    from repository.ports import Progress
    from repository.repo import Repository

FOREIGN: Final = "this is another pack, or another repository's; it is left alone"
WINDOW_BYTES: Final = 4 * MIB
"""Read at once while records are verified; longer than the longest chunk with its header."""


class PackFigures(NamedTuple):
    """How much was looked at. `damaged`: ids of records that something needs and that are not what they were.

    `vague`: findings about records that are named by bitmaps which may hold too much, and that are not there: damage
    where a tree misses records; else an emergency has collected them.
    """

    packs: int
    records: int
    read_bytes: int
    damaged: frozenset[RecordId]
    vague: Findings


def check_packs(
    repository: "Repository", findings: Findings, *, read_data: bool, progress: "Progress | None"
) -> PackFigures:
    """Every pack: its header, its end, and its records that something needs."""
    kept = _kept(repository, findings)
    needed = None if kept is None else kept & surely_kept(repository.store, repository.catalog)
    infos = repository.store.packs()
    known = {info.index for info in infos}
    _check_unknown(repository, findings, known)
    vague = Findings()
    _check_missing(findings, known, kept, needed, vague)
    if progress is not None:
        progress.start("checking packs", sum(info.allocated_bytes for info in infos))
    records = read_bytes = 0
    damaged: set[RecordId] = set()
    for info in infos:
        one = _PackCheck(repository, findings, info, (kept, needed), damaged, vague)
        try:
            found, nbytes = one.run(read_data=read_data)
        except VolumeError as error:
            if error.errno != errno.ENOENT:
                findings.error(pack_path(info.index), str(error))
            continue  # a collection beside us took it
        except DamagedError as error:
            findings.error(pack_path(info.index), str(error))
            continue
        records += found
        read_bytes += nbytes
        if progress is not None:
            progress.advance(info.allocated_bytes, 0)
    if progress is not None:
        progress.finish()
    return PackFigures(len(infos), records, read_bytes, frozenset(damaged), vague)


def _kept(repository: "Repository", findings: Findings) -> BitMap64 | None:
    """What some root needs; None where that cannot be told (every record counts as needed then)."""
    try:
        return all_kept(repository.store, repository.catalog)
    except BallastError as error:
        findings.error("snapshots", f"what they need cannot be told: {error}")
        return None


def _check_unknown(repository: "Repository", findings: Findings, known: set[PackIndex]) -> None:
    for pack in list_packs(repository.volume):
        if pack in known:
            continue
        try:
            with repository.volume.open(pack_path(pack)) as handle:
                start = handle.pread(PACK_HEADER_BYTES, 0)
                unused = holds_nothing(handle, handle.size())
        except VolumeError as error:
            if error.errno != errno.ENOENT:
                findings.error(pack_path(pack), str(error))
            continue
        if _is_foreign(repository, pack, start):
            findings.error(pack_path(pack), FOREIGN)
        elif not unused and not repository.writable:
            findings.warning(pack_path(pack), "it appeared while this check ran, or holds no record")


def _is_foreign(repository: "Repository", pack: PackIndex, start: bytes) -> bool:
    """Whether a pack begins with the sound header of another pack, or of another repository's."""
    try:
        header = decode_pack_header(start)
    except DamagedError:
        return False
    return header.pack != pack or header.repository_id != repository.config.repository_id


def _check_missing(
    findings: Findings,
    known: set[PackIndex],
    kept: BitMap64 | None,
    needed: BitMap64 | None,
    vague: Findings,
) -> None:
    """Packs that something needs and that are not there, or hold nothing that can be read."""
    if kept is None or needed is None:
        return
    for pack in packs_of(kept):
        if pack not in known:
            numbers = pack_numbers(pack)
            text = f"it is missing, or holds none of the {len(kept & numbers)} records needed of it"
            if needed & numbers:
                findings.error(pack_path(pack), text)
            else:
                vague.error(pack_path(pack), text)


class _PackCheck:
    """One pack's verification."""

    def __init__(
        self,
        repository: "Repository",
        findings: Findings,
        info: PackInfo,
        roots: tuple[BitMap64 | None, BitMap64 | None],
        damaged: set[RecordId],
        vague: Findings,
    ) -> None:
        self._repository = repository
        self._findings = findings
        self._info = info
        self._kept, self._needed = roots
        self._damaged = damaged
        self._vague = vague
        self._codec = Codec(repository.config.id_key, repository.config.seed)
        self._path = pack_path(info.index)
        self._is_punched = False

    def run(self, *, read_data: bool) -> tuple[int, int]:
        """Returns the number of records in it, and the bytes of those that were verified whole."""
        with self._repository.volume.open(self._path) as handle:
            self._check_header(handle)
            self._check_end(handle)
            directory = self._repository.store.directory(self._info.index)
            rows = self._rows(directory)
            checked = 0
            for position in rows:
                checked += self._check_record(handle, directory, int(position), whole=read_data)
            return int(np.count_nonzero(directory.kind)), checked if read_data else 0

    def _check_header(self, handle: FileHandle) -> None:
        config = self._repository.config
        try:
            header = decode_pack_header(handle.pread(PACK_HEADER_BYTES, 0))
        except DamagedError as error:
            self._findings.warning(f"{self._path}, byte 0", f"{error}; its records stand by themselves")
            return
        self._is_punched = header.punched
        if header.pack != self._info.index or header.repository_id != config.repository_id:
            self._findings.error(f"{self._path}, byte 0", FOREIGN)

    def _check_end(self, handle: FileHandle) -> None:
        seed = self._repository.config.seed
        if self._info.sealed and read_directory(handle, self._codec, seed, self._info.index) is None:
            self._findings.warning(f"{self._path}, end", "its directory is damaged; the records were found by scanning")

    def _rows(self, directory: PackDirectory) -> Iterable[int]:
        """Positions of the records that something needs."""
        there = directory.kind > 0
        if self._kept is not None:
            alive = live_rows(self._kept, self._info.index, len(directory))
            needed = live_rows(self._needed or BitMap64(), self._info.index, len(directory))
            for position in np.flatnonzero(alive & ~there).tolist():
                place = f"{self._path}, position {position}"
                text = "a record that a snapshot or the journal needs is not there"
                if needed[position]:
                    self._findings.error(place, text)
                else:
                    self._vague.error(place, text)
            there = there & alive
        found: list[int] = np.flatnonzero(there).tolist()
        return found

    def _check_record(self, handle: FileHandle, directory: PackDirectory, position: int, *, whole: bool) -> int:
        offset, stored = int(directory.offset[position]), int(directory.stored[position])
        place = f"{self._path}, byte {offset}"
        record_id = directory.id_at(position)
        buffer = handle.pread(stored if whole else HEADER_BYTES, offset)
        try:
            if whole:
                header, _ = self._codec.decode(buffer, self._info.index, offset)
            else:
                header = self._codec.header_at(buffer, self._info.index, offset)
        except DamagedError as error:
            if self._kept is None and self._is_punched and not buffer.strip(b"\0"):
                return 0  # collected; which records are needed cannot be told
            self._findings.error(place, f"record {record_id.hex()}: {error}")
            self._damaged.add(record_id)
            return 0
        if header.id != record_id or header.position != position or header.stored_length != stored:
            self._findings.error(place, f"record {record_id.hex()}: another record lies here")
            self._damaged.add(record_id)
            return 0
        return stored
