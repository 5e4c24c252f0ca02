"""Keeping the segments of an index: loading them, writing new ones, merging, throwing away what does not hold."""

import errno
import logging
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np

from repository.errors import BallastError, DamagedError, VolumeError
from repository.format.indexseg import (
    INDEX_DIRECTORY,
    TEMPORARY_SUFFIX,
    CoveredPack,
    rows_of,
    segment_path,
    sequence_of,
)
from repository.format.pack import PackDirectory, pack_path
from repository.ids import RECORD_ID_BYTES, PackIndex, RecordId, number_of
from repository.index.build import Rows, merged_slices, segments_to_merge, sorted_rows, write_segment
from repository.index.index import Index
from repository.index.segment import Segment
from repository.packs.table import KnownPack, PackTable
from repository.storage.volume import Volume

FLUSH_ROWS: Final = 65_536
"""Records in memory (about 10 MB) from which on a segment is written."""
FLUSH_PACKS: Final = 64
"""Sealed packs without a segment, each of which costs an open after a crash four reads (cold disk: 30 ms)."""
FORGET_ROWS: Final = 4_096
"""Entries taken out of memory per hold of the state lock: below 1 ms."""

_log: Final = logging.getLogger(__name__)


class SegmentKeeper:
    """Owner of the files in `index/`. Methods may be called from several threads; one works at a time."""

    def __init__(
        self, volume: Volume, repository_id: bytes, table: PackTable, index: Index, state_lock: threading.Lock
    ) -> None:
        self._volume = volume
        self._repository_id = repository_id
        self._table = table
        self._index = index
        self._state = state_lock
        self._busy = threading.Lock()
        self._next_sequence = 1
        self.allowed = True
        """Whether segments may be written; switched off while space is short."""

    def load(self, *, writable: bool) -> dict[PackIndex, CoveredPack]:
        """Open every sound segment; returns the packs they cover. Where `writable`, clears what is of no use."""
        covered: dict[PackIndex, CoveredPack] = {}
        segments: list[Segment] = []
        for sequence in sorted(self._sequences(writable=writable), reverse=True):
            self._next_sequence = max(self._next_sequence, sequence + 1)
            try:
                segment = Segment(self._volume, sequence, self._repository_id)
            except BallastError as error:
                _log.warning("index.segment_discarded", extra={"path": segment_path(sequence), "reason": str(error)})
                self._remove(sequence, writable=writable)
                continue
            if any(item.pack in covered for item in segment.covered):
                # A crash came between a merge and the removal of what was merged. Its rows may name records that
                # were punched since, and only one segment's stamp can vouch for a pack.
                self._remove(sequence, writable=writable)
                continue
            covered.update({item.pack: item for item in segment.covered})
            segments.append(segment)
        self._index.segments = tuple(segments)
        return covered

    def clear(self) -> None:
        """Remove every segment, before a rebuild."""
        with self._busy:
            self._index.segments = ()
            for sequence in self._sequences(writable=True):
                self._remove(sequence, writable=True)

    def _sequences(self, *, writable: bool) -> list[int]:
        try:
            names = self._volume.listdir(INDEX_DIRECTORY)
            if writable:
                for name in names:
                    if name.endswith(TEMPORARY_SUFFIX):
                        self._volume.unlink(f"{INDEX_DIRECTORY}/{name}")
        except BallastError as error:
            if isinstance(error, VolumeError) and error.errno == errno.ENOENT:
                return []
            _log.warning("index.not_listed", extra={"reason": str(error)})
            return []
        return [sequence for name in names if (sequence := sequence_of(name)) is not None]

    def _remove(self, sequence: int, *, writable: bool) -> None:
        if writable:
            try:
                self._volume.unlink(segment_path(sequence))
            except BallastError as error:
                _log.warning("index.not_removed", extra={"reason": str(error)})

    def tend(self, *, everything: bool) -> None:
        """Write a segment when enough is in memory (or whatever there is), and merge when there are many.

        Never raises for what goes wrong with a segment. Returns at once while another thread does this, unless
        `everything`.
        """
        if not self.allowed or not self._busy.acquire(blocking=everything):
            return
        try:
            packs = self._uncovered()
            rows = sum(known.records for known in packs)
            if packs and (everything or rows >= FLUSH_ROWS or len(packs) >= FLUSH_PACKS):
                self._flush(packs)
            merge = segments_to_merge(self._index.segments)
            if merge:
                self._merge(merge)
        except BallastError as error:
            _log.warning("index.not_written", extra={"reason": str(error)})
        finally:
            self._busy.release()

    def due(self) -> bool:
        """Whether `tend` would write: cheap, for after each put."""
        return self.allowed and (self._table.uncovered_rows >= FLUSH_ROWS or self._table.uncovered_packs >= FLUSH_PACKS)

    def _uncovered(self) -> list[KnownPack]:
        with self._state:
            return [
                known
                for known in self._table.packs.values()
                if known.sealed and isinstance(known.columns, PackDirectory) and not known.unsure
            ]

    def _stamp(self, known: KnownPack) -> CoveredPack:
        if known.stamp is not None:
            mtime_ns, blocks = known.stamp
        else:
            stat = self._volume.stat(pack_path(known.index))
            mtime_ns, blocks = stat.st_mtime_ns, stat.st_blocks
        return CoveredPack(
            known.index, known.records, known.stream, known.created_ns, known.written_ns, mtime_ns, blocks
        )

    def _flush(self, packs: list[KnownPack]) -> None:
        # Stamps are taken before rows are filtered: a punch in between makes the stamp differ at the next open.
        covered = [self._stamp(known) for known in packs]
        directories = [known.columns for known in packs if isinstance(known.columns, PackDirectory)]
        rows = sorted_rows([rows_of(directory) for directory in directories], self._index.wanted)
        segment = self._write(iter((rows,)), len(rows.keys), covered)
        self._index.segments = (segment, *self._index.segments)
        for known, directory in zip(packs, directories, strict=True):
            self._forget(known, directory)

    def _forget(self, known: KnownPack, directory: PackDirectory) -> None:
        """The segment answers for this pack now: take its records out of memory."""
        positions = np.flatnonzero(directory.kind)
        for first in range(0, len(positions), FORGET_ROWS):
            group = positions[first : first + FORGET_ROWS]
            ids = directory.ids[group].tobytes()
            rows = [
                (RecordId(ids[at : at + RECORD_ID_BYTES]), number_of(directory.pack, position))
                for at, position in zip(range(0, len(ids), RECORD_ID_BYTES), group.tolist(), strict=True)
            ]
            with self._state:
                for record_id, number in rows:
                    self._index.remove(record_id, number)
        with self._state:
            self._table.cover(known)

    def _merge(self, segments: list[Segment]) -> None:
        for segment in segments:
            try:
                segment.verify()
            except DamagedError as error:
                self._index.discard(segment, error)
                self._remove(segment.sequence, writable=True)
                return
        packs: dict[PackIndex, KnownPack] = {}
        for segment in segments:
            for item in segment.covered:
                known = self._table.packs.get(item.pack)
                if known is not None:
                    packs[item.pack] = known
        covered = [self._stamp(known) for known in packs.values()]
        total = sum(map(len, segments))
        merged = self._write(merged_slices(segments, self._index.wanted), total, covered)
        gone = set(map(id, segments))
        kept = [segment for segment in self._index.segments if id(segment) not in gone]
        self._index.segments = (merged, *kept)
        for segment in segments:
            self._remove(segment.sequence, writable=True)

    def _write(self, slices: Iterator[Rows], rows_max: int, covered: list[CoveredPack]) -> Segment:
        if not self._volume.exists(INDEX_DIRECTORY):  # somebody removed it, as anybody may
            self._volume.mkdir(INDEX_DIRECTORY)
        sequence = self._next_sequence
        self._next_sequence += 1
        write_segment(
            self._volume,
            repository_id=self._repository_id,
            sequence=sequence,
            slices=slices,
            rows_max=rows_max,
            covered=covered,
        )
        _log.info("index.segment_written", extra={"rows": rows_max, "packs": len(covered)})
        return Segment(self._volume, sequence, self._repository_id)
