"""The columns of all packs in memory, kept up to date by what changed: a pack was sealed, punched or removed."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from repository.errors import MissingRecordError
from repository.format.intent import Punch
from repository.format.pack import PackDirectory, pack_path
from repository.ids import PackIndex, number_of
from repository.packs.table import PackInfo
from repository.policy.columns import PackColumns, PackFacts, join, with_packs
from repository.storage.volume import Volume
from repository.store import RecordStore

log = logging.getLogger(__name__)

ROWS_MAX: Final = 4_000_000
"""Records that a census is taken of, about 30 bytes each; a larger repository is planned from bitmaps, pack by pack."""
ROW_BYTES: Final = 13
"""A record's offset, length and kind, and the beginning of its id."""
KEY_BYTES: Final = 4
"""Of each id, to find records that are stored twice: one pair in a few thousand million is there by chance."""


def facts_of(volume: Volume, info: PackInfo, directory: PackDirectory) -> PackFacts:
    """One pack as a plan wants it; one that has all its blocks is not asked for holes. Raises VolumeError."""
    holes: tuple[tuple[int, int], ...] = ()
    if info.sealed and info.allocated_bytes < info.size_bytes:
        with volume.open(pack_path(info.index)) as handle:
            holes = tuple(handle.holes(handle.size()))
    return PackFacts(
        info.index,
        info.sealed,
        directory.written_ns,
        info.allocated_bytes,
        directory.offset,
        directory.stored,
        directory.kind,
        holes,
    )


class PackCensus:
    """The columns of all packs. Sealed ones are read once; open ones each time."""

    def __init__(self, store: RecordStore, volume: Volume) -> None:
        self._store = store
        self._volume = volume
        self._sealed: dict[PackIndex, PackFacts] = {}
        self._open: list[PackFacts] = []
        self._joined: PackColumns | None = None
        self._punched: dict[PackIndex, list[Punch]] = {}
        self._keys = np.zeros(0, np.uint32)
        self.later_copies = BitMap64()
        """Records of which an earlier copy exists: damage may have made them."""

    def refresh(self) -> bool:
        """See which packs there are. False where they hold more than ROWS_MAX records. Raises VolumeError."""
        present = self._store.pack_indexes()
        gone = self._sealed.keys() - present
        if not self._store.writable:  # somebody else may have punched them since
            infos = {pack: self._store.pack_info(pack) for pack in self._sealed}
            gone |= {
                pack
                for pack, info in infos.items()
                if info is None or info.allocated_bytes != self._sealed[pack].allocated_bytes
            }
        for pack in gone:
            del self._sealed[pack]
            self._joined = None
        self._take_in_punches()
        self._open = []
        fresh: list[tuple[PackIndex, PackDirectory]] = []
        rows = sum(len(facts.stored) for facts in self._sealed.values()) if present - self._sealed.keys() else 0
        for pack in sorted(present - self._sealed.keys()):
            info = self._store.pack_info(pack)
            if info is None or not info.records:
                continue
            rows += info.records
            if rows > ROWS_MAX:
                return False
            try:
                directory = self._store.directory(pack)
            except MissingRecordError:
                continue
            facts = facts_of(self._volume, info, directory)
            if info.sealed:
                self._sealed[pack] = facts
                self._joined = None
                fresh.append((pack, directory))
            else:
                self._open.append(facts)
        self._note_copies(fresh)
        self._own()
        return True

    def _own(self) -> None:
        """Have the packs' columns be parts of the joined ones: what was read besides them goes."""
        if self._joined is not None:
            return
        columns = join(self._sealed.values())
        for at, pack in enumerate(columns.packs.tolist()):
            rows = slice(int(columns.base[at]), int(columns.base[at + 1]))
            self._sealed[PackIndex(pack)] = replace(
                self._sealed[PackIndex(pack)],
                offset=columns.offset[rows],
                stored=columns.stored[rows],
                kind=columns.kind[rows],
            )
        self._joined = columns

    def columns(self, *, sealed_only: bool) -> PackColumns:
        """As of the last `refresh`."""
        if sealed_only or not self._open:
            self._own()
            assert self._joined is not None
            return self._joined
        assert self._joined is not None
        return with_packs(self._joined, join(self._open))

    def facts(self, pack: PackIndex) -> PackFacts | None:
        """One pack; None where it is none."""
        return self._sealed.get(pack) or next((facts for facts in self._open if facts.index == pack), None)

    def punched(self, punches: Iterable[Punch]) -> None:
        """These ranges were given back: their packs are looked at anew when columns are next asked for."""
        for punch in punches:
            self._punched.setdefault(punch.pack, []).append(punch)

    def _take_in_punches(self) -> None:
        punched, self._punched = self._punched, {}
        for pack, ranges in punched.items():
            known, info = self._sealed.get(pack), self._store.pack_info(pack)
            if known is None or info is None:
                continue
            with self._volume.open(pack_path(pack)) as handle:
                holes = tuple(handle.holes(handle.size()))
            kind = np.where(_within(known, ranges), np.uint8(0), known.kind)
            self._sealed[pack] = replace(known, kind=kind, holes=holes, allocated_bytes=info.allocated_bytes)
            self._joined = None

    # --- records that are stored twice ---------------------------------------------------------------------------

    def _note_copies(self, packs: Sequence[tuple[PackIndex, PackDirectory]]) -> None:
        """Find ids that are in `packs` and anywhere else, by the beginning of their bytes, then by asking."""
        keys = [_keys_of(directory) for _, directory in packs]
        if not keys:
            return
        before = self._keys
        self._keys = np.concatenate((before, *keys))
        self._keys.sort()
        twice = self._keys[1:][self._keys[1:] == self._keys[:-1]]
        if not len(twice):
            return
        found = np.isin(np.concatenate(keys), twice)
        bounds = np.cumsum([len(own) for own in keys])[:-1]
        for (pack, directory), own in zip(packs, np.split(found, bounds), strict=True):
            if not own.any():
                continue
            for position in np.flatnonzero(directory.kind)[own].tolist():
                copies = self._store.copies(directory.id_at(position))
                if len(copies) > 1:
                    numbers = sorted(place.number for place in copies)
                    self.later_copies.update(numbers[1:])
                    log.info("census.copies", extra={"number": number_of(pack, position), "copies": len(copies)})


def _within(facts: PackFacts, ranges: Sequence[Punch]) -> NDArray[np.bool_]:
    """Which records begin in one of `ranges`."""
    ordered = sorted((punch.offset, punch.offset + punch.length) for punch in ranges)
    bounds = np.array(ordered, np.int64).ravel()
    inside: NDArray[np.bool_] = np.searchsorted(bounds, facts.offset.astype(np.int64), side="right") % 2 == 1
    return inside


def _keys_of(directory: PackDirectory) -> NDArray[np.uint32]:
    """The first bytes of the id of every record that is there."""
    return np.ascontiguousarray(directory.ids[:, :KEY_BYTES]).view(np.uint32)[:, 0][directory.kind > 0]
