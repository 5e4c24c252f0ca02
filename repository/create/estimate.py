"""Before `snapshot create` stores anything: whether it can fit. What `policy.preflight` decides on is gathered here.

In steps, each only where the one before leaves a doubt: what the source's file systems hold at all; what is new since
the parent snapshot, if the scan comes to its end before it has found more than can be kept (it is the scan that storing
goes on with, so this costs nothing); the sizes below the named paths, summed up; what is new, by a scan of its own; and
a sample of that, read and cut into chunks, which are looked up in the index.
"""

import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from blake3 import blake3
from pyroaring import BitMap

from repository.chunker import Chunker, is_zero
from repository.codec import Codec
from repository.create.events import Event, FileFound
from repository.create.mounts import held_bytes, mountpoint_of
from repository.create.rough import sizes_fit
from repository.create.scan import Scanner
from repository.create.source import Directory, SourceError, SourceFile, open_ancestor
from repository.errors import DamagedError, NoSpaceError
from repository.format.catalog import Slot, SnapshotKind
from repository.format.record import HEADER_BYTES, RecordKind
from repository.ids import SnapshotId
from repository.policy.preflight import (
    Estimate,
    Place,
    Remedy,
    Strider,
    gave_up_text,
    lower_estimate_bytes,
    refuses,
    shortage_text,
    usable_bytes,
)
from repository.policy.retention import Kept, thinning_order
from repository.ports import Progress
from repository.recovery import RecoverySettings
from repository.repo import Repository
from repository.units import KIB, MIB

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 4 * MIB
"""Read around a place that is looked at; about sixteen chunks."""
UNSURE_PIECES: Final = 4
"""Chunks at the beginning of a window that may be cut otherwise than in the whole file: the cuts meet again soon."""
LARGE_FROM_BYTES: Final = 1 * MIB
"""Files from this size on are told apart by what they hold, smaller ones by their names."""
LARGE_MAX: Final = 100_000
"""Sizes of large files that are remembered, about 20 MB; further files count as copies."""
MIDDLE_BYTES: Final = 4 * KIB
DIGEST_BYTES: Final = 8
LOOK_CLOSER_S: Final = 5.0
"""How long a refused user waits for exact figures of what would help."""
PULSE_STEPS: Final = 256
"""Names between two looks at whether the user gave up."""
AHEAD_EVENTS: Final = 16_384
"""What a scan tells before it is asked for the rest, at most: about 10 MB."""
AHEAD_DIRECTORIES: Final = 256
"""Directories kept open for that: a quarter of the usual 1,024 descriptors, given back before readers take theirs."""


class Counter:
    """Takes the files that are new, as the scanner finds them: how many bytes, and how many at least are distinct."""

    def __init__(self) -> None:
        self.upper_bytes = 0
        self.distinct_bytes = 0
        self.strider = Strider()
        self._small = BitMap()
        self._large: dict[int, bytes | set[bytes]] = {}
        """By size: the one file that has it, or what several of them hold in their middles."""

    def add(self, path: bytes, size: int) -> None:
        """A file of `size` bytes. What may be a copy of one that was added before is not distinct."""
        self.upper_bytes += size
        if size and (self._is_new_small(path, size) if size < LARGE_FROM_BYTES else self._is_new_large(path, size)):
            self.distinct_bytes += size
            self.strider.offer(path, size)

    def _is_new_small(self, path: bytes, size: int) -> bool:
        """Copies have one size, and as a rule one name."""
        key = hash((size, os.path.basename(path))) & 0xFFFFFFFF
        if key in self._small:
            return False
        self._small.add(key)
        return True

    def _is_new_large(self, path: bytes, size: int) -> bool:
        """Copies have one size, and the same in the middle: which is looked at only where the size is the same."""
        known = self._large.get(size)
        if known is None:
            if len(self._large) >= LARGE_MAX:
                return False
            self._large[size] = path
            return True
        if isinstance(known, bytes):
            known = self._large[size] = {_middle(known, size)}
        middle = _middle(path, size)
        if middle in known or len(known) >= LARGE_MAX:
            return False
        known.add(middle)
        return True


def _middle(path: bytes, size: int) -> bytes:
    """A digest of bytes in the middle of a file; of nothing where it cannot be read."""
    window = bytearray(MIDDLE_BYTES)
    count = 0
    try:
        with _opened(path) as file:
            count = file.read_into(memoryview(window), (size - MIDDLE_BYTES) // 2)
    except SourceError:
        count = 0  # it will be told when it is stored
    return blake3(window[:count]).digest(DIGEST_BYTES)


@contextmanager
def _opened(path: bytes) -> Iterator[SourceFile]:
    """The file at an absolute path, for reading. Raises SourceError."""
    directory = open_ancestor(os.path.dirname(path))
    try:
        with SourceFile(directory, os.path.basename(path)) as file:
            yield file
    finally:
        directory.release()


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be stored: absolute `paths`, without the file systems mounted below them if `one_file_system`, and
    without the directories in `left_out`; and the snapshot that it is compared with."""

    paths: Sequence[bytes]
    one_file_system: bool
    left_out: frozenset[bytes]
    parent: Slot | None


def require_room(
    repo: Repository, planned: Planned, scanner: Scanner, again: Callable[[], Scanner], progress: Progress
) -> Estimate | None:
    """Raises NoSpaceError where storing cannot fit, whatever recovery may free.

    `scanner`, which has begun, is the one that storing goes on with: it may have run ahead. `again` begins another that
    finds the same. Returns the estimates, where it took some. What the parent has is expected to be there still: who
    keeps most of a file system here need not wait for a second scan of it each time.
    """
    usable = usable_now_bytes(repo)
    held = held_bytes(planned.paths, below=not planned.one_file_system)
    if held is not None:
        known = 0 if planned.parent is None else planned.parent.totals.content_bytes
        if not refuses(max(0, held - known), usable):
            return None
    counter = Counter()
    if not _count_ahead(scanner, counter, progress):
        if _holds_little(planned, usable, progress):
            return None
        counter = _count(again(), progress)
    if not refuses(counter.upper_bytes, usable):
        return Estimate(0, counter.upper_bytes)
    shares = Sampler(repo).shares(counter.strider.places(), progress)
    estimate = Estimate(lower_estimate_bytes(counter.distinct_bytes, shares), counter.upper_bytes)
    log.info(
        "preflight.estimated",
        extra={"lower_bytes": estimate.lower_bytes, "upper_bytes": estimate.upper_bytes, "usable_bytes": usable},
    )
    if refuses(estimate.lower_bytes, usable):
        _require_recoverable(repo, estimate.lower_bytes, usable)
    return estimate


def usable_now_bytes(repo: Repository) -> int:
    """What a large write may take: what is available, without what the reserve lacks and the buffer."""
    room = repo.space.room()
    return usable_bytes(room.available_bytes - repo.space.reserve().missing_bytes, room.capacity_bytes)


def _holds_little(planned: Planned, usable: int, progress: Progress) -> bool:
    """Whether everything would fit as it is, by its sizes alone."""
    return sizes_fit(
        planned.paths,
        lambda nbytes: not refuses(nbytes, usable),
        left_out=planned.left_out,
        one_file_system=planned.one_file_system,
        pulse=lambda: progress.advance(0, 0),
    )


def _count_ahead(scanner: Scanner, counter: Counter, progress: Progress) -> bool:
    """Count what `scanner` finds while all of it can be kept; whether that was everything. It tells it again then."""
    told: deque[Event] = deque()
    held: list[Directory] = []
    try:
        for event in _events(scanner, progress):
            told.append(event)
            if isinstance(event, FileFound):
                directory = event.task.directory
                if not held or held[-1] is not directory:
                    held.append(directory.hold())
                counter.add(directory.path_of(event.name), event.task.size_bytes)
            if len(told) >= AHEAD_EVENTS or len(held) >= AHEAD_DIRECTORIES:
                return False
        return True
    finally:
        scanner.put_back(told, held)


def _count(scanner: Scanner, progress: Progress) -> Counter:
    counter = Counter()
    try:
        for event in _events(scanner, progress):
            if isinstance(event, FileFound):
                counter.add(event.task.directory.path_of(event.name), event.task.size_bytes)
    finally:
        scanner.close()
    return counter


def _events(scanner: Scanner, progress: Progress) -> Iterator[Event]:
    steps = 0
    while scanner.step():
        while scanner.events:
            yield scanner.events.popleft()
        steps += 1
        if steps % PULSE_STEPS == 0:
            progress.advance(0, 0)


class Sampler:
    """Looks at places in files: which share of the bytes there would have to be stored."""

    def __init__(self, repo: Repository) -> None:
        self._store = repo.store
        self._chunker = Chunker(repo.config.chunker)
        self._codec = Codec(repo.config.id_key, repo.config.seed)

    def shares(self, places: Sequence[Place], progress: Progress) -> list[float]:
        """For each place that could be read: what would be stored, as a share of the bytes looked at there."""
        found: list[float] = []
        for place in places:
            progress.advance(0, 0)
            try:
                share = self._share(place)
            except SourceError:
                continue  # it will be told when it is stored
            if share is not None:
                found.append(share)
        return found

    def _share(self, place: Place) -> float | None:
        pieces = self._pieces(place)
        total = sum(len(piece) for piece in pieces)
        if not total:
            return None
        data = [piece for piece in pieces if not is_zero(piece)]
        ids = [self._codec.id_of(RecordKind.CHUNK, piece) for piece in data]
        stored = sum(
            min(len(piece), HEADER_BYTES + len(self._codec.compress(piece).buffer))
            for piece, known in zip(data, self._store.locate(ids), strict=True)
            if known is None
        )
        return stored / total

    def _pieces(self, place: Place) -> list[memoryview]:
        """The chunks around a place, as storing the whole file would cut them."""
        with _opened(place.item) as file:
            size = file.stat.st_size
            start = max(0, min(place.offset - WINDOW_BYTES // 2, size - WINDOW_BYTES))
            start = 0 if start < WINDOW_BYTES // 2 else start
            window = memoryview(bytearray(min(WINDOW_BYTES, size - start)))
            window = window[: file.read_into(window, start)]
        final = start + len(window) >= size
        pieces: list[memoryview] = []
        at = 0
        for length in self._chunker.lengths(window, final=final):
            pieces.append(window[at : at + length])
            at += length
        return pieces if not start else pieces[UNSURE_PIECES:]


# --- what would help ---------------------------------------------------------------------------------------------


def _require_recoverable(repo: Repository, needed_bytes: int, usable: int) -> None:
    """Raises NoSpaceError unless recovery would free enough while the write goes on."""
    try:
        reachable = usable + repo.reclaimable_bytes()
        settings = repo.recovery.settings
        if settings.auto_delete and needed_bytes > reachable:
            order = _thinning_order(repo, settings)
            slots = {slot.snapshot_id: slot for slot in repo.listed()}
            reachable = usable + repo.reclaimable_bytes([slots[one] for one in order])
    except DamagedError:
        reachable = usable  # a collection would stop there as well
    if needed_bytes > reachable:
        raise NoSpaceError(shortage(repo, needed_bytes, reachable), needed_bytes)


def _thinning_order(repo: Repository, settings: RecoverySettings) -> list[SnapshotId]:
    """What recovery might delete, in one of the orders in which it might."""
    kept = [
        Kept(slot.snapshot_id, slot.source, slot.time_ns, slot.pinned or slot.kind is SnapshotKind.NAMED)
        for slot in repo.listed()
    ]
    return thinning_order(
        kept,
        min_snapshots=settings.min_snapshots,
        exponent=settings.deletion_exponent,
        rng=random.Random(0),
    )


def shortage(repo: Repository, needed_bytes: int, available_bytes: int) -> str:
    """The sentence for a user whose write needs more than is available (what is garbage counted as that)."""
    where = os.fsdecode(mountpoint_of(os.fsencode(repo.path)))
    remedy = _remedy(repo, needed_bytes - available_bytes)
    return shortage_text(available_bytes, needed_bytes, where, remedy, str(repo.path))


def gave_up(repo: Repository, stored_bytes: int) -> str:
    """The sentence for a user whose write did not fit in the end; its room is given back."""
    where = os.fsdecode(mountpoint_of(os.fsencode(repo.path)))
    available = repo.space.room().available_bytes
    return gave_up_text(stored_bytes, available, where, any_spare=bool(_spare(repo)), repo=str(repo.path))


def _remedy(repo: Repository, short_bytes: int) -> Remedy:
    """The oldest snapshots whose deletion would free as much."""
    spare = _spare(repo)
    until_s = time.monotonic() + LOOK_CLOSER_S
    try:
        repo.collector.look_closer(lambda: time.monotonic() > until_s)
        garbage = repo.reclaimable_bytes()
        plan = repo.collector.plan_thinning([slot.snapshot_id for slot in spare], garbage + short_bytes)
        if plan is not None:
            names = {slot.snapshot_id: slot.name for slot in spare}
            return Remedy(tuple(names[one] for one in plan.snapshots), plan.reclaimable_bytes - garbage)
        return Remedy((), repo.reclaimable_bytes(spare) - garbage)
    except DamagedError:
        return Remedy()


def _spare(repo: Repository) -> list[Slot]:
    """Snapshots that a user may want to give up: the oldest first, named ones last. Of each source the newest stays,
    and what is pinned."""
    listed = repo.listed()
    newest: dict[str, Slot] = {slot.source: slot for slot in listed}
    spare = [slot for slot in listed if not slot.pinned and newest[slot.source] is not slot]
    return sorted(spare, key=lambda slot: slot.kind is SnapshotKind.NAMED)
