"""The catalog's file: slots in two copies each, overwritten in place.

Owner of the invariant *at every instant at least one durable copy of every slot is whole and tells its last
acknowledged state*. An update writes the copy whose turn it is, makes it durable, and only then brings the other copy
up to date; before a page is written over, mirrors in its sister page that may still be in flight are made durable. So
both copies tell the same at rest: rot in one of them loses nothing, and is mended by the next writable open.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from repository.errors import (
    BallastError,
    DamagedError,
    NoSpaceError,
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
    catalog_bytes,
    copy_offset,
    decode_copy,
    encode_copy,
    first_copy,
    untouched_slots,
    verify_copy,
)
from repository.storage.volume import FileHandle, Volume

log = logging.getLogger(__name__)

CATALOG_FILE: Final = "catalog"
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


class _Held(NamedTuple):
    sequence: int
    content: Slot | Head


_NEVER_USED: Final = _Held(0, FREE_SLOT)
"""As `init` and growing make slots; a new catalog has thousands of them."""


@dataclass(slots=True)
class _Reading:
    """One look at the whole file. `weak`: slots of which one copy is to be mended."""

    data: memoryview
    held: dict[int, _Held] = field(default_factory=dict)
    faults: list[SlotFault] = field(default_factory=list)
    weak: list[int] = field(default_factory=list)


class SlotFile:
    """All slots, on disk and as last made durable. Not thread safe: whoever uses it holds the catalog's lock.

    Raises ReadOnlyError for changes when opened for reading, or after a failed sync.
    """

    def __init__(self, handle: FileHandle, seed: int, *, writable: bool) -> None:
        self._handle: Final = handle
        self._seed: Final = seed
        self._writable: Final = writable
        self._failed = False
        self._held: dict[int, _Held] = {}
        self._unsynced_pages: set[int] = set()
        self.faults: list[SlotFault] = []
        """What was wrong with the file when it was last read."""
        self.stop: Stop | None = None

    @staticmethod
    def create(volume: Volume, seed: int, head: Head | None, slots: int) -> None:
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

    def close(self) -> None:
        """Make mirrors durable and let go of the file."""
        if self._unsynced_pages and not self._failed:
            self._sync()
        self._handle.close()

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, *, salvage: bool) -> None:
        """Read all slots; a writable file's copies that lag behind or are torn are mended.

        Raises DamagedError when the head's copies are both gone, and what was read before stands; with `salvage` an
        empty head stands in for it, as lost as any slot in `faults`.
        """
        size = self._handle.size()
        reading = _Reading(memoryview(self._handle.pread(size, 0)))
        available = -(-size // GROUP_BYTES) * SLOTS_PER_GROUP
        self._load(reading, HEAD_SLOT)
        head = reading.held[HEAD_SLOT].content if HEAD_SLOT in reading.held else None
        if not isinstance(head, Head):
            if not salvage:
                raise DamagedError(
                    "Both copies of the catalog's head are damaged; 'ballast check' tells what is left, "
                    "'ballast rebuild' finds the snapshots again."
                )
            head = Head(slots=available)
            reading.held[HEAD_SLOT] = _Held(0, head)
        untouched = set(untouched_slots(reading.data, self._seed))
        for index in range(FIRST_SLOT, min(head.slots, available)):
            if index in untouched:
                reading.held[index] = _NEVER_USED
            else:
                self._load(reading, index)
        if head.slots > available:
            what = f"the file ends at slot {available}, but has {head.slots}"
            reading.faults += [SlotFault(index, True, what) for index in range(available, head.slots)]
        self._held, self.faults = reading.held, reading.faults
        if self._writable and reading.weak:
            self._mend(reading.weak)

    def _load(self, reading: _Reading, index: int) -> None:
        offsets = (copy_offset(index, 0), copy_offset(index, 1))
        copies = [reading.data[offset : offset + COPY_BYTES] for offset in offsets]
        if copies[0] == copies[1]:
            sequences = [verify_copy(copies[0], index, self._seed)] * 2
        else:
            sequences = [verify_copy(copy, index, self._seed) for copy in copies]
        if sequences[0] is None and sequences[1] is None:
            self._load_again(reading, index)
            return
        if sequences[0] != sequences[1]:
            reading.weak.append(index)
            torn = [f"copy {'AB'[copy]} is torn" for copy in (0, 1) if sequences[copy] is None]
            reading.faults.append(SlotFault(index, False, torn[0] if torn else "one copy lags behind"))
        newest = 0 if (sequences[0] or 0) >= (sequences[1] or 0) and sequences[0] is not None else 1
        _keep(reading, index, copies[newest])

    def _load_again(self, reading: _Reading, index: int) -> None:
        for _ in range(READ_TRIES):
            for copy in (0, 1):
                data = self._handle.pread(COPY_BYTES, copy_offset(index, copy))
                if verify_copy(data, index, self._seed) is not None:
                    _keep(reading, index, memoryview(data))
                    return
        reading.faults.append(SlotFault(index, True, "both copies are damaged"))

    def _mend(self, weak: Iterable[int]) -> None:
        for index in weak:
            held = self._held[index]
            data = encode_copy(index, held.sequence, held.content, self._seed)
            for offset in (copy_offset(index, 0), copy_offset(index, 1)):
                if verify_copy(self._handle.pread(COPY_BYTES, offset), index, self._seed) != held.sequence:
                    self._handle.pwrite(data, offset)
            log.info("catalog.mended", extra={"slot": index})
        self._sync()

    def head(self) -> Head:
        """The head as last made durable."""
        content = self._held[HEAD_SLOT].content
        assert isinstance(content, Head)
        return content

    def slot(self, index: int) -> Slot:
        """One slot as last made durable."""
        content = self._held[index].content
        assert isinstance(content, Slot)
        return content

    def slots(self) -> Iterator[tuple[int, Slot]]:
        """Every slot that is not lost, free ones included, by index."""
        for index, held in self._held.items():
            if isinstance(held.content, Slot):
                yield index, held.content

    # --- changing ----------------------------------------------------------------------------------------------------

    def write(self, updates: Mapping[int, Slot | Head]) -> None:
        """Overwrite slots, all of them durable on return."""
        self.require_writable()
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

    def _mirror(self, index: int, copy: int, data: bytes) -> None:
        try:
            self._handle.pwrite(data, copy_offset(index, copy))
        except (VolumeError, NoSpaceError) as error:
            log.warning("catalog.mirror_failed", extra={"slot": index, "error": str(error)})
            return
        self._unsynced_pages.add(_page(index, copy))

    def give_up_lost(self, head: Head | None) -> list[int]:
        """Slots that were lost become free ones (which), a lost head becomes `head`. Durable on return."""
        lost = [fault.slot for fault in self.faults if fault.lost and fault.slot != HEAD_SLOT]
        for index in lost:
            self._held[index] = _NEVER_USED
        self.write(dict.fromkeys(lost, FREE_SLOT))
        if head is not None:
            self.write({HEAD_SLOT: replace(head, slots=self.head().slots)})
        self.faults = [fault for fault in self.faults if not fault.lost]
        return lost

    def grow(self, slots: int) -> range:
        """Have `slots` of them; the new ones, all free. Raises NoSpaceError.

        They are counted only when all of them are durable: a crash in between leaves bytes that nobody looks at.
        """
        self.require_writable()
        head = self.head()
        start, end = catalog_bytes(head.slots), catalog_bytes(slots)
        try:
            self._handle.allocate(start, end - start)
            self._handle.pwrite(_fresh_groups(head.slots, slots, self._seed), start)
            self._handle.fsync()
        except SyncFailedError as error:
            self._fail(error)
            raise
        self.write({HEAD_SLOT: replace(head, slots=slots)})
        added = range(head.slots, slots)
        for index in added:
            self._held[index] = _NEVER_USED
        return added

    def require_writable(self) -> None:
        """Raises ReadOnlyError where nothing may be changed."""
        if not self._writable:
            raise ReadOnlyError("The repository was opened for reading; its catalog cannot change.")
        if self._failed:
            raise ReadOnlyError("Writing the catalog failed before; mount the repository again.")
        if self.stop is not None:
            self.stop.check_writable()

    def _sync(self) -> None:
        try:
            self._handle.fdatasync()
        except SyncFailedError as error:
            self._fail(error)
            raise
        self._unsynced_pages.clear()

    def _fail(self, error: SyncFailedError) -> None:
        self._failed = True
        if self.stop is not None:
            self.stop.fail(error)


def _keep(reading: _Reading, index: int, data: memoryview) -> None:
    try:
        sequence, content = decode_copy(data)
    except DamagedError as error:
        reading.faults.append(SlotFault(index, True, str(error)))
        return
    reading.held[index] = _Held(sequence, content)


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
