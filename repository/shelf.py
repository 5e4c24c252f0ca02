"""The packs of a repository as a whole: found at open, described, punched and removed.

Owner of the invariant that a pack index is given once: the newest pack is never unlinked, only cut to its header.
"""

import errno
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from repository.errors import MissingRecordError, VolumeError
from repository.format.indexseg import CoveredPack
from repository.format.pack import PACK_HEADER_BYTES, PUNCHED_OFFSET, PackDirectory, pack_path
from repository.ids import PackIndex
from repository.index.index import Index
from repository.index.keeper import FLUSH_ROWS, SegmentKeeper
from repository.packs.load import PackLoader, list_packs
from repository.packs.openpack import OpenPack
from repository.packs.reader import PackReader
from repository.packs.table import KnownPack, PackInfo, PackTable
from repository.packs.writer import Sealed
from repository.storage.volume import STAT_BLOCK_BYTES, FileHandle, Volume


class PackShelf:
    """Thread safe. Raises VolumeError, SyncFailedError."""

    def __init__(
        self,
        *,
        volume: Volume,
        table: PackTable,
        index: Index,
        keeper: SegmentKeeper,
        loader: PackLoader,
        reader: PackReader,
        state_lock: threading.Lock,
        writable: bool,
    ) -> None:
        self._volume = volume
        self._table = table
        self._index = index
        self._keeper = keeper
        self._loader = loader
        self._reader = reader
        self._state = state_lock
        self._writable = writable
        self._stump: PackIndex | None = None
        """A pack that is gone but for its header, because it was the newest."""
        self.empty: Final[list[PackIndex]] = []
        """What a writer found without a record when it opened: spare packs, and what a crash left."""

    # -- finding -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Know every pack: from the index where it covers one, else from the pack's own file."""
        covered = self._keeper.load(writable=self._writable)
        packs = sorted(list_packs(self._volume))
        self._table.highest = PackIndex(max((*packs, *covered), default=-1))
        for pack in packs:
            item = covered.get(pack)
            if item is not None and not (pack == self._table.highest and self._is_stump(pack)):
                self._table.add(_covered_pack(item))
            else:
                self._load(pack)
        if self._writable and self._keeper.due():
            self._keeper.tend(everything=False)

    def refresh(self) -> None:
        """Beside a writer: see what was added and removed since."""
        present = set(list_packs(self._volume))
        with self._state:
            known = dict(self._table.packs)
            for pack in known.keys() - present:
                self._table.drop(pack)
        for pack in sorted(present):
            if pack not in known or not known[pack].sealed:
                self._load(pack)

    def _load(self, pack: PackIndex) -> None:
        known = self._loader.load(pack, seal=self._writable)
        if known is None:
            return
        if not known.sealed and not known.records:
            if self._writable:
                self.empty.append(pack)
            return
        with self._state:
            self._table.add(known)
            self._index.insert_columns(pack)
        if self._writable and self._table.uncovered_rows >= FLUSH_ROWS:
            self._keeper.tend(everything=False)

    def _is_stump(self, pack: PackIndex) -> bool:
        return self._volume.stat(pack_path(pack)).st_size <= PACK_HEADER_BYTES

    # -- describing --------------------------------------------------------------------------------------------

    def packs(self) -> list[PackInfo]:
        """Every pack, by index; one `stat` each."""
        with self._state:
            known = sorted(self._table.packs.values(), key=lambda pack: pack.index)
        infos = [self._info(pack) for pack in known]
        return [info for info in infos if info is not None]

    def indexes(self) -> frozenset[PackIndex]:
        """Which packs there are; asks nobody."""
        with self._state:
            return frozenset(self._table.packs)

    def info(self, pack: PackIndex) -> PackInfo | None:
        """One pack, by one `stat`; None where it is gone."""
        with self._state:
            known = self._table.packs.get(pack)
        return None if known is None else self._info(known)

    def _info(self, pack: KnownPack) -> PackInfo | None:
        try:
            found = self._volume.stat(pack_path(pack.index))
        except VolumeError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return PackInfo(
            index=pack.index,
            sealed=pack.sealed,
            records=len(pack.columns) if pack.columns is not None else pack.records,
            size_bytes=found.st_size,
            allocated_bytes=found.st_blocks * STAT_BLOCK_BYTES,
            stream=pack.stream,
            created_ns=pack.created_ns,
            written_ns=pack.written_ns,
        )

    def directory(self, pack: PackIndex) -> PackDirectory:
        """The columns of one pack. Raises MissingRecordError for an unknown one."""
        with self._state:
            known = self._table.packs.get(pack)
            columns = known.columns if known is not None else None
            if isinstance(columns, OpenPack):
                return columns.directory()
        if known is None:
            raise MissingRecordError(f"There is no pack {pack_path(pack)}.")
        return columns if columns is not None else self._loader.directory(pack, check_all_headers=False)

    def sealed(self, sealed: Sealed) -> None:
        """The writer has sealed a pack."""
        directory = sealed.directory
        known = KnownPack(
            index=directory.pack,
            sealed=True,
            records=len(directory),
            stream=sealed.stream,
            created_ns=sealed.created_ns,
            written_ns=directory.written_ns,
            columns=directory,
        )
        with self._state:
            self._table.add(known)

    # -- removing ----------------------------------------------------------------------------------------------

    def drop(self, pack: PackIndex) -> None:
        """Remove a pack."""
        with self._state:
            self._table.drop(pack)
        self._reader.forget(pack)
        self._remove_file(pack)
        with self._state:
            self._index.forget_pack(pack)

    def remove_stump(self) -> None:
        """Remove what is left of the pack that was the newest when it was dropped, if it is the newest no more."""
        if self._stump is not None and self._stump < self._table.highest:
            self._remove_file(self._stump)

    def remove_empty(self, pack: PackIndex) -> None:
        """Remove one of `empty`."""
        self._remove_file(pack)

    def _remove_file(self, pack: PackIndex) -> None:
        try:
            if pack == self._table.highest:
                self._stump = pack
                with self._volume.open(pack_path(pack), writable=True) as handle:
                    if handle.size() > PACK_HEADER_BYTES:
                        handle.truncate(PACK_HEADER_BYTES)
            else:
                self._volume.unlink(pack_path(pack))
        except VolumeError as error:
            if error.errno != errno.ENOENT:
                raise

    def punch(self, pack: PackIndex, spans: Sequence[tuple[int, int]]) -> None:
        """Mark a sealed pack as punched, punch (offset, length) spans out of it, make that durable."""
        if not spans:
            return
        with self._open_to_change(pack) as handle:
            handle.pwrite(b"\x01", PUNCHED_OFFSET)
            handle.fdatasync()
            for offset, length in spans:
                handle.punch(offset, length)
            handle.fsync()
        with self._state:
            known = self._table.packs.get(pack)
            if known is not None and isinstance(known.columns, PackDirectory):
                self._table.add(replace(known, columns=_without_spans(known.columns, spans)))

    def _open_to_change(self, pack: PackIndex) -> FileHandle:
        try:
            return self._volume.open(pack_path(pack), writable=True)
        except VolumeError as error:
            if error.errno == errno.ENOENT:
                raise MissingRecordError(f"There is no pack {pack_path(pack)}.") from error
            raise


def _covered_pack(item: CoveredPack) -> KnownPack:
    return KnownPack(
        index=item.pack,
        sealed=True,
        records=item.records,
        stream=item.stream,
        created_ns=item.created_ns,
        written_ns=item.written_ns,
        columns=None,
        stamp=(item.mtime_ns, item.blocks),
    )


def _without_spans(directory: PackDirectory, spans: Sequence[tuple[int, int]]) -> PackDirectory:
    kind = directory.kind.copy()
    starts = directory.offset.astype(np.int64)
    stops = starts + directory.stored
    for offset, length in spans:
        kind[(starts < offset + length) & (stops > offset)] = 0
    return replace(directory, kind=kind)
