"""The catalog: which snapshots exist, and the head of `live`.

Owner of the rules that an id is given once, and that a slot holds one snapshot at a time. How slots lie on the disk,
and why none is lost on the way, is `slotfile.py`.
"""

import heapq
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from repository.errors import NoSpaceError, NoSuchSnapshotError
from repository.format.catalog import FREE_SLOT, HEAD_SLOT, Head, Slot, SlotState
from repository.ids import FileId, SnapshotId
from repository.slotfile import CATALOG_FILE, SlotFault, SlotFile, Stop
from repository.storage.volume import Volume

SLOTS_AT_INIT: Final = 4096
"""8 MiB: hourly snapshots for a week, daily for a quarter and weekly for decades, with room for named ones."""
SLOTS_GROWN: Final = 2048
"""Slots added at once (4 MiB) when the last is taken."""
SLOTS_MAX: Final = 1 << 20
"""2 GiB of catalog: far beyond what anybody lists, and small enough to read."""


class Catalog:
    """The slots of one repository. Thread safe.

    Raises ReadOnlyError for changes when opened for reading, or after a failed sync.
    """

    def __init__(self, file: SlotFile) -> None:
        self._file: Final = file
        self._lock: Final = threading.RLock()
        self._place: dict[SnapshotId, int] = {}
        self._free: list[int] = []
        self._next_id = 1
        self._serial = 0
        self._sorted: list[Slot] | None = None
        self._sort_out()

    @classmethod
    def create(cls, volume: Volume, seed: int, head: Head | None, slots: int = SLOTS_AT_INIT) -> None:
        """Make the file: every slot written in both copies, durable. The directory entry is the caller's to sync.

        `head` None leaves the head lost, for a salvage.
        """
        SlotFile.create(volume, seed, head, slots)

    @classmethod
    def open(cls, volume: Volume, seed: int, *, writable: bool, salvage: bool = False) -> "Catalog":
        """Read all slots; a writable one mends copies that lag behind or are torn.

        Raises DamagedError when the head's copies are both gone; with `salvage` an empty head stands in for it, as
        lost as any slot in `faults`, until `replace_lost`.
        """
        file = SlotFile(volume.open(CATALOG_FILE, writable=writable), seed, writable=writable)
        try:
            file.read(salvage=salvage)
        except BaseException:
            file.close()
            raise
        return cls(file)

    def heed(self, stop: Stop) -> None:
        """From now on `stop` is asked before each change, and told of a failed sync."""
        self._file.stop = stop

    def close(self) -> None:
        """Make mirrors durable and let go of the file."""
        with self._lock:
            self._file.close()

    # --- reading -----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Look again at the file; what another process changed appears. Raises DamagedError as `open`."""
        with self._lock:
            self._file.read(salvage=False)
            self._sort_out()

    def _sort_out(self) -> None:
        self._place, self._free = {}, []  # indexes ascend, so the second is a heap
        highest = 0
        for index, slot in self._file.slots():
            if slot is FREE_SLOT:  # never used, as most are
                self._free.append(index)
                continue
            highest = max(highest, slot.snapshot_id)
            if slot.state == SlotState.FREE:
                self._free.append(index)
            else:
                self._place[slot.snapshot_id] = index
        self._next_id = highest + 1
        self._serial += 1
        self._sorted = None

    @property
    def faults(self) -> tuple[SlotFault, ...]:
        """What was wrong with the file when it was last read."""
        with self._lock:
            return tuple(self._file.faults)

    @property
    def has_lost_slots(self) -> bool:
        """Whether a slot is gone that may have held a snapshot: nothing may be freed then."""
        with self._lock:
            return any(fault.lost for fault in self._file.faults)

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
            return self._file.head()

    def slots(self) -> list[Slot]:
        """Everything that is not free (live, provisional, trash), by time, then id."""
        with self._lock:
            if self._sorted is None:
                found = [self._file.slot(index) for index in self._place.values()]
                self._sorted = sorted(found, key=lambda slot: (slot.time_ns, slot.snapshot_id))
            return self._sorted.copy()

    def get(self, snapshot_id: SnapshotId) -> Slot:
        """The slot of a snapshot. Raises NoSuchSnapshotError."""
        with self._lock:
            return self._file.slot(self.place(snapshot_id))

    def place(self, snapshot_id: SnapshotId) -> int:
        """The index of a snapshot's slot. Raises NoSuchSnapshotError."""
        with self._lock:
            index = self._place.get(snapshot_id)
            if index is None:
                raise NoSuchSnapshotError(f"There is no snapshot with the id {snapshot_id:016x}.")
            return index

    def next_file_id(self) -> FileId:
        """The first file id that neither `live` nor any snapshot, deleted ones included, has given away."""
        used = [slot.next_file_id for slot in self.slots()]
        return FileId(max([self.head().next_file_id, *used]))

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
            updates: dict[int, Slot | Head] = {self.place(slot.snapshot_id): slot for slot in slots}
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
            for index in self._file.give_up_lost(head):
                heapq.heappush(self._free, index)
            self._serial += 1
            return [self.add(slot) for slot in found]

    def _sized(self, head: Head) -> Head:
        return replace(head, slots=self.head().slots)

    def free(self, slot: Slot) -> Slot:
        """What a slot becomes when its snapshot is collected: only the id stays, so that it is never used again."""
        return replace(FREE_SLOT, snapshot_id=slot.snapshot_id)

    def _write(self, updates: Mapping[int, Slot | Head]) -> None:
        self._file.write(updates)
        self._serial += 1

    def _grow(self) -> None:
        self._file.require_writable()
        slots = self._file.head().slots
        more = min(SLOTS_GROWN, SLOTS_MAX - slots)
        if more <= 0:
            raise NoSpaceError("The catalog is full; delete snapshots (ballast snapshot list REPO).")
        try:
            added = self._file.grow(slots + more)
        except NoSpaceError as error:
            raise NoSpaceError(
                "The catalog has no free slot and cannot grow; delete a snapshot (ballast snapshot list REPO).",
                error.needed_bytes,
            ) from error
        self._serial += 1
        for index in added:
            heapq.heappush(self._free, index)
