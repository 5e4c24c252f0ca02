"""The real ladder and the real retention over repositories of a few dozen blocks, on a disk that a script fills."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from repository.errors import NoSpaceError, VolumeError
from repository.format.catalog import Slot, SnapshotKind
from repository.format.events import Field
from repository.policy.collect import Safety
from repository.policy.rungs import Mode
from repository.recovery import RecoverySettings
from repository.repo import Repository
from repository.units import KIB
from tests.support.amounts import seeds
from tests.support.repositories import SetClock, publish, read_files, write_tree
from tests.support.tinydisk import (
    RESERVE,
    SEGMENT,
    TinyDisk,
    TinyProbe,
    allow_tiny_packs,
    make_tiny,
    open_tiny,
    tiny_disk,
)

pytestmark = pytest.mark.logs("index.not_written", "pack.not_sealed")
"""Caches are the first that find no room; nobody misses them."""
ROOM: Final = 160 * KIB


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_tiny_packs(monkeypatch)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def path(memory_folder: Path, clock: SetClock) -> Path:
    made = memory_folder / "r"
    make_tiny(made, clock)
    return made


@pytest.fixture
def disk(path: Path) -> TinyDisk:
    return tiny_disk(path, ROOM)


@pytest.fixture
def repository(path: Path, disk: TinyDisk, clock: SetClock) -> Iterator[Repository]:
    with open_tiny(path, disk, clock) as opened:
        opened.recovery.settings = RecoverySettings(margin_bytes=0)
        yield opened


def some_files(seed: int, count: int = 8) -> dict[str, bytes]:
    """Incompressible files of 1 to 4 KB."""
    rng = random.Random(seed)
    return {f"f{number}": rng.randbytes(rng.randint(1000, 4000)) for number in range(count)}


def implicit(repository: Repository, seed: int, *, source: str, count: int = 3) -> Slot:
    """A snapshot that retention may give up."""
    with repository.store.lease() as lease:
        tree = write_tree(repository, some_files(seed, count), lease, source=source)
        return repository.publish(tree, lease, kind=SnapshotKind.IMPLICIT)


def fill(repository: Repository, first_seed: int = 1000) -> dict[str, int]:
    """Named snapshots until one does not fit; name -> seed of those that do. Nothing was garbage before."""
    made: dict[str, int] = {}
    for seed in range(first_seed, first_seed + 100):
        try:
            publish(repository, some_files(seed), f"s{seed}")
        except NoSpaceError:
            return made
        made[f"s{seed}"] = seed
    raise AssertionError("the disk does not fill")


def recoveries(repository: Repository) -> list[dict[str, Field]]:
    return [dict(event.fields) for event in repository.events.events() if event.name == "recovery.done"]


def mode(repository: Repository) -> Mode:
    """The mode now."""
    return repository.recovery.mode


def check(repository: Repository) -> None:
    report = repository.check(read_data=True)
    assert report.is_sound, report.text()


def test_garbage_pays_for_what_does_not_fit(repository: Repository, disk: TinyDisk) -> None:
    """The writer sees nothing; nothing is created or renamed for it but the packs of what it writes."""
    modes: list[Mode] = []
    names_then: list[int] = []

    def note(now: Mode) -> None:
        modes.append(now)
        names_then.append(len(disk.created) + len(disk.renamed))

    repository.recovery.on_change = note
    kept = publish(repository, some_files(1), "kept")
    repository.delete(publish(repository, some_files(2, 30), "gone"))
    disk.leave(6 * KIB)
    publish(repository, some_files(3, 24), "new")
    assert modes[:2] == [Mode.EMERGENCY, Mode.NORMAL]
    assert modes == modes[:2] * (len(modes) // 2), "a segment for the files, one for what describes them"
    assert names_then[::2] == names_then[1::2], "a step of the ladder created or renamed something"
    assert repository.space.reserve().whole
    assert read_files(repository, repository.find("new")) == some_files(3, 24)
    assert read_files(repository, kept) == some_files(1)
    told = recoveries(repository)
    assert {one["outcome"] for one in told} == {"recovered"}
    steps = told[0]["steps"]
    assert isinstance(steps, list)
    assert [step.split()[0] for step in steps] == ["release", "collect", "give"]
    assert not repository.trash(), "it paid"
    check(repository)


def test_only_as_much_of_the_trash_goes_as_is_needed(repository: Repository, disk: TinyDisk) -> None:
    for seed in (1, 2, 3):
        repository.delete(publish(repository, some_files(seed), f"gone{seed}"))
    disk.leave(0)
    publish(repository, some_files(4, 2), "new")
    left = [slot.name for slot in repository.trash()]
    assert left
    assert left[-1] == "gone3", "the longest deleted goes first"
    back = repository.undelete(repository.snapshots.find_trash("gone3"))
    assert read_files(repository, back) == some_files(3)
    check(repository)


def test_without_a_way_out_growth_is_refused_and_all_else_works(
    repository: Repository, disk: TinyDisk, path: Path, clock: SetClock
) -> None:
    made = fill(repository)
    assert mode(repository) is Mode.READ_ONLY
    assert repository.space.reserve().whole
    refused = disk.refused
    for _ in range(3):
        with pytest.raises(NoSpaceError, match="Delete a snapshot"):
            publish(repository, some_files(77), "no")
    assert disk.refused == refused, "the volume was asked again although nothing had changed"
    for name, seed in made.items():
        assert read_files(repository, repository.find(name)) == some_files(seed)
    text = repository.recovery.refused_text()
    assert text is not None
    assert "Nothing is lost" in text
    assert f"ballast snapshot delete {path} s" in text
    repository.recovery.give_up()
    for name in list(made)[:2]:
        repository.delete(repository.find(name))
    assert repository.recovery.deleted() > 0
    assert mode(repository) is Mode.NORMAL
    assert repository.recovery.refused_text() is None
    publish(repository, some_files(78, 4), "yes")
    assert read_files(repository, repository.find("yes")) == some_files(78, 4)
    check(repository)


def test_a_job_that_did_not_fit_gives_its_bytes_back(repository: Repository, disk: TinyDisk) -> None:
    publish(repository, some_files(1), "kept")
    before = disk.free_bytes()
    with pytest.raises(NoSpaceError):
        publish(repository, some_files(2, 100), "large")
    assert disk.free_bytes() < before - 50 * KIB
    freed = repository.recovery.give_up()
    assert freed > 50 * KIB
    assert disk.free_bytes() >= before - 3 * SEGMENT, "but for the room of open packs"
    assert mode(repository) is Mode.NORMAL
    assert [slot.name for slot in repository.listed()] == ["kept"]
    check(repository)


def test_after_a_job_that_did_not_fit_a_collection_keeps_no_window(path: Path, disk: TinyDisk, clock: SetClock) -> None:
    """The story: the second snapshot does not fit, the first is deleted, `gc` makes room; no step by hand."""
    with open_tiny(path, disk, clock) as repository:
        publish(repository, some_files(1, 30), "first")
        with pytest.raises(NoSpaceError):
            publish(repository, some_files(2, 40), "second")
        repository.recovery.give_up()
    with open_tiny(path, disk, clock) as repository:
        assert repository.space.reserve().whole
        assert repository.recovery.emergency()
        repository.delete(repository.find("first"))
        assert repository.gc(safety=None).freed_bytes > 60 * KIB
        assert not repository.recovery.emergency()
        publish(repository, some_files(2, 30), "second")
        assert not repository.recovery.emergency()
        check(repository)


def test_a_job_of_yesterday_forces_nothing(repository: Repository, disk: TinyDisk, clock: SetClock) -> None:
    publish(repository, some_files(1, 20), "first")
    with pytest.raises(NoSpaceError):
        publish(repository, some_files(2, 60), "second")
    repository.recovery.give_up(1 << 40)
    assert repository.recovery.emergency()
    clock.pass_days(1.1)
    assert not repository.recovery.emergency()


def test_an_explicit_full_collection_keeps_the_window(repository: Repository, disk: TinyDisk) -> None:
    repository.delete(publish(repository, some_files(1), "a"))
    disk.leave(0)
    repository.space.release(RESERVE)
    disk.leave(0)
    assert repository.recovery.emergency()
    assert repository.gc(safety=Safety.FULL).freed_bytes == 0
    assert [slot.name for slot in repository.trash()] == ["a"]
    assert repository.gc(safety=None).freed_bytes > 0
    assert repository.space.reserve().whole


# --- giving up snapshots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(8, fast=3))
def test_snapshots_are_given_up_by_the_policy_and_no_more_than_needed(
    path: Path, clock: SetClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tiny_disk(path, 700 * KIB)
    with open_tiny(path, disk, clock) as repository:
        named = publish(repository, some_files(1, 3), "named")
        pinned = repository.pin(implicit(repository, 2, source="h:/a"))
        newest: dict[str, Slot] = {}
        for number in range(24):
            clock.pass_days(0.3 + (number % 5))
            source = f"h:/{'abc'[number % 3]}"
            newest[source] = implicit(repository, 10 + number, source=source)
        disk.leave(0)
        plans: list[tuple[int, int]] = []
        plan_thinning = repository.collector.plan_thinning

        def spy(order: list[object], enough_bytes: int) -> object:
            plan = plan_thinning(order, enough_bytes)  # type: ignore[arg-type]
            if plan is not None:
                slots = {slot.snapshot_id: slot for slot in repository.listed()}
                fewer = repository.reclaimable_bytes([slots[one] for one in plan.snapshots[:-1]])
                plans.append((fewer, enough_bytes))
            return plan

        monkeypatch.setattr(repository.collector, "plan_thinning", spy)
        repository.recovery.settings = RecoverySettings(auto_delete=True, margin_bytes=0)
        repository.recovery.rng = random.Random(seed)
        before = {slot.name for slot in repository.listed()}
        publish(repository, some_files(99, 10), "new")
        gone = before - {slot.name for slot in repository.listed()}
        assert gone
        assert not gone & {named.name, pinned.name, *(slot.name for slot in newest.values())}
        assert plans
        assert all(fewer < enough for fewer, enough in plans), "one less would have been enough"
        told = {str(event.fields["name"]) for event in repository.events.events() if event.name == "snapshot.thinned"}
        assert told == gone
        assert repository.space.reserve().whole
        assert read_files(repository, repository.find("new")) == some_files(99, 10)
        check(repository)


def test_without_auto_delete_no_snapshot_is_given_up(repository: Repository, disk: TinyDisk) -> None:
    for number in range(8):
        implicit(repository, number, source="h:/a", count=2)
    before = [slot.name for slot in repository.listed()]
    disk.leave(0)
    with pytest.raises(NoSpaceError):
        publish(repository, some_files(99, 20), "new")
    assert [slot.name for slot in repository.listed()] == before


def test_where_giving_up_would_not_be_enough_nothing_is_given_up(repository: Repository, disk: TinyDisk) -> None:
    repository.recovery.settings = RecoverySettings(auto_delete=True, margin_bytes=0)
    publish(repository, some_files(1, 20), "named")
    for number in range(3):
        implicit(repository, 50 + number, source="h:/a", count=1)
    disk.leave(0)
    before = [slot.name for slot in repository.listed()]
    with pytest.raises(NoSpaceError):
        publish(repository, some_files(99, 20), "new")
    assert [slot.name for slot in repository.listed()] == before
    steps = recoveries(repository)[-1]["steps"]
    assert isinstance(steps, list)
    assert any("would not be enough" in step for step in steps)


# --- others on the disk --------------------------------------------------------------------------------------------


def test_a_thief_cannot_wedge_it(repository: Repository, disk: TinyDisk) -> None:
    """What is lent, and what comes free, is taken at once by somebody else."""
    kept = publish(repository, some_files(1), "kept")
    repository.delete(publish(repository, some_files(2), "gone"))
    disk.leave(0)
    disk.thief = True
    with pytest.raises(NoSpaceError):
        publish(repository, some_files(3, 20), "new")
    assert mode(repository) is Mode.READ_ONLY
    assert not repository.space.reserve().whole
    assert read_files(repository, kept) == some_files(1)
    assert repository.recovery.look() is Mode.READ_ONLY
    disk.thief = False
    disk.leave(RESERVE - 4 * KIB)
    assert repository.recovery.look() is Mode.READ_ONLY
    disk.leave(RESERVE)
    assert repository.recovery.look() is Mode.READ_ONLY, "the reserve is whole, but no segment fits"
    assert repository.space.reserve().whole
    disk.leave(3 * SEGMENT)
    assert repository.recovery.look() is Mode.NORMAL
    publish(repository, some_files(4, 1), "again")
    check(repository)


@pytest.mark.parametrize("index", [True, False])
def test_at_zero_bytes_and_inodes_with_the_reserve_gone(
    path: Path, disk: TinyDisk, clock: SetClock, index: bool
) -> None:
    with open_tiny(path, disk, clock) as repository:
        for seed in range(5):
            publish(repository, some_files(seed, 5), f"s{seed}")
        repository.space.release(RESERVE)
        disk.leave(0)
    if not index:
        for file in (path / "index").iterdir():
            disk.unlink(str(file))
    disk.leave(0)
    disk.inodes_left = 0
    created, renamed = len(disk.created), len(disk.renamed)
    with open_tiny(path, disk, clock) as repository:
        assert mode(repository) is Mode.EMERGENCY
        with pytest.raises(NoSpaceError, match="reserve"):
            publish(repository, some_files(9), "no")
        for seed in range(4):
            repository.delete(repository.find(f"s{seed}"))
        repository.undelete(repository.snapshots.find_trash("s3"))
        assert repository.recovery.deleted() > RESERVE
        assert [slot.name for slot in repository.listed()] == ["s3", "s4"]
        for seed in (3, 4):
            assert read_files(repository, repository.find(f"s{seed}")) == some_files(seed, 5)
        assert repository.space.reserve().whole
        disk.inodes_left = 0
        disk.leave(3 * SEGMENT)
        assert repository.recovery.look() is Mode.READ_ONLY
        assert (disk.created[created:], disk.renamed[renamed:]) == ([], [])
        disk.inodes_left = 1
        assert repository.recovery.look() is Mode.NORMAL
        check(repository)


def test_without_inodes_whole_packs_give_them_back(repository: Repository, disk: TinyDisk) -> None:
    repository.delete(publish(repository, some_files(1, 30), "gone"))
    disk.inodes_left = 0
    publish(repository, some_files(2, 20), "new")
    assert mode(repository) is Mode.NORMAL
    assert read_files(repository, repository.find("new")) == some_files(2, 20)


class _Blind(TinyProbe):
    """Sees room that is not there: a quota of the user, say."""

    def available_bytes(self) -> int:
        return 1 << 30

    allocatable_bytes = growth_bytes = available_bytes


def test_room_that_only_the_probe_sees(path: Path, disk: TinyDisk, clock: SetClock) -> None:
    """Bounded tries, then read-only; and garbage still pays."""
    with Repository.open(path, writable=True, clock=clock, calls=disk, probe=_Blind(disk)) as repository:
        repository.recovery.settings = RecoverySettings(margin_bytes=0)
        repository.delete(publish(repository, some_files(1), "gone"))
        disk.leave(0)
        publish(repository, some_files(2, 4), "new")
        assert read_files(repository, repository.find("new")) == some_files(2, 4)
        disk.leave(0)
        refused = disk.refused
        with pytest.raises(NoSpaceError):
            publish(repository, some_files(3, 20), "no")
        assert disk.refused - refused < 60
        assert mode(repository) is Mode.READ_ONLY
        assert repository.recovery.look() is Mode.READ_ONLY, "the same room as before"


class _Deaf(TinyProbe):
    """Answers nothing."""

    def available_bytes(self) -> int:
        raise VolumeError("no answer", 5)

    allocatable_bytes = growth_bytes = capacity_bytes = available_bytes


def test_a_probe_that_fails_stops_nobody(path: Path, disk: TinyDisk, clock: SetClock) -> None:
    with Repository.open(path, writable=True, clock=clock, calls=disk, probe=_Deaf(disk)) as repository:
        assert mode(repository) is Mode.NORMAL
        repository.recovery.look()
        assert repository.recovery.level.value == "unknown"
        publish(repository, some_files(1), "a")


# --- everything at random ------------------------------------------------------------------------------------------


class _Chance:
    """Does anything at all to one repository on one disk, by chance."""

    def __init__(self, path: Path, clock: SetClock, seed: int) -> None:
        self.path, self.clock = path, clock
        self.rng = random.Random(seed)
        self.disk = tiny_disk(path, self.rng.choice([100, 160, 300]) * KIB)
        self.contents: dict[str, int] = {}
        self.repository = open_tiny(path, self.disk, clock)
        self.number = 0

    def anything(self) -> None:
        """One thing of ten; storing more often than others."""
        doings = [self.store, self.delete, self.undelete, self.gc, self.fill, self.look, self.again, self.thief]
        self.rng.choice([self.store, self.store, *doings])()

    def store(self) -> None:
        self.number += 1
        self.repository.recovery.settings = RecoverySettings(auto_delete=self.rng.random() < 0.3)
        try:
            if self.rng.random() < 0.5:
                files = some_files(self.number, self.rng.randint(1, 12))
                name = publish(self.repository, files, f"n{self.number}").name
            else:
                self.clock.pass_days(1)
                name = implicit(self.repository, self.number, source=f"h:/{self.rng.choice('ab')}", count=4).name
            self.contents[name] = self.number
        except NoSpaceError:
            if self.rng.random() < 0.5:
                self.repository.recovery.give_up()

    def delete(self) -> None:
        if self.repository.listed():
            self.repository.delete(self.rng.choice(self.repository.listed()))
            if self.rng.random() < 0.7:
                self.repository.recovery.deleted()

    def undelete(self) -> None:
        if self.repository.trash():
            self.repository.undelete(self.rng.choice(self.repository.trash()))

    def gc(self) -> None:
        self.repository.gc(safety=self.rng.choice([None, Safety.FULL, Safety.NONE]))

    def fill(self) -> None:
        self.disk.leave(self.rng.choice([0, 3, 12, 40, 80]) * KIB)

    def look(self) -> None:
        self.repository.recovery.look()
        self.repository.recovery.finish()

    def again(self) -> None:
        self.repository.close()
        self.repository = open_tiny(self.path, self.disk, self.clock)

    def thief(self) -> None:
        self.disk.thief = not self.disk.thief

    def verify(self) -> None:
        """What must hold at every moment."""
        if mode(self.repository) is Mode.NORMAL:
            assert self.repository.space.reserve().whole
        listed = self.repository.listed()
        for slot in self.rng.sample(listed, min(2, len(listed))):
            files = read_files(self.repository, slot)
            assert files == some_files(self.contents[slot.name], len(files))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_nothing_is_lost_and_there_is_a_way_back(path: Path, clock: SetClock, seed: int) -> None:
    chance = _Chance(path, clock, seed)
    try:
        for _ in range(40):
            chance.anything()
            chance.verify()
        chance.disk.thief = False
        chance.disk.capacity_blocks += 100
        chance.disk.leave(300 * KIB)
        assert chance.repository.recovery.look() is Mode.NORMAL
        publish(chance.repository, some_files(999), "last")
        check(chance.repository)
    finally:
        chance.repository.close()
