"""What the census says against what bitmaps, united and planned from, say: the same, whatever happened meanwhile."""

import random
from pathlib import Path

import pytest

from repository.bitmaps import BitmapReader
from repository.errors import DamagedError
from repository.format.bitmap import BitmapHead
from repository.ids import NO_ID, RecordId, SnapshotId
from repository.planning import Wish
from repository.policy.collect import Safety
from repository.reach import walk
from repository.repo import Repository
from repository.roots import Root, all_kept, journal_numbers
from repository.units import KIB
from tests.support.repositories import SetClock, open_for_writing, publish
from tests.support.stores import noise

POOL = [noise(number, (20 + 13 * number % 90) * KIB) for number in range(30)]
SMALL = [noise(1000 + number, 300 + 97 * number) for number in range(40)]


def by_unions(repository: Repository, gone: frozenset[SnapshotId]) -> int:
    kept = all_kept(repository.store, repository.catalog, gone)
    return repository.collector.planner.plan_from(kept, Wish()).reclaimable_bytes


def assert_same(repository: Repository, rng: random.Random) -> None:
    planner = repository.collector.planner
    assert planner.warm_up()
    slots = [slot.snapshot_id for slot in repository.catalog.slots()]
    order = rng.sample(slots, rng.randint(0, len(slots)))
    first = frozenset(rng.sample(slots, rng.randint(0, len(slots))))
    found = planner._after(first, order)
    for step in range(len(order) + 1):
        assert found[step] == by_unions(repository, first | frozenset(order[:step])), (step, len(order))

    slots_now = repository.catalog.slots()
    asked = rng.sample(slots_now, rng.randint(0, len(slots_now)))
    unique = repository.unique_bytes(asked)
    planner.forget()
    assert repository.unique_bytes(asked) == unique
    planner.warm_up()


def by_walking(repository: Repository, gone: frozenset[SnapshotId]) -> int:
    """What comes free when every root needs exactly what is below it, and its bitmap's own records."""
    store, head = repository.store, repository.catalog.head()
    every: list[Root] = [*[slot for slot in repository.catalog.slots() if slot.snapshot_id not in gone], head]
    kept = store.leased() | journal_numbers(store, head)
    for root in every:
        if root.manifest != NO_ID:
            kept |= walk(store, [root.manifest]) | BitmapReader(store).read(root.bitmap).chain
    return repository.collector.planner.plan_from(kept, Wish()).reclaimable_bytes


def assert_exact(repository: Repository, rng: random.Random) -> None:
    repository.collector.look_closer()
    slots = [slot.snapshot_id for slot in repository.catalog.slots()]
    for count in (0, len(slots) // 2, len(slots)):
        gone = frozenset(rng.sample(slots, count))
        assert repository.collector.planner.dead_bytes(gone) == by_walking(repository, gone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 24))
def test_looking_closer_finds_what_walking_finds(path: Path, clock: SetClock, seed: int) -> None:
    rng = random.Random(seed)
    with open_for_writing(path, clock) as repository:
        for _ in range(40):
            change(repository, rng, clock)
            if rng.random() < 0.3:
                assert_exact(repository, rng)
        assert_exact(repository, rng)
        freed = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40).freed_bytes
        assert freed >= 0
        report = repository.check(read_data=True)
        assert report.is_sound, report.text()
    with open_for_writing(path, clock) as repository:
        repository.gc(safety=Safety.NONE)
        report = repository.check(read_data=True)
        assert report.is_sound, report.text()


def change(repository: Repository, rng: random.Random, clock: SetClock) -> None:
    """Something that happens to a repository."""
    listed = repository.listed()
    match rng.choice(
        ["publish", "publish", "child", "delete", "undelete", "gc", "gc none", "emergency", "seal", "lease"]
    ):
        case "publish":
            files = {f"f{at}": rng.choice(POOL) for at in range(4)} | {f"s{at}": rng.choice(SMALL) for at in range(6)}
            publish(repository, files, source=rng.choice(["host:/a", "host:/b"]))
        case "child" if listed:
            parent = rng.choice(listed)
            publish(repository, {"f": rng.choice(POOL), "s": rng.choice(SMALL)}, parent=parent, source=parent.source)
        case "delete" if listed:
            repository.delete(rng.choice(listed))
        case "undelete" if repository.trash():
            repository.undelete(rng.choice(repository.trash()), f"again {clock.now_ns()}")
        case "gc":
            clock.pass_days(rng.choice([0, 2]))
            repository.gc()
        case "gc none":
            repository.gc(safety=Safety.NONE)
        case "emergency":
            repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=rng.randint(1, 500) * KIB)
        case "seal":
            repository.store.seal_open()
        case "lease":
            lease = repository.store.lease()
            repository.store.put_bytes(rng.choice(POOL), final=True, lease=lease)
            if rng.random() < 0.8:
                lease.close()
        case _:
            pass


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_census_says_what_unions_say(path: Path, clock: SetClock, seed: int) -> None:
    rng = random.Random(seed)
    with open_for_writing(path, clock) as repository:
        for _ in range(45):
            change(repository, rng, clock)
            if rng.random() < 0.5:
                assert_same(repository, rng)
        assert_same(repository, rng)
    with open_for_writing(path, clock) as repository:
        assert_same(repository, rng)
        report = repository.check(read_data=True)
        assert report.is_sound, report.text()


def test_bitmaps_that_cannot_be_read_are_walked(path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    real = BitmapReader._head

    def head(self: BitmapReader, record_id: RecordId) -> BitmapHead:
        if record_id[0] % 4 == 0:
            raise DamagedError("rot")
        return real(self, record_id)

    monkeypatch.setattr(BitmapReader, "_head", head)
    rng = random.Random(77)
    with open_for_writing(path, clock) as repository:
        for _ in range(60):
            change(repository, rng, clock)
            if rng.random() < 0.3:
                assert_same(repository, rng)
        assert_same(repository, rng)


@pytest.mark.slow
def test_what_belongs_to_no_snapshot_any_more_is_forgotten(
    path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repository.census.FORGOTTEN_MAX", 0)
    rng = random.Random(5)
    with open_for_writing(path, clock) as repository:
        for _ in range(80):
            change(repository, rng, clock)
            if rng.random() < 0.3:
                assert_same(repository, rng)
        assert_same(repository, rng)
        assert_exact(repository, rng)


def test_a_repository_too_large_for_a_census_is_planned_some_packs_at_a_time(
    path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_for_writing(path, clock) as repository:
        rng = random.Random(9)
        for _ in range(30):
            change(repository, rng, clock)
        repository.store.seal_open()
        planner = repository.collector.planner
        slots = [slot.snapshot_id for slot in repository.catalog.slots()]
        planner.warm_up()
        figures = [planner.dead_bytes(slots[:count]) for count in range(len(slots) + 1)]
        thin = [repository.collector.plan_thinning(slots, nbytes) for nbytes in figures]
        planner.forget()
        monkeypatch.setattr("repository.packcensus.ROWS_MAX", 5)
        monkeypatch.setattr("repository.planning.ROWS_AT_ONCE", 5)
        assert not repository.collector.warm_up()
        assert [planner.dead_bytes(slots[:count]) for count in range(len(slots) + 1)] == figures
        assert [repository.collector.plan_thinning(slots, nbytes) for nbytes in figures] == thin
        for slot in repository.listed()[:-1]:
            repository.delete(slot)
        promised = repository.reclaimable_bytes()
        first = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=promised // 3)
        assert promised // 3 <= first.freed_bytes < promised
        rest = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40)
        assert first.freed_bytes + rest.freed_bytes == promised
        report = repository.check(read_data=True)
        assert report.is_sound, report.text()
