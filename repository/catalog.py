"""The catalog: which snapshots exist, and the head of `live`, in slots overwritten in place.

Owner of the invariant *at every instant at least one durable copy of every slot is whole and tells its last
acknowledged state*. An update writes the copy whose turn it is, makes it durable, and only then brings the other copy
up to date; before a page is written over, mirrors in its sister page that may still be in flight are made durable. So
both copies tell the same at rest: rot in one of them loses nothing, and is mended by the next writable open.
"""

import heapq
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from repository.errors import (
    BallastError,
    DamagedError,
    NoSpaceError,
    NoSuchSnapshotError,
    ReadOnlyError,
    SyncFailedError,
    VolumeError,
)
from repository.format.catalog import (
    COPY_BYTES,
    FIRST_SLOT,
    FREE_SLOT,
    GROUP_BYTES,
    HEAD_SLOT,
    SLOTS_PER_GROUP,
    Head,
    Slot,
    SlotState,
    catalog_bytes,
    copy_offset,
    decode_copy,
    encode_copy,
    first_copy,
    state_of,
    verify_copy,
)
from repository.ids import SnapshotId
from repository.storage.volume import FileHandle, Volume

log = logging.getLogger(__name__)

CATALOG_FILE: Final = "catalog"
SLOTS_AT_INIT: Final = 4096
"""8 MiB: hourly snapshots for a week, daily for a quarter and weekly for decades, with room for named ones."""
SLOTS_GROWN: Final = 2048
"""Slots added at once (4 MiB) when the last is taken."""
SLOTS_MAX: Final = 1 << 20
"""2 GiB of catalog: far beyond what anybody lists, and small enough to read."""
READ_TRIES: Final = 3
"""A reader beside a mount may meet a slot in the middle of both its writes; the next look finds it whole."""


class Stop(Protocol):
    """Where it is known that writing is over: a sync that failed anywhere ends it everywhere."""

    def check_writable(self) -> None:
        """Raises ReadOnlyError once that happened."""
        ...

    def fail(self, error: BallastError) -> None:
        """It happened here."""
        ...


@dataclass(frozen=True, slots=True)
class SlotFault:
    """A slot of which one copy (`lost` False) or both (`lost` True) are not what was written."""

    slot: int
    lost: bool
    what: str


@dataclass(slots=True)
class _Held:
    sequence: int
    content: Slot | Head


class Catalog:
    """The slots of one repository, in memory and on disk. Thread safe.

    Raises ReadOnlyError for changes when opened for reading, or after a failed sync.
    """

    def __init__(self, handle: FileHandle, seed: int, *, writable: bool) -> None:
        self._handle = handle
        self._seed = seed
        self._writable = writable
        self._failed = False
        self._lock = threading.RLock()
        self._held: dict[int, _Held] = {}
        self._place: dict[SnapshotId, int] = {}
        self._free: list[int] = []
        self._next_id = 1
        self._unsynced_pages: set[int] = set()
        self._serial = 0
        self._faults: list[SlotFault] = []
        self._salvage = False
        self._sorted: list[Slot] | None = None
        self.stop: Stop | None = None
        """Asked before each change, and told of a failed sync; set where the repository is put together."""

    @classmethod
    def create(cls, volume: Volume, seed: int, head: Head | None, slots: int = SLOTS_AT_INIT) -> None:
        """Make the file: every slot written in both copies, durable. The directory entry is the caller's to sync.

        `head` None leaves the head lost, for a salvage.
        """
        size = catalog_bytes(slots)
        with volume.create(CATALOG_FILE) as handle:
            handle.allocate(0, size)
            handle.pwrite(_fresh_groups(0, slots, seed), 0)
            head_bytes = bytes(COPY_BYTES)
            if head is not None:
                head_bytes = encode_copy(HEAD_SLOT, 1, replace(head, slots=slots), seed)
            handle.pwrite(head_bytes, copy_offset(HEAD_SLOT, 0))
            handle.pwrite(head_bytes, copy_offset(HEAD_SLOT, 1))
            handle.fsync()

    @classmethod
    def open(cls, volume: Volume, seed: int, *, writable: bool, salvage: bool = False) -> "Catalog":
        """Read all slots; a writable one mends copies that lag behind or are torn.

        Raises DamagedError when the head's copies are both gone; with `salvage` an empty head stands in for it, as
        lost as any slot in `faults`, until `replace_lost`.
        """
        catalog = cls(volume.open(CATALOG_FILE, writable=writable), seed, writable=writable)
        catalog._salvage = salvage
        catalog.reload()
        return catalog

    def close(self) -> None:
        """Make mirrors durable and let go of the file."""
        with self._lock:
            if self._unsynced_pages and not self._failed:
                self._sync()
            self._handle.close()

    # --- reading -----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Look again at the file; what another process changed appears."""
        with self._lock:
            size = self._handle.size()
            data = memoryview(self._handle.pread(size, 0))
            available = -(-size // GROUP_BYTES) * SLOTS_PER_GROUP
            self._held, self._place, self._free, self._faults = {}, {}, [], []
            weak: list[int] = []
            head = self._load(data, HEAD_SLOT, weak)
            if not isinstance(head, Head) and self._salvage:
                head = Head(slots=available)
                self._held[HEAD_SLOT] = _Held(0, head)
            if not isinstance(head, Head):
                raise DamagedError(
                    "Both copies of the catalog's head are damaged; 'ballast check' tells what is left, "
                    "'ballast rebuild' finds the snapshots again."
                )
            highest = 0
            for index in range(FIRST_SLOT, min(head.slots, available)):
                content = self._load(data, index, weak)
                if not isinstance(content, Slot):
                    continue
                highest = max(highest, content.snapshot_id)
                if content.state == SlotState.FREE:
                    self._free.append(index)
                else:
                    self._place[content.snapshot_id] = index
            if head.slots > available:
                what = f"the file ends at slot {available}, but has {head.slots}"
                self._faults += [SlotFault(index, True, what) for index in range(available, head.slots)]
            self._next_id = highest + 1
            self._serial += 1
            self._sorted = None
            if self._writable and weak:
                self._mend(weak)

    def _load(self, data: memoryview, index: int, weak: list[int]) -> Slot | Head | None:
        copies = [data[offset : offset + COPY_BYTES] for offset in (copy_offset(index, 0), copy_offset(index, 1))]
        if copies[0] == copies[1]:
            sequences = [verify_copy(copies[0], index, self._seed)] * 2
        else:
            sequences = [verify_copy(copy, index, self._seed) for copy in copies]
        if sequences[0] is None and sequences[1] is None:
            return self._load_again(index)
        if sequences[0] != sequences[1]:
            weak.append(index)
            torn = [f"copy {'AB'[copy]} is torn" for copy in (0, 1) if sequences[copy] is None]
            self._faults.append(SlotFault(index, False, torn[0] if torn else "one copy lags behind"))
        newest = 0 if (sequences[0] or 0) >= (sequences[1] or 0) and sequences[0] is not None else 1
        return self._keep(index, copies[newest])

    def _load_again(self, index: int) -> Slot | Head | None:
        for _ in range(READ_TRIES):
            for copy in (0, 1):
                data = self._handle.pread(COPY_BYTES, copy_offset(index, copy))
                if verify_copy(data, index, self._seed) is not None:
                    return self._keep(index, memoryview(data))
        self._faults.append(SlotFault(index, True, "both copies are damaged"))
        return None

    def _keep(self, index: int, data: memoryview) -> Slot | Head | None:
        if state_of(data) != SlotState.FREE:
            try:
                sequence, content = decode_copy(data)
            except DamagedError as error:
                self._faults.append(SlotFault(index, True, str(error)))
                return None
        else:
            sequence, content = decode_copy(data)
        self._held[index] = _Held(sequence, content)
        return content

    def _mend(self, weak: Iterable[int]) -> None:
        for index in weak:
            held = self._held[index]
            data = encode_copy(index, held.sequence, held.content, self._seed)
            for copy in (0, 1):
                if (
                    verify_copy(self._handle.pread(COPY_BYTES, copy_offset(index, copy)), index, self._seed)
                    != held.sequence
                ):
                    self._handle.pwrite(data, copy_offset(index, copy))
            log.info("catalog.mended", extra={"slot": index})
        self._sync()

    @property
    def faults(self) -> tuple[SlotFault, ...]:
        """What was wrong with the file when it was last read."""
        with self._lock:
            return tuple(self._faults)

    @property
    def has_lost_slots(self) -> bool:
        """Whether a slot is gone that may have held a snapshot: nothing may be freed then."""
        with self._lock:
            return any(fault.lost for fault in self._faults)

    @property
    def serial(self) -> int:
        """Changes with every update of this object: who remembered it knows that nothing happened since."""
        with self._lock:
            return self._serial

    @property
    def free_slots(self) -> int:
        """Slots that new snapshots can take without growing the file."""
        with self._lock:
            return len(self._free)

    def head(self) -> Head:
        """The head as last made durable."""
        with self._lock:
            content = self._held[HEAD_SLOT].content
            assert isinstance(content, Head)
            return content

    def slots(self) -> list[Slot]:
        """Everything that is not free (live, provisional, trash), by time, then id."""
        with self._lock:
            if self._sorted is None:
                contents = [self._held[index].content for index in self._place.values()]
                found = [content for content in contents if isinstance(content, Slot)]
                self._sorted = sorted(found, key=lambda slot: (slot.time_ns, slot.snapshot_id))
            return self._sorted.copy()

    def get(self, snapshot_id: SnapshotId) -> Slot:
        """The slot of a snapshot. Raises NoSuchSnapshotError."""
        with self._lock:
            index = self._place.get(snapshot_id)
            content = None if index is None else self._held[index].content
            if not isinstance(content, Slot):
                raise NoSuchSnapshotError(f"There is no snapshot with the id {snapshot_id:016x}.")
            return content

    def place(self, snapshot_id: SnapshotId) -> int:
        """The index of a snapshot's slot. Raises NoSuchSnapshotError."""
        with self._lock:
            self.get(snapshot_id)
            return self._place[snapshot_id]

    # --- changing ----------------------------------------------------------------------------------------------------

    def add(self, slot: Slot, *, head: Head | None = None, instead_of: SnapshotId | None = None) -> Slot:
        """Publish: `slot` gets a new id and a free slot, or overwrites the one of `instead_of`. Durable on return.

        `head` goes with it in the same step (a crash may leave either without the other). Raises NoSpaceError when
        no slot is free and the file cannot grow.
        """
        with self._lock:
            if instead_of is not None and instead_of in self._place:
                index = self._place[instead_of]
            else:
                instead_of = None
                if not self._free:
                    self._grow()
                index = self._free[0]
            slot = replace(slot, snapshot_id=SnapshotId(self._next_id))
            self._write({index: slot} if head is None else {index: slot, HEAD_SLOT: self._sized(head)})
            if instead_of is None:
                heapq.heappop(self._free)
            else:
                del self._place[instead_of]
            self._place[slot.snapshot_id] = index
            self._next_id += 1
            self._sorted = None
            return slot

    def ensure_free_slot(self) -> None:
        """Have room for one more snapshot, growing the file where it must. Raises NoSpaceError as `add`."""
        with self._lock:
            if not self._free:
                self._grow()

    def change(self, slots: Iterable[Slot], *, head: Head | None = None) -> None:
        """Overwrite the slots of these snapshots (FREE gives a slot back). Durable on return.

        Raises NoSuchSnapshotError before anything is written.
        """
        with self._lock:
            updates: dict[int, Slot | Head] = {}
            for slot in slots:
                index = self._place.get(slot.snapshot_id)
                if index is None:
                    raise NoSuchSnapshotError(f"There is no snapshot with the id {slot.snapshot_id:016x}.")
                updates[index] = slot
            if head is not None:
                updates[HEAD_SLOT] = self._sized(head)
            self._write(updates)
            for index, content in updates.items():
                if isinstance(content, Slot) and content.state == SlotState.FREE:
                    del self._place[content.snapshot_id]
                    heapq.heappush(self._free, index)
            self._sorted = None

    def set_head(self, head: Head) -> None:
        """Overwrite the head. Durable on return."""
        self.change((), head=head)

    def replace_lost(self, found: Iterable[Slot], head: Head | None) -> list[Slot]:
        """Overwrite slots that are lost: with `found`, as far as they go, the rest with free ones; and the head.

        More of `found` than lost slots take free ones. Durable on return; returns `found` with their new ids.
        """
        with self._lock:
            lost = [fault.slot for fault in self._faults if fault.lost and fault.slot != HEAD_SLOT]
            for index in lost:
                self._held[index] = _Held(0, FREE_SLOT)
                heapq.heappush(self._free, index)
            self._write(dict.fromkeys(lost, FREE_SLOT))
            if head is not None:
                self._write({HEAD_SLOT: replace(head, slots=self.head().slots)})
            self._faults = [fault for fault in self._faults if not fault.lost]
            return [self.add(slot) for slot in found]

    def _sized(self, head: Head) -> Head:
        return replace(head, slots=self.head().slots)

    def free(self, slot: Slot) -> Slot:
        """What a slot becomes when its snapshot is collected: only the id stays, so that it is never used again."""
        return replace(FREE_SLOT, snapshot_id=slot.snapshot_id)

    def _write(self, updates: Mapping[int, Slot | Head]) -> None:
        self._require_writable()
        copies: list[tuple[int, int, bytes]] = []
        for index, content in updates.items():
            sequence = self._held[index].sequence + 1
            copies.append((index, sequence, encode_copy(index, sequence, content, self._seed)))
        first_pages = {_page(index, first_copy(sequence)) for index, sequence, _ in copies}
        if any(page ^ 1 in self._unsynced_pages for page in first_pages):
            self._sync()
        for index, sequence, data in copies:
            self._handle.pwrite(data, copy_offset(index, first_copy(sequence)))
        self._sync()
        for index, sequence, data in copies:
            self._held[index] = _Held(sequence, updates[index])
            self._mirror(index, 1 - first_copy(sequence), data)
        self._serial += 1

    def _mirror(self, index: int, copy: int, data: bytes) -> None:
        try:
            self._handle.pwrite(data, copy_offset(index, copy))
        except (VolumeError, NoSpaceError) as error:
            log.warning("catalog.mirror_failed", extra={"slot": index, "error": str(error)})
            return
        self._unsynced_pages.add(_page(index, copy))

    def _sync(self) -> None:
        try:
            self._handle.fdatasync()
        except SyncFailedError as error:
            self._fail(error)
            raise
        self._unsynced_pages.clear()

    def _require_writable(self) -> None:
        if not self._writable:
            raise ReadOnlyError("The repository was opened for reading; its catalog cannot change.")
        if self._failed:
            raise ReadOnlyError("Writing the catalog failed before; mount the repository again.")
        if self.stop is not None:
            self.stop.check_writable()

    def _fail(self, error: SyncFailedError) -> None:
        self._failed = True
        if self.stop is not None:
            self.stop.fail(error)

    def _grow(self) -> None:
        """More slots, counted only when all of them are durable: a crash in between leaves bytes nobody looks at."""
        self._require_writable()
        head = self.head()
        more = min(SLOTS_GROWN, SLOTS_MAX - head.slots)
        if more <= 0:
            raise NoSpaceError("The catalog is full; delete snapshots (ballast snapshot list REPO).")
        start, end = catalog_bytes(head.slots), catalog_bytes(head.slots + more)
        try:
            self._handle.allocate(start, end - start)
        except NoSpaceError as error:
            raise NoSpaceError(
                "The catalog has no free slot and cannot grow; delete a snapshot (ballast snapshot list REPO).",
                error.needed_bytes,
            ) from error
        except SyncFailedError as error:
            self._fail(error)
            raise
        self._handle.pwrite(_fresh_groups(head.slots, head.slots + more, self._seed), start)
        try:
            self._handle.fsync()
        except SyncFailedError as error:
            self._fail(error)
            raise
        self._write({HEAD_SLOT: replace(head, slots=head.slots + more)})
        for index in range(head.slots, head.slots + more):
            self._held[index] = _Held(0, FREE_SLOT)
            heapq.heappush(self._free, index)


def _page(index: int, copy: int) -> int:
    """Number of the page that holds a copy; the sister page of the group is `page ^ 1`."""
    return copy_offset(index, copy) // (GROUP_BYTES // 2)


def _fresh_groups(start: int, end: int, seed: int) -> bytes:
    """The bytes of slots `start` up to `end` (multiples of a group), all free and never used."""
    groups: list[bytes] = []
    for first in range(start, end, SLOTS_PER_GROUP):
        page = b"".join([encode_copy(index, 0, FREE_SLOT, seed) for index in range(first, first + SLOTS_PER_GROUP)])
        groups += (page, page)
    return b"".join(groups)
