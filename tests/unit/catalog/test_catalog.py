"""The catalog and its file: two copies a slot, overwritten in place, whatever tears them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from repository.catalog import Catalog
from repository.errors import DamagedError, NoSuchSnapshotError, ReadOnlyError, SyncFailedError
from repository.format.catalog import (
    COPY_BYTES,
    FIRST_SLOT,
    HEAD_SLOT,
    Head,
    Slot,
    SlotState,
    SnapshotKind,
    copy_offset,
)
from repository.format.journal import JournalMark
from repository.ids import RecordId, RecordNumber, SnapshotId
from repository.slotfile import CATALOG_FILE
from repository.storage.calls import Calls
from repository.storage.volume import Volume

SEED = 77
SLOTS = 16


def slot(name: str, time_ns: int = 1) -> Slot:
    return Slot(
        SnapshotId(0),
        SlotState.LIVE,
        name,
        time_ns,
        "host:/home",
        SnapshotKind.NAMED,
        RecordId(name.encode().ljust(32, b"m")[:32]),
        RecordNumber(5),
    )


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    found = Volume(tmp_path)
    Catalog.create(found, SEED, Head(), SLOTS)
    return found


def reopen(volume: Volume, *, writable: bool = True) -> Catalog:
    return Catalog.open(volume, SEED, writable=writable)


def place_of(catalog: Catalog, wanted: Slot) -> int:
    return catalog.place(wanted.snapshot_id)


def smash(volume: Volume, index: int, copy: int) -> None:
    with volume.open(CATALOG_FILE, writable=True) as handle:
        handle.pwrite(os.urandom(COPY_BYTES), copy_offset(index, copy))


def test_what_was_published_is_read_back(volume: Volume) -> None:
    catalog = reopen(volume)
    first = catalog.add(slot("a", 20))
    second = catalog.add(slot("b", 10), head=replace(catalog.head(), commit_serial=3, journal=JournalMark(9, 1234)))
    catalog.close()
    again = reopen(volume, writable=False)
    assert again.slots() == [second, first]
    assert again.head().commit_serial == 3
    assert again.head().journal == (9, 1234)
    assert again.faults == ()


def test_a_freed_slot_is_taken_again_but_never_its_id(volume: Volume) -> None:
    catalog = reopen(volume)
    first = catalog.add(slot("a"))
    index = place_of(catalog, first)
    catalog.change([catalog.free(first)])
    with pytest.raises(NoSuchSnapshotError):
        catalog.get(first.snapshot_id)
    catalog.close()
    catalog = reopen(volume)
    assert catalog.slots() == []
    second = catalog.add(slot("b"))
    assert place_of(catalog, second) == index
    assert second.snapshot_id > first.snapshot_id


def test_a_change_of_an_unknown_snapshot_writes_nothing(volume: Volume) -> None:
    catalog = reopen(volume)
    known = catalog.add(slot("a"))
    with pytest.raises(NoSuchSnapshotError):
        catalog.change([replace(known, pinned=True), replace(known, snapshot_id=SnapshotId(99))])
    assert catalog.get(known.snapshot_id) == known


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_loses_nothing_and_is_mended(volume: Volume, copy: int) -> None:
    catalog = reopen(volume)
    kept = catalog.add(slot("a"))
    pinned = replace(kept, pinned=True)
    catalog.change([pinned])
    index = place_of(catalog, kept)
    catalog.close()
    smash(volume, index, copy)
    smash(volume, HEAD_SLOT, copy)
    reading = reopen(volume, writable=False)
    assert reading.slots() == [pinned]
    assert [(fault.slot, fault.lost) for fault in reading.faults] == [(HEAD_SLOT, False), (index, False)]
    reopen(volume).close()
    assert reopen(volume, writable=False).faults == ()


def test_both_damaged_copies_are_a_lost_slot(volume: Volume) -> None:
    catalog = reopen(volume)
    lost = catalog.add(slot("a"))
    kept = catalog.add(slot("b"))
    index = place_of(catalog, lost)
    catalog.close()
    smash(volume, index, 0)
    smash(volume, index, 1)
    again = reopen(volume)
    assert again.slots() == [kept]
    assert again.has_lost_slots
    assert [(fault.slot, fault.lost) for fault in again.faults] == [(index, True)]
    fresh = again.add(slot("c"))
    assert place_of(again, fresh) != index, "a lost slot is not written over: rebuild looks there"


def test_a_lost_head_is_told(volume: Volume) -> None:
    smash(volume, HEAD_SLOT, 0)
    smash(volume, HEAD_SLOT, 1)
    with pytest.raises(DamagedError, match="rebuild"):
        reopen(volume)


def test_a_reader_that_cannot_read_the_head_any_more_keeps_what_it_knew(volume: Volume) -> None:
    catalog = reopen(volume)
    known = catalog.add(slot("a"))
    catalog.close()
    reader = reopen(volume, writable=False)
    smash(volume, HEAD_SLOT, 0)
    smash(volume, HEAD_SLOT, 1)
    with pytest.raises(DamagedError, match="rebuild"):
        reader.reload()
    assert reader.slots() == [known] and reader.head().slots == SLOTS


def test_zeros_are_damage_not_free_slots(volume: Volume) -> None:
    with volume.open(CATALOG_FILE, writable=True) as handle:
        handle.pwrite(bytes(COPY_BYTES), copy_offset(FIRST_SLOT, 0))
        handle.pwrite(bytes(COPY_BYTES), copy_offset(FIRST_SLOT, 1))
    assert reopen(volume, writable=False).has_lost_slots


def test_a_copy_of_another_repository_or_slot_is_none(volume: Volume, tmp_path: Path) -> None:
    other_root = tmp_path / "other"
    other_root.mkdir()
    other = Volume(other_root)
    Catalog.create(other, SEED + 1, Head(), SLOTS)
    foreign = (other_root / CATALOG_FILE).read_bytes()
    with volume.open(CATALOG_FILE, writable=True) as handle:
        own = handle.pread(COPY_BYTES, copy_offset(FIRST_SLOT, 0))
        for copy in (0, 1):
            start = copy_offset(FIRST_SLOT, copy)
            handle.pwrite(foreign[start : start + COPY_BYTES], start)
            handle.pwrite(own, copy_offset(FIRST_SLOT + 1, copy))
    lost = [fault.slot for fault in reopen(volume, writable=False).faults if fault.lost]
    assert lost == [FIRST_SLOT, FIRST_SLOT + 1]


def test_the_catalog_grows_and_a_torn_growth_is_no_damage(volume: Volume) -> None:
    catalog = reopen(volume)
    added = [catalog.add(slot(f"s{number}", number)) for number in range(SLOTS - FIRST_SLOT)]
    assert catalog.free_slots == 0
    with volume.open(CATALOG_FILE, writable=True) as handle:
        handle.pwrite(bytes(8192), handle.size())
    added.append(catalog.add(slot("one more", 99)))
    catalog.close()
    again = reopen(volume)
    assert again.faults == ()
    assert again.slots() == added
    assert again.head().slots > SLOTS


def test_a_reader_sees_what_a_writer_changed_after_a_reload(volume: Volume) -> None:
    writer, reader = reopen(volume), reopen(volume, writable=False)
    published = writer.add(slot("a"))
    assert reader.slots() == []
    reader.reload()
    assert reader.slots() == [published]
    with pytest.raises(ReadOnlyError):
        reader.change([published])


class Recorder(Calls):
    """Keeps every write and sync in order; can break the syncs."""

    def __init__(self) -> None:
        self.done: list[tuple[int, bytes] | None] = []
        self.break_syncs = False

    def pwritev(self, fd: int, buffers: object, offset: int) -> int:
        assert isinstance(buffers, (list, tuple))
        data = b"".join(bytes(buffer) for buffer in buffers)
        self.done.append((offset, data))
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        if self.break_syncs:
            raise OSError(5, "scripted")
        self.done.append(None)
        super().fdatasync(fd)


def test_a_failed_sync_ends_writing_for_good(volume: Volume) -> None:
    calls = Recorder()
    catalog = Catalog.open(Volume(volume.root, calls), SEED, writable=True)
    calls.break_syncs = True
    with pytest.raises(SyncFailedError):
        catalog.add(slot("a"))
    calls.break_syncs = False
    with pytest.raises(ReadOnlyError):
        catalog.add(slot("a"))
    assert catalog.slots() == []


def _publish_many(catalog: Catalog, calls: Recorder) -> list[tuple[int, list[Slot]]]:
    """Operations on slots that share pages: after how many calls which state was acknowledged, oldest first."""
    states: list[tuple[int, list[Slot]]] = [(0, [])]

    def done() -> None:
        states.append((len(calls.done), catalog.slots()))

    first = catalog.add(slot("a"))
    done()
    second = catalog.add(slot("b"))
    done()
    steps: list[Callable[[], None]] = [
        lambda: catalog.change([replace(first, pinned=True)]),
        lambda: catalog.change([replace(second, state=SlotState.TRASH, deleted_ns=7)]),
        lambda: catalog.change([replace(second, state=SlotState.LIVE)]),
        lambda: catalog.change([catalog.free(second)]),
        lambda: catalog.change([replace(first, name="c")]),
    ]
    for step in steps:
        step()
        done()
    return states


def test_every_crash_leaves_the_acknowledged_state_or_the_next(volume: Volume, tmp_path: Path) -> None:
    """Replays the writes up to each point, with the unsynced ones dropped, torn by page, or reordered."""
    before = (volume.root / CATALOG_FILE).read_bytes()
    calls = Recorder()
    states = _publish_many(Catalog.open(Volume(volume.root, calls), SEED, writable=True), calls)
    events = list(calls.done)
    root = tmp_path / "crash"
    root.mkdir()
    outcomes = 0
    for end in range(len(events) + 1):
        synced = max((at for at in range(end) if events[at] is None), default=-1)
        flying = [event for event in events[synced + 1 : end] if event is not None]
        acknowledged = max(index for index, (calls_made, _) in enumerate(states) if calls_made <= end)
        for pattern in range(2 ** min(len(flying), 4) * 2):
            image = bytearray(before)
            for event in events[: synced + 1]:
                if event is not None:
                    image[event[0] : event[0] + len(event[1])] = event[1]
            for bit, (offset, data) in enumerate(flying):
                if pattern >> (bit + 1) & 1:
                    image[offset : offset + len(data)] = data
                elif pattern & 1:
                    page = offset // 4096 * 4096
                    image[page : page + 4096] = b"\xee" * 4096  # the whole sector is lost in the middle of the write
            (root / CATALOG_FILE).write_bytes(image)
            found = Catalog.open(Volume(root), SEED, writable=True).slots()
            allowed = [state for _, state in states[acknowledged : acknowledged + 2]]
            assert found in allowed, f"after {end} calls, pattern {pattern}"
            outcomes += 1
    assert outcomes > 40
