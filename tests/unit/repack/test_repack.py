"""Repacking: what mostly dead packs still hold is moved, roots follow, and the packs go as a whole."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from pyroaring import BitMap64

from repository.bitmaps import BitmapReader
from repository.errors import NoSpaceError
from repository.format.catalog import Slot
from repository.format.intent import Intent, Punch
from repository.format.journal import NO_MARK, NodeGone
from repository.format.record import RecordKind
from repository.ids import NO_ID, FileId, PackIndex, RecordId, RecordNumber, pack_of
from repository.intent import IntentFile
from repository.journal import JournalWriter, journal_floor
from repository.ledger import Claim
from repository.policy.collect import Safety, packs_of
from repository.policy.repack import PackLoad, choose_round
from repository.reach import walk
from repository.repack import Repacker
from repository.repo import Repository
from repository.roots import Root
from repository.units import KIB, MIB
from tests.support.bare import BareCalls, BareSmallCalls
from tests.support.repositories import (
    SetClock,
    make,
    open_for_reading,
    open_for_writing,
    publish,
    read_files,
    write_tree,
)

pytestmark = pytest.mark.slow

FILE_BYTES: Final = 200 * KIB


def contents(seed: int, count: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"{seed}-{number:02d}": rng.randbytes(FILE_BYTES) for number in range(count)}


def some(files: dict[str, bytes], step: int) -> dict[str, bytes]:
    """Every `step`-th file: they lie scattered over the packs."""
    return dict(sorted(files.items())[::step])


@pytest.fixture
def repository(tmp_path: Path, clock: SetClock) -> Iterator[Repository]:
    calls = BareCalls()
    make(tmp_path / "r", clock, calls=calls)
    with open_for_writing(tmp_path / "r", clock, calls) as repository:
        yield repository


def packs(repository: Repository) -> set[PackIndex]:
    return {info.index for info in repository.store.packs()}


def large(repository: Repository) -> set[PackIndex]:
    """Sealed packs that hold more than a bit."""
    return {info.index for info in repository.store.packs() if info.sealed and info.allocated_bytes > 2 * MIB}


def verify(repository: Repository, wanted: dict[str, dict[str, bytes]]) -> None:
    """All snapshots read back, roots name only what is there, and another process finds no fault."""
    for name, files in wanted.items():
        assert read_files(repository, repository.find(name)) == files
    there = packs(repository)
    roots: list[Root] = [*repository.catalog.slots(), repository.catalog.head()]
    for root in roots:
        if root.manifest == NO_ID:
            continue
        bitmap = BitmapReader(repository.store).read(root.bitmap, root=root.manifest)
        named = bitmap.kept | BitMap64((root.manifest_number, root.bitmap_number))
        assert set(packs_of(named)) <= there
        reached = walk(repository.store, [root.manifest])
        assert bitmap.numbers == reached if root.exact else not reached - bitmap.numbers
    with open_for_reading(repository.path, SetClock()) as reader:
        report = reader.check(read_data=True)
        assert not report.findings, report.text()


def mostly_dead(repository: Repository) -> dict[str, dict[str, bytes]]:
    """Sealed packs of which only every eighth record is needed; returns what the snapshots left hold."""
    files = contents(1, 48)
    whole = publish(repository, files, "whole")
    publish(repository, some(files, 8), "some")
    repository.store.seal_open()
    repository.delete(whole)
    return {"some": some(files, 8)}


def test_the_rest_of_mostly_dead_packs_is_moved_and_they_go(repository: Repository) -> None:
    wanted = mostly_dead(repository)
    assert large(repository)
    sealed = sum(info.allocated_bytes for info in repository.store.packs() if info.sealed)
    report = repository.collector.collect(Safety.NONE, exactness=False)
    assert not large(repository)
    repository.store.seal_open()
    held = sum(info.allocated_bytes for info in repository.store.packs() if info.sealed)
    assert abs(sealed - held - report.freed_bytes) < 64 * KIB, "what it said is not what came free"
    verify(repository, wanted)


def test_another_process_finds_the_same(repository: Repository, clock: SetClock) -> None:
    wanted = mostly_dead(repository)
    repository.gc(safety=Safety.NONE)
    repository.close()
    with open_for_writing(repository.path, clock, BareCalls()) as again:
        verify(again, wanted)
        assert again.gc(safety=Safety.NONE).freed_bytes <= 1 * MIB
        verify(again, wanted)
        again.delete(again.find("some"))
        again.gc(safety=Safety.NONE)
        assert not any(info.records for info in again.store.packs())


def test_what_was_moved_is_shared_at_its_new_place(repository: Repository) -> None:
    wanted = mostly_dead(repository)
    repository.gc(safety=Safety.NONE)
    chunks = sum(info.records for info in repository.store.packs())
    publish(repository, wanted["some"], "again")
    assert sum(info.records for info in repository.store.packs()) <= chunks + 4  # manifest, bitmap, tree
    verify(repository, wanted | {"again": wanted["some"]})


def test_packs_that_are_half_alive_stay(repository: Repository) -> None:
    files = contents(1, 48)
    most = {name: data for name, data in files.items() if int(name[-2:]) % 4}
    publish(repository, files, "whole")
    publish(repository, most, "most")
    repository.store.seal_open()
    repository.delete(repository.find("whole"))
    before = large(repository)
    repository.gc(safety=Safety.NONE)
    assert before
    assert before <= large(repository)
    verify(repository, {"most": most})


def test_an_ordinary_collection_waits_for_the_window(repository: Repository, clock: SetClock) -> None:
    wanted = mostly_dead(repository)
    before = large(repository)
    repository.gc()
    assert before == large(repository)
    clock.pass_days(2)
    repository.gc()
    assert not large(repository)
    verify(repository, wanted)


def test_many_snapshots_follow(repository: Repository) -> None:
    """Chains of bitmaps, some of whose own records lie in packs that go; exact ones stay exact."""
    files = contents(1, 40)
    parent: Slot | None = None
    slots = []
    for number in range(20):
        held = some(files, 8) | {name: data for name, data in files.items() if int(name[-2:]) == number + 1}
        parent = publish(repository, held, f"s{number:02d}", parent=parent)
        slots.append(parent)
        if number % 7 == 6:
            repository.store.seal_open()
    repository.store.seal_open()
    for slot in slots[1:-1]:
        repository.delete(slot)
    repository.gc(safety=Safety.NONE)
    wanted = {"s00": some(files, 8) | {"1-01": files["1-01"]}, "s19": some(files, 8) | {"1-20": files["1-20"]}}
    verify(repository, wanted)
    assert all(slot.exact for slot in repository.catalog.slots())


def test_what_somebody_holds_keeps_its_pack(repository: Repository) -> None:
    wanted = mostly_dead(repository)
    with repository.store.lease() as lease:
        place = repository.store.locate([a_chunk(repository)])[0]
        assert place is not None
        lease.add(place.number)
        repository.gc(safety=Safety.NONE)
        assert pack_of(place.number) in packs(repository)
        assert repository.store.read_at(place).kind == RecordKind.CHUNK
    verify(repository, wanted)
    repository.gc(safety=Safety.NONE)
    assert pack_of(place.number) not in packs(repository)
    verify(repository, wanted)


def a_chunk(repository: Repository) -> RecordId:
    [entry, *_] = repository.reader.scan(repository.root(repository.find("some")).directory)
    return repository.reader.extents(entry.inode, 0, 1)[0].chunk


def test_a_pack_with_pending_journal_stays(repository: Repository, clock: SetClock) -> None:
    repository.marks.mounted()
    writer = JournalWriter(repository.store, clock, NO_MARK)
    with repository.store.lease() as lease:
        writer.write([NodeGone(FileId(77))], lease, 0)
        [number] = lease.snapshot()
        wanted = mostly_dead(repository)
    repository.gc(safety=Safety.NONE)
    assert number >> 16 in packs(repository)
    verify(repository, wanted)


def test_what_was_counted_before_follows(repository: Repository) -> None:
    """The census that is kept while space is short takes the new places in."""
    wanted = mostly_dead(repository)
    assert repository.collector.warm_up()
    repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 * MIB)
    assert not large(repository)
    repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40)
    verify(repository, wanted)


def test_a_root_without_a_bitmap_gets_one(repository: Repository) -> None:
    """As `rebuild` leaves them. Whoever walked it before must not go on with the places of then."""
    wanted = mostly_dead(repository)
    slot = repository.find("some")
    repository.catalog.change([replace(slot, bitmap=NO_ID, bitmap_number=RecordNumber(0))])
    assert repository.collector.warm_up()
    repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 * MIB)
    assert not large(repository)
    assert repository.find("some").bitmap != NO_ID
    repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40)
    verify(repository, wanted)


# --- others at the same time -------------------------------------------------------------------------------------


def collect_after_writing(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Once a new root's records are written, and before it is published, everything moves. Counts the writings."""
    write = repository.publisher._write
    calls: list[int] = []

    def then_collect(*args: object) -> object:
        written = write(*args)  # type: ignore[arg-type]
        if not calls:
            assert large(repository)
            repository.gc(safety=Safety.NONE)
            assert not large(repository), "nothing moved, so nothing is shown here"
        calls.append(len(calls))
        return written

    monkeypatch.setattr(repository.publisher, "_write", then_collect)
    return calls


def test_a_snapshot_made_meanwhile_from_one_that_moves(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bitmap is its parent's and what it stored; the parent's records move between the two. When the parent goes,
    what was moved must not go with it."""
    wanted = mostly_dead(repository)
    parent = repository.find("some")
    calls = collect_after_writing(repository, monkeypatch)
    root = repository.root(parent)
    with repository.store.lease() as lease:
        tree = replace(write_tree(repository, {}, lease), root=root, totals=root.totals)
        repository.publish(tree, lease, name="child", parent=parent)
    assert len(calls) == 2
    repository.delete(repository.find("some"))
    repository.gc(safety=Safety.NONE)
    verify(repository, {"child": wanted["some"]})


def test_a_commit_made_meanwhile(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    mostly_dead(repository)
    root = repository.root(repository.find("some"))

    with repository.store.lease() as lease:
        tree = replace(write_tree(repository, {}, lease, source="live"), root=root, totals=root.totals)
        lease.update(RecordNumber(one) for one in repository.publisher.numbers_of(repository.find("some")))
        repository.commit(tree, lease, journal=NO_MARK, journal_floor=journal_floor(repository.store), wish=None)
    calls = collect_after_writing(repository, monkeypatch)
    with repository.store.lease() as lease:
        tree = replace(write_tree(repository, {}, lease, source="live"), root=root, totals=root.totals)
        repository.commit(tree, lease, journal=NO_MARK, journal_floor=journal_floor(repository.store), wish=None)
    assert len(calls) == 2
    repository.delete(repository.find("some"))
    repository.gc(safety=Safety.NONE)
    reached = walk(repository.store, [repository.catalog.head().manifest])
    assert not reached - repository.publisher.numbers_of(repository.catalog.head())
    verify(repository, {})


def test_a_snapshot_that_shares_what_was_dead_when_the_plan_was_made(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records lie in packs that are about to be emptied of what the plan knows."""
    wanted = mostly_dead(repository)
    revived = dict(list(contents(1, 48).items())[5:8])
    repacker = repository.collector._repacker
    affordable = repacker._affordable
    made: list[Slot] = []

    def then_publish(*args: object) -> object:
        plan = affordable(*args)  # type: ignore[arg-type]
        if not made:
            before = sum(info.records for info in repository.store.packs())
            made.append(publish(repository, revived, "revived"))
            assert sum(info.records for info in repository.store.packs()) < before + 6, "it shared nothing"
        return plan

    monkeypatch.setattr(repacker, "_affordable", then_publish)
    repository.collector.collect(Safety.NONE, exactness=False)
    assert made
    assert not large(repository)
    repository.gc(safety=Safety.NONE)
    verify(repository, wanted | {"revived": revived})


def test_a_move_that_finds_no_room_leaves_everything_to_be_shared(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = mostly_dead(repository)

    def no_room(*args: object, **more: object) -> Claim:
        raise NoSpaceError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(repository.store, "claim", no_room)
        repository.collector.collect(Safety.NONE, exactness=False)
    assert large(repository)
    records = sum(info.records for info in repository.store.packs())
    publish(repository, wanted["some"], "again")
    assert sum(info.records for info in repository.store.packs()) <= records + 4
    verify(repository, wanted | {"again": wanted["some"]})


# --- without room ------------------------------------------------------------------------------------------------


@pytest.mark.logs("index.not_written")
def test_an_emergency_repacks_inside_what_was_lent(tmp_path: Path, clock: SetClock) -> None:
    """The volume is full to the last byte; the reserve is lent, so nothing may grow; whole packs come back."""
    calls = BareSmallCalls(60 * MIB)
    make(tmp_path / "r", clock, reserve_bytes=10 * MIB, calls=calls)
    with open_for_writing(tmp_path / "r", clock, calls) as repository:
        files = contents(1, 96)
        publish(repository, files, "whole")
        publish(repository, some(files, 8), "some")
        repository.store.seal_open()
        calls.room_bytes = calls.used_bytes()
        assert repository.space.room().available_bytes < 4096
        repository.delete(repository.find("whole"))
        repository.space.release(10 * MIB)
        with pytest.raises(NoSpaceError):
            repository.store.claim(8 * MIB, 1, climb=False)
        before = calls.used_bytes()
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=8 * MIB)
        assert report.freed_bytes >= 8 * MIB
        assert before - calls.used_bytes() >= 8 * MIB, "the volume has less than was said"
        assert repository.space.restore().whole
        verify(repository, {"some": some(files, 8)})


@pytest.mark.logs("index.not_written")
def test_where_even_the_reserve_is_gone_the_headroom_is_room(tmp_path: Path, clock: SetClock) -> None:
    calls = BareSmallCalls(60 * MIB)
    make(tmp_path / "r", clock, reserve_bytes=0, calls=calls)
    with open_for_writing(tmp_path / "r", clock, calls) as repository:
        files = contents(1, 48)
        publish(repository, files, "whole")
        publish(repository, some(files, 8), "some")
        repository.store.seal_open()
        assert repository.store.headroom.refill(allocate=True)
        repository.delete(repository.find("whole"))
        calls.room_bytes = calls.used_bytes()
        repository.collector.collect(Safety.NONE, exactness=False)
        assert not large(repository)
        assert repository.store.headroom.whole
        verify(repository, {"some": some(files, 8)})


@pytest.mark.logs("index.not_written")
def test_without_room_for_the_copy_nothing_is_touched(tmp_path: Path, clock: SetClock) -> None:
    calls = BareSmallCalls(40 * MIB)
    make(tmp_path / "r", clock, reserve_bytes=0, calls=calls)
    with open_for_writing(tmp_path / "r", clock, calls) as repository:
        wanted = mostly_dead(repository)
        while repository.store.headroom.take(64 * KIB, 1) is not None:
            pass
        calls.room_bytes = calls.used_bytes()
        before = packs(repository)
        repacker = Repacker(
            volume=repository.volume,
            store=repository.store,
            catalog=repository.catalog,
            snapshots=repository.snapshots,
            clock=clock,
        )
        assert repacker.repack(None, safety=Safety.NONE, free=lambda: pytest.fail("freed")) == 0
        assert packs(repository) == before
        verify(repository, wanted)


def test_a_stop_is_heard_between_rounds(repository: Repository) -> None:
    mostly_dead(repository)
    before = packs(repository)
    repository.collector.collect(Safety.NONE, exactness=False, stop=lambda: True)
    assert packs(repository) == before


# --- choosing ----------------------------------------------------------------------------------------------------


def load(pack: int, allocated: int, copy: int) -> PackLoad:
    return PackLoad(PackIndex(pack), allocated * MIB, copy * MIB, 10)


def test_the_least_to_copy_comes_first() -> None:
    loads = [load(1, 64, 20), load(2, 64, 2), load(3, 64, 33), load(4, 4, 1)]
    chosen = choose_round(loads, room_bytes=1 << 40, enough_bytes=None)
    assert [one.pack for one in chosen] == [2, 4, 1]


def test_room_and_need_bound_a_round() -> None:
    loads = [load(pack, 64, 20) for pack in range(9)]
    assert len(choose_round(loads, room_bytes=1 << 40, enough_bytes=None)) == 3
    assert len(choose_round(loads, room_bytes=45 * MIB, enough_bytes=None)) == 2
    assert len(choose_round(loads, room_bytes=1 << 40, enough_bytes=44 * MIB)) == 1
    assert not choose_round(loads, room_bytes=19 * MIB, enough_bytes=None)


# --- repositories that come from elsewhere -----------------------------------------------------------------------


def test_an_intent_to_punch_that_came_with_a_copy_is_let_go(tmp_path: Path, clock: SetClock) -> None:
    """Copied in the middle of a collection, from a volume that punches to one that doesn't: what was to be freed stays,
    and is garbage for the next collection."""
    path = tmp_path / "r"
    make(path, clock)
    with open_for_writing(path, clock) as repository:
        wanted = mostly_dead(repository)
        [info, *_] = repository.store.packs()
        directory = repository.store.directory(info.index)
        intent = IntentFile(repository.volume, repository.config.seed)
        intent.write(Intent(7, (), (Punch(info.index, int(directory.offset[1]), int(directory.stored[1])),)))
    with open_for_writing(path, clock, BareCalls()) as repository:
        assert intent.read().is_empty
        assert repository.config.volume_class == "A"
        verify(repository, wanted)
        repository.gc(safety=Safety.NONE)
        assert not large(repository)
        verify(repository, wanted)
