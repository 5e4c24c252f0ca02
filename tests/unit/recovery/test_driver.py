"""The driver: many threads, interruptions, and errors that are not about room; on a disk of a few dozen blocks."""

import contextlib
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from repository.errors import NoSpaceError, ReadOnlyError, SyncFailedError
from repository.format.catalog import SnapshotKind
from repository.format.journal import JournalMark
from repository.ids import PackIndex
from repository.policy.collect import Safety
from repository.policy.rungs import Mode
from repository.publish import SnapshotWish
from repository.recovery import Recovery, RecoverySettings
from repository.repo import Repository
from repository.units import KIB
from tests.support.amounts import seeds
from tests.support.repositories import SetClock, publish, read_files, write_tree
from tests.support.tinydisk import RESERVE, TinyDisk, open_tiny, tiny_disk

pytestmark = pytest.mark.logs("index.not_written", "pack.not_sealed")
PATIENCE_S: Final = 60


def some_files(seed: int, count: int = 8) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"f{number}": rng.randbytes(rng.randint(1000, 4000)) for number in range(count)}


def mode(repository: Repository) -> Mode:
    return repository.recovery.mode


def unfinished(repository: Repository) -> bool:
    return repository.recovery.unfinished


def fill(repository: Repository) -> None:
    """Read-only mode: named snapshots until none fits."""
    with pytest.raises(NoSpaceError):
        for seed in range(1000, 1100):
            publish(repository, some_files(seed), f"s{seed}")


def all_at_once(works: list[Callable[[], None]]) -> list[BaseException]:
    """Run each on a thread of its own to its end; what they raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a deadlock"
    return errors


def at_release(repository: Repository, then: Callable[[], None]) -> None:
    """Run `then` each time that the reserve is about to be lent."""
    release = repository.space.release

    def instead(nbytes: int) -> int:
        then()
        return release(nbytes)

    repository.space.release = instead  # type: ignore[method-assign]


def queue_up(repository: Repository, waiters: int) -> list[BaseException]:
    """One climbs, and is stopped at its first step until `waiters` others stand behind it."""
    recovery = repository.recovery
    climbed = 0

    def stop() -> None:
        nonlocal climbed
        climbed += 1
        until = time.monotonic() + PATIENCE_S
        while recovery.waiting < waiters:
            assert time.monotonic() < until
            time.sleep(0.002)

    at_release(repository, stop)

    def climb() -> None:
        recovery.climb(NoSpaceError("full", 4 * KIB))

    errors = all_at_once([climb] * (waiters + 1))
    assert climbed == 1
    return errors


def test_who_waits_shares_the_end_of_a_climb_that_helped(repository: Repository, disk: TinyDisk) -> None:
    repository.delete(publish(repository, some_files(1, 30), "gone"))
    disk.leave(0)
    assert queue_up(repository, 11) == []
    assert mode(repository) is Mode.NORMAL
    assert disk.free_bytes() >= 6 * 4 * KIB, "more than the first one waits for was collected at once"


def test_who_waits_shares_the_end_of_a_climb_that_did_not(repository: Repository, disk: TinyDisk) -> None:
    publish(repository, some_files(1, 30), "kept")
    disk.leave(0)
    errors = queue_up(repository, 11)
    assert len(errors) == 12
    assert all(isinstance(error, NoSpaceError) for error in errors)
    assert mode(repository) is Mode.READ_ONLY
    assert repository.space.reserve().whole


def test_in_read_only_mode_growth_is_refused_without_a_system_call(repository: Repository, disk: TinyDisk) -> None:
    fill(repository)
    asked = disk.asked
    for _ in range(100):
        with pytest.raises(NoSpaceError):
            repository.store.claim(64 * KIB, 1)
    assert disk.asked == asked
    assert repository.recovery.refused_bytes >= 8 * KIB
    repository.recovery.changed()
    with pytest.raises(NoSpaceError):
        repository.store.claim(64 * KIB, 1)
    assert disk.asked > asked, "something may have changed: one climb"


def test_readers_of_a_mode_never_wait(repository: Repository, disk: TinyDisk) -> None:
    """While somebody drives, the mode is told, and a look of the monitor returns at once."""
    repository.delete(publish(repository, some_files(1, 20), "gone"))
    disk.leave(0)
    seen: list[Mode] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append(repository.recovery.look()))
        thread.start()
        thread.join(PATIENCE_S)

    at_release(repository, look)
    repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert seen == [Mode.EMERGENCY]


class _StopError(BaseException):
    """As KeyboardInterrupt, but not caught by pytest."""


@pytest.mark.parametrize("call", ["ftruncate", "punch", "unlink", "fallocate"])
def test_an_interruption_leaves_nothing_locked_and_the_reserve_comes_back(
    repository: Repository, disk: TinyDisk, call: str
) -> None:
    repository.delete(publish(repository, some_files(1, 30), "gone"))
    kept = publish(repository, some_files(2, 3), "kept")
    disk.leave(0)

    def stop() -> None:
        if mode(repository) is Mode.EMERGENCY:
            del disk.before[call]
            raise _StopError

    disk.before[call] = stop
    with pytest.raises(_StopError):
        repository.recovery.climb(NoSpaceError("full", 60 * KIB))
    assert call not in disk.before, "planned, and never happened"
    disk.before.clear()
    assert mode(repository) in (Mode.EMERGENCY, Mode.NORMAL)
    repository.recovery.look()
    assert repository.space.reserve().whole
    publish(repository, some_files(3, 4), "new")
    assert read_files(repository, kept) == some_files(2, 3)
    report = repository.check(read_data=True)
    assert report.is_sound, report.text()


@pytest.mark.logs("store.failed", "index.not_written")
@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_sync_that_fails_is_no_matter_of_room(
    repository: Repository, disk: TinyDisk, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = publish(repository, some_files(2, 3), "kept")
    repository.delete(publish(repository, some_files(1, 14), "gone"))
    disk.leave(0)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, call, fail)
    with pytest.raises(ReadOnlyError, match="Writing has stopped"):
        repository.recovery.climb(NoSpaceError("full", 60 * KIB))
    monkeypatch.undo()
    assert mode(repository) is Mode.FAILED
    with pytest.raises((NoSpaceError, ReadOnlyError, SyncFailedError)):
        publish(repository, some_files(3, 4), "no")
    assert repository.recovery.look() is Mode.FAILED
    with pytest.raises(ReadOnlyError):
        repository.gc(safety=Safety.NONE)
    assert repository.recovery.deleted() == 0
    assert read_files(repository, kept) == some_files(2, 3)


@pytest.mark.parametrize("call", ["punch", "unlink"])
def test_an_error_of_the_volume_frees_nothing_and_wedges_nothing(
    repository: Repository, disk: TinyDisk, call: str
) -> None:
    kept = publish(repository, some_files(2, 3), "kept")
    repository.delete(publish(repository, some_files(1, 30), "gone"))
    disk.leave(0)

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before[call] = fail
    try:
        repository.recovery.climb(NoSpaceError("full", 90 * KIB))
    except NoSpaceError:
        assert mode(repository) is Mode.READ_ONLY
    assert repository.space.reserve().whole
    del disk.before[call]
    repository.recovery.changed()
    repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert mode(repository) is Mode.NORMAL
    assert read_files(repository, kept) == some_files(2, 3)


def test_a_climb_within_a_climb_is_refused(repository: Repository, disk: TinyDisk) -> None:
    """Whoever makes room must not ask for it: it would wait for itself."""
    repository.delete(publish(repository, some_files(1, 20), "gone"))
    disk.leave(0)
    refused: list[NoSpaceError] = []

    def ask() -> None:
        try:
            repository.store.claim(1 << 20, 1)
        except NoSpaceError as error:
            refused.append(error)

    at_release(repository, ask)
    repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert len(refused) == 1


def test_after_stop_nobody_climbs(repository: Repository, disk: TinyDisk) -> None:
    repository.delete(publish(repository, some_files(1, 20), "gone"))
    disk.leave(0)
    repository.recovery.stop()
    with pytest.raises(NoSpaceError):
        publish(repository, some_files(2, 20), "new")
    assert [slot.name for slot in repository.trash()] == ["gone"]


def test_the_margin_is_freed_in_the_background_and_gives_way(repository: Repository, disk: TinyDisk) -> None:
    repository.recovery.settings = RecoverySettings(margin_bytes=60 * KIB)
    for seed in range(4):
        repository.delete(publish(repository, some_files(seed, 10), f"gone{seed}"))
    disk.leave(0)
    repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert unfinished(repository)
    then = disk.free_bytes()
    assert 4 * KIB <= then < 60 * KIB
    repository.recovery.finish()
    assert not unfinished(repository)
    assert disk.free_bytes() > then
    asked = disk.asked
    repository.recovery.finish()
    assert disk.asked == asked, "nothing is left to do"


def test_entering_critical_asks_for_one_collection(repository: Repository, disk: TinyDisk) -> None:
    recovery = repository.recovery
    disk.capacity_blocks *= 10
    recovery.look()
    recovery.take_due_collection()
    disk.leave(8 * KIB)
    recovery.look()
    recovery.look()
    assert recovery.level.value == "critical"
    assert recovery.take_due_collection()
    assert not recovery.take_due_collection()


def test_what_a_climb_rests_on_is_in_memory_before_the_disk_is_full(repository: Repository, disk: TinyDisk) -> None:
    disk.capacity_blocks *= 10
    kept = repository.collector.planner.later_copies
    for level, part, in_memory in (("healthy", 0.5, False), ("warning", 0.075, True), ("healthy", 0.5, False)):
        disk.leave(int(disk.capacity_blocks * part) * 4 * KIB)
        repository.recovery.look()
        assert repository.recovery.level.value == level
        assert (kept() is not None) == in_memory, level


def test_opening_waits_for_nothing_that_only_a_climb_wants(
    repository: Repository, disk: TinyDisk, clock: SetClock
) -> None:
    disk.capacity_blocks *= 10
    repository.close()
    disk.leave(int(disk.capacity_blocks * 0.04) * 4 * KIB)
    with open_tiny(Path(disk.root), disk, clock) as again:
        assert again.recovery.level.value == "critical"
        assert again.collector.planner.later_copies() is None
        again.recovery.look()
        assert again.collector.planner.later_copies() is not None


def test_the_level_is_looked_at_before_each_segment(repository: Repository, disk: TinyDisk) -> None:
    disk.capacity_blocks *= 10
    repository.recovery.look()
    assert repository.recovery.level.value == "healthy"
    disk.leave(60 * KIB)
    publish(repository, some_files(1), "a")
    assert repository.recovery.level.value == "critical"


class _Storm:
    """Writers, a committer of `live`, a deleter, a monitor and a filler, all at once."""

    def __init__(self, repository: Repository, disk: TinyDisk, seed: int) -> None:
        self.repository, self.disk, self.seed = repository, disk, seed
        self.stored: dict[str, int] = {}
        self.over = threading.Event()
        self.recovery: Recovery = repository.recovery

    def writer(self, number: int) -> None:
        rng = random.Random(self.seed * 100 + number)
        for count in range(6):
            seed = self.seed * 10_000 + number * 100 + count
            name = f"w{seed}"
            try:
                publish(self.repository, some_files(seed, rng.randint(1, 5)), name)
                self.stored[name] = seed
            except NoSpaceError:
                self.recovery.give_up()

    def committer(self) -> None:
        for count in range(8):
            wish = SnapshotWish(SnapshotKind.NAMED, f"live{self.seed}-{count}")
            try:
                with self.repository.store.lease() as lease:
                    tree = write_tree(self.repository, some_files(count, 3), lease, source="live")
                    self.repository.commit(
                        tree, lease, journal=JournalMark(0, 0), journal_floor=PackIndex(0), wish=wish
                    )
            except NoSpaceError:
                continue

    def deleter(self) -> None:
        rng = random.Random(self.seed)
        while not self.over.is_set():
            listed = self.repository.listed()
            if len(listed) > 3:
                self.repository.delete(rng.choice(listed))
                self.recovery.deleted()
            time.sleep(0.005)

    def monitor(self) -> None:
        while not self.over.is_set():
            self.recovery.look()
            self.recovery.finish()
            time.sleep(0.003)

    def filler(self) -> None:
        rng = random.Random(self.seed + 1)
        while not self.over.is_set():
            self.disk.leave(rng.choice([0, 0, 8, 30, 80]) * KIB)
            time.sleep(0.004)


@pytest.mark.parametrize("seed", seeds(5, fast=2))
def test_a_storm_of_threads_ends_with_everything_there(repository: Repository, disk: TinyDisk, seed: int) -> None:
    """Nobody waits for ever, nothing acknowledged is lost, and the mode has a way back."""
    storm = _Storm(repository, disk, seed)
    errors: list[BaseException] = []
    behind = threading.Thread(
        target=lambda: errors.extend(all_at_once([storm.deleter, storm.monitor, storm.filler])), daemon=True
    )
    behind.start()
    works: list[Callable[[], None]] = [
        storm.committer,
        *(lambda number=number: storm.writer(number) for number in range(8)),
    ]
    try:
        errors += all_at_once(works)
    finally:
        storm.over.set()
        behind.join(PATIENCE_S)
    assert not behind.is_alive(), "a deadlock"
    assert errors == []
    for slot in repository.listed():
        if slot.name in storm.stored:
            files = read_files(repository, slot)
            assert files == some_files(storm.stored[slot.name], len(files))
    disk.capacity_blocks += 60
    disk.leave(200 * KIB)
    assert repository.recovery.look() is Mode.NORMAL
    assert repository.space.reserve().bytes_ >= RESERVE
    publish(repository, some_files(1, 2), "last")
    report = repository.check(read_data=True)
    assert report.is_sound, report.text()


def test_on_a_volume_that_cannot_punch_a_collection_gets_the_whole_reserve(
    repository: Repository, disk: TinyDisk
) -> None:
    """It has to copy what lives before it can free what is dead: with more room it frees more."""
    repository.volume.believe("B")
    for seed in range(6):
        publish(repository, some_files(seed, 4), f"s{seed}")
    for seed in (0, 2, 4):
        repository.delete(repository.find(f"s{seed}"))
    disk.leave(0)
    lent: list[int] = []
    release = repository.space.release

    def count(nbytes: int) -> int:
        lent.append(nbytes)
        return release(nbytes)

    repository.space.release = count  # type: ignore[method-assign]
    with contextlib.suppress(NoSpaceError):
        repository.recovery.climb(NoSpaceError("full", 400 * KIB))
    assert len(lent) == 2
    assert repository.space.reserve().whole
    for seed in (1, 3, 5):
        assert read_files(repository, repository.find(f"s{seed}")) == some_files(seed, 4)


def test_killed_at_any_point_of_a_climb(repository: Repository, disk: TinyDisk, clock: SetClock) -> None:
    """What a dead process leaves, before each call that lends, frees or gives back, opens and has lost nothing."""
    kept = publish(repository, some_files(2, 3), "kept")
    for seed in (3, 4, 5):
        repository.delete(publish(repository, some_files(seed, 12), f"gone{seed}"))
    disk.leave(0)
    root = Path(disk.root)
    left: list[Path] = []

    def die() -> None:
        if mode(repository) is Mode.EMERGENCY:
            left.append(root.with_name(f"left{len(left)}"))
            shutil.copytree(root, left[-1])

    for call in ("ftruncate", "punch", "unlink", "fallocate"):
        disk.before[call] = die
    repository.recovery.climb(NoSpaceError("full", 40 * KIB))
    disk.before.clear()
    assert len(left) >= 4
    for path in left:
        again = tiny_disk(path, 0)
        with open_tiny(path, again, clock) as opened:
            if mode(opened) is Mode.NORMAL:
                assert opened.space.reserve().whole
            assert [slot.name for slot in opened.listed()] == ["kept"]
            assert read_files(opened, kept) == some_files(2, 3)
            report = opened.check(read_data=True)
            assert report.is_sound, f"{path.name}: {report.text()}"
            again.leave(400 * KIB)
            assert opened.recovery.look() is Mode.NORMAL
            assert opened.space.reserve().whole
            publish(opened, some_files(9, 3), "new")
