"""Which flushes of the journal count after a crash: a prefix, and nothing that an earlier crash left behind."""

from dataclasses import replace
from pathlib import Path

import pytest

from repository.format.catalog import Head
from repository.format.inode import Extent, Inode, NodeKind
from repository.format.journal import (
    NO_MARK,
    Change,
    ExtentDelta,
    Flush,
    JournalMark,
    NameChange,
    NodeChange,
    NodeGone,
    encode_flush,
)
from repository.format.record import RecordKind
from repository.ids import FileId, RecordId
from repository.journal import JournalWriter, journal_floor, pending
from repository.store import RecordStore
from tests.support.repositories import SetClock, make, open_for_writing
from tests.support.stores import new_volume, noise, open_store


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return open_store(new_volume(tmp_path / "store"))


def gone(number: int) -> list[Change]:
    return [NodeGone(FileId(number))]


def data_change(chunk: RecordId) -> list[Change]:
    inode = Inode(NodeKind.FILE, FileId(9), size=10)
    return [NodeChange(inode, (ExtentDelta(0, 10, (Extent(0, 10, chunk, 0),)),))]


def test_all_flushes_after_the_head_in_order(store: RecordStore) -> None:
    lease = store.lease()
    writer = JournalWriter(store, SetClock(), NO_MARK)
    marks = [writer.write(gone(number), lease, 0) for number in range(1, 6)]
    found = pending(store, Head())
    assert [flush.changes for flush in found.flushes] == [tuple(gone(number)) for number in range(1, 6)]
    assert found.mark == marks[-1] == writer.mark
    assert found.stopped is None
    assert found.changes == 5
    assert found.numbers == lease.snapshot()
    later = pending(store, replace(Head(), journal=marks[2]))
    assert [flush.sequence for flush in later.flushes] == [4, 5]
    nothing = pending(store, replace(Head(), journal=marks[-1]))
    assert nothing.flushes == ()
    assert nothing.mark == marks[-1]


def test_packs_below_the_floor_are_not_read(store: RecordStore) -> None:
    lease = store.lease()
    writer = JournalWriter(store, SetClock(), NO_MARK)
    first = writer.write(gone(1), lease, 0)
    store.seal_open()
    floor = writer.floor()
    assert floor == max(info.index for info in store.packs()) + 1
    writer.write(gone(2), lease, 0)
    head = replace(Head(), journal=first, journal_floor=floor)
    assert [flush.sequence for flush in pending(store, head).flushes] == [2]
    assert journal_floor(store) == floor


def test_a_missing_chunk_ends_the_prefix(store: RecordStore) -> None:
    lease = store.lease()
    writer = JournalWriter(store, SetClock(), NO_MARK)
    known = store.put(RecordKind.CHUNK, [noise(1, 100)], lease)[0]
    writer.write(data_change(known.id), lease, 0)
    writer.write(data_change(RecordId(b"?" * 32)), lease, 0)
    writer.write(gone(3), lease, 0)
    found = pending(store, Head())
    assert [flush.sequence for flush in found.flushes] == [1]
    assert known.number in found.numbers
    assert found.stopped is not None
    assert "flush 2" in found.stopped


def test_a_missing_part_ends_the_prefix(store: RecordStore) -> None:
    lease = store.lease()
    long: tuple[Change, ...] = tuple(NameChange(FileId(1), b"%0250d" % number, None) for number in range(9_000))
    payloads, mark = encode_flush(Flush(1, 0, 0, 1, long))
    assert len(payloads) == 3
    store.put(RecordKind.JOURNAL, [payloads[0], payloads[2]], lease)
    JournalWriter(store, SetClock(), mark).write(gone(2), lease, 0)
    found = pending(store, Head())
    assert found.flushes == ()
    assert found.stopped == "flush 1 is not complete"
    store.put(RecordKind.JOURNAL, [payloads[1]], lease)
    assert [flush.sequence for flush in pending(store, Head()).flushes] == [1, 2]


def test_what_an_earlier_crash_left_is_never_taken_up(store: RecordStore) -> None:
    """Flush 2 of the first process named a chunk that was lost, flush 3 followed it. The second process went on from 1
    with another flush 2, and stored that chunk too: the old 2 and 3 now look whole, and still are not what was
    acknowledged last."""
    lease = store.lease()
    clock = SetClock()
    first = JournalWriter(store, clock, NO_MARK)
    mark = first.write(gone(1), lease, 0)
    chunk = noise(7, 100)
    lost = store.put(RecordKind.CHUNK, [chunk], lease)[0]
    first.write(data_change(lost.id), lease, 0)
    first.write(gone(33), lease, 0)
    second = JournalWriter(store, clock, mark)
    second.write(gone(22), lease, 0)
    found = pending(store, Head())
    assert [flush.changes for flush in found.flushes] == [tuple(gone(1)), tuple(gone(22))]
    second.write(gone(44), lease, 0)
    assert pending(store, Head()).flushes[-1].changes == tuple(gone(44))


def test_a_restarted_chain_leaves_all_leftovers_behind(tmp_path: Path) -> None:
    """As above, but the second process is killed while it writes its own flush 2: none of the two may count."""
    clock = SetClock()
    make(tmp_path / "repository", clock)
    with open_for_writing(tmp_path / "repository", clock) as repository:
        lease = repository.store.lease()
        chunk = repository.store.put(RecordKind.CHUNK, [noise(7, 100)], lease)[0]
        JournalWriter(repository.store, clock, repository.catalog.head().journal).write(data_change(chunk.id), lease, 0)
        assert len(pending(repository.store, repository.catalog.head()).flushes) == 1
        mark = repository.marks.restart_journal()
        assert pending(repository.store, repository.catalog.head()).flushes == ()
        JournalWriter(repository.store, clock, mark).write(gone(5), lease, 0)
        found = pending(repository.store, repository.catalog.head())
        assert [flush.changes for flush in found.flushes] == [tuple(gone(5))]


def test_a_chain_that_does_not_continue_the_head_is_nothing(store: RecordStore) -> None:
    lease = store.lease()
    JournalWriter(store, SetClock(), JournalMark(6, 1234)).write(gone(1), lease, 0)
    found = pending(store, replace(Head(), journal=JournalMark(6, 4321)))
    assert found.flushes == ()
    assert found.stopped is not None


def test_a_lost_flush_is_told_until_the_next_mount_begins(store: RecordStore) -> None:
    """The power failed while flushes were unsynced, and took one between two others. After the next mount's recovery
    `check` still warned of it, as the pack that held them lay above the lowest one with room."""
    clock, lease = SetClock(), store.lease()
    head = Head(journal=JournalMark(6, 1234), mounted_ns=clock.now_ns())
    JournalWriter(store, clock, JournalMark(7, 99)).write(gone(1), lease, 0)
    assert pending(store, head).stopped == "flush 7 is not there, later ones are"
    assert pending(store, replace(head, mounted_ns=clock.now_ns())).stopped is None


def test_the_sync_is_the_callers(store: RecordStore) -> None:
    lease = store.lease()
    writer = JournalWriter(store, SetClock(), NO_MARK)
    claim = store.claim(100_000, 4)
    mark = writer.write(gone(1), lease, 3, claim)
    store.forfeit(claim)
    store.sync()
    found = pending(store, Head())
    assert (found.mark, found.flushes[0].base_serial) == (mark, 3)
    assert found.last_ns > 0
