"""The journal of `live`: writing flushes into packs, and finding those that no commit includes yet.

Owner of the invariant *what is replayed is a prefix of what was written, in its order*: a flush counts only when it
continues the chain from the head, all its parts are there, and every chunk that it names can be located.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pyroaring import BitMap64

from repository.errors import DamagedError
from repository.format.catalog import Head
from repository.format.journal import (
    Change,
    Flush,
    FlushPart,
    JournalMark,
    decode_part,
    encode_flush,
    join_parts,
    referenced_chunks,
    referenced_trees,
)
from repository.format.record import RecordKind
from repository.ids import PackIndex, RecordId, RecordNumber, number_of
from repository.leases import Lease
from repository.ledger import Claim
from repository.ports import Clock
from repository.store import RecordStore

log = logging.getLogger(__name__)

LOCATE_BATCH: Final = 4096
"""Ids looked up at once: enough to make the look-up vectorised, 128 KiB of ids."""


class JournalWriter:
    """Writes the flushes of one mount, one after the other. Thread safe.

    Made with the mark that the replay ended at; what an earlier process left behind that mark is dead.
    """

    def __init__(self, store: RecordStore, clock: Clock, after: JournalMark) -> None:
        self._store = store
        self._clock = clock
        self._mark = after
        self._lock = threading.Lock()

    @property
    def mark(self) -> JournalMark:
        """The last flush written (not necessarily durable)."""
        with self._lock:
            return self._mark

    def write(
        self, changes: Sequence[Change], lease: Lease, base_serial: int, claim: Claim | None = None
    ) -> JournalMark:
        """Put one flush into the open pack. Durable only after `store.sync()`, which is the caller's.

        Raises NoSpaceError when `claim` is None and there is no room; the chain then stays where it was.
        """
        with self._lock:
            flush = Flush(self._mark.sequence + 1, self._mark.digest, base_serial, self._clock.now_ns(), tuple(changes))
            payloads, mark = encode_flush(flush)
            self._store.put(RecordKind.JOURNAL, payloads, lease, claim)
            self._mark = mark
            return mark

    def floor(self) -> PackIndex:
        """No flush written from now on lies in a pack below this. Ask at the moment of a freeze."""
        return journal_floor(self._store)


def journal_floor(store: RecordStore) -> PackIndex:
    """The lowest pack that may still take records; the one after the last where all are sealed."""
    spare = store.spare_pack()  # asked first: it may become one of the others at any moment
    infos = store.packs()
    still_open = [info.index for info in infos if not info.sealed]
    if spare is not None:
        still_open.append(spare)
    if still_open:
        return PackIndex(min(still_open))
    return PackIndex(max((info.index for info in infos), default=-1) + 1)


@dataclass(frozen=True, slots=True)
class Pending:
    """What the journal holds beyond the head.

    `mark`: the last flush of the prefix (the head's own mark when there is none). `numbers`: the records that the
    prefix consists of and names. `stopped`: why the prefix ends before the last flush found, or None.
    """

    flushes: tuple[Flush, ...]
    mark: JournalMark
    numbers: BitMap64
    stopped: str | None = None

    @property
    def changes(self) -> int:
        """Changes in all flushes."""
        return sum(len(flush.changes) for flush in self.flushes)

    @property
    def last_ns(self) -> int:
        """When the last flush was written; 0 for none."""
        return self.flushes[-1].time_ns if self.flushes else 0


@dataclass(slots=True)
class _Candidate:
    """Parts of one flush as found, with the numbers of their records."""

    parts: list[FlushPart]
    numbers: list[RecordNumber]

    @property
    def order(self) -> RecordNumber:
        """Later processes write into later packs: of two successors the later one is the one that was acknowledged."""
        return max(self.numbers)


def pending(store: RecordStore, head: Head) -> Pending:
    """The flushes after `head.journal`, in order, up to the first that is missing, torn or names what is not there."""
    candidates, unreadable = _candidates(store, head)
    mark, flushes, numbers = head.journal, [], BitMap64()
    stopped: str | None = None
    while True:
        successors = candidates.get((mark.sequence + 1, mark.digest), [])
        for candidate in sorted(successors, key=lambda one: one.order, reverse=True):
            try:
                flush = join_parts(candidate.parts)
            except DamagedError as error:
                stopped = f"flush {mark.sequence + 1}: {error}"
                continue
            if flush is None:
                stopped = f"flush {mark.sequence + 1} is not complete"
                continue
            named = _named_numbers(store, flush)
            if named is None:
                stopped = f"flush {mark.sequence + 1} names records that are not there"
                continue
            flushes.append(flush)
            numbers |= named
            numbers.update(candidate.numbers)
            mark = JournalMark(flush.sequence, candidate.parts[0].digest)
            stopped = None
            break
        else:
            break
    if stopped is None and any(_belongs(one, mark, head) for ones in candidates.values() for one in ones):
        stopped = f"flush {mark.sequence + 1} is not there, later ones are"
    if stopped is None:
        stopped = unreadable
    if stopped is not None:
        log.info("journal.stopped", extra={"sequence": mark.sequence, "why": stopped})
    return Pending(tuple(flushes), mark, numbers, stopped)


def _belongs(candidate: _Candidate, mark: JournalMark, head: Head) -> bool:
    """Whether it is later than the prefix, and of the mount that was the last to begin. What an earlier one could not
    make durable is dead since then: see `restart_journal`."""
    first = candidate.parts[0]
    return first.sequence > mark.sequence and first.time_ns >= head.mounted_ns


def _candidates(store: RecordStore, head: Head) -> tuple[dict[tuple[int, int], list[_Candidate]], str | None]:
    """All flushes later than the head, by (sequence, digest of the one before); and a record that cannot be read."""
    by_flush: dict[tuple[int, int, int], _Candidate] = {}
    unreadable: str | None = None
    for info in store.packs():
        if info.index < head.journal_floor:
            continue
        directory = store.directory(info.index)
        for position in np.flatnonzero(directory.kind == RecordKind.JOURNAL).tolist():
            number = number_of(info.index, position)
            try:
                part = decode_part(store.read_at(directory.place(position)).payload)
            except DamagedError as error:
                log.info("journal.unreadable", extra={"number": number, "error": str(error)})
                unreadable = f"a record of it cannot be read: {error}"
                continue
            if part.sequence <= head.journal.sequence:
                continue
            key = (part.sequence, part.previous, part.digest)
            found = by_flush.setdefault(key, _Candidate([], []))
            found.parts.append(part)
            found.numbers.append(number)
    grouped: dict[tuple[int, int], list[_Candidate]] = {}
    for (sequence, previous, _), candidate in by_flush.items():
        grouped.setdefault((sequence, previous), []).append(candidate)
    return grouped, unreadable


def _named_numbers(store: RecordStore, flush: Flush) -> BitMap64 | None:
    """Numbers of everything that `flush` names directly; None when something is not there."""
    numbers = BitMap64()
    for batch in _batches({*referenced_chunks(flush), *referenced_trees(flush)}):
        places = store.locate(batch)
        found = [place.number for place in places if place is not None]
        if len(found) < len(batch):
            return None
        numbers.update(found)
    return numbers


def _batches(ids: Iterable[RecordId]) -> Iterable[list[RecordId]]:
    ordered = sorted(ids)
    for start in range(0, len(ordered), LOCATE_BATCH):
        yield ordered[start : start + LOCATE_BATCH]
