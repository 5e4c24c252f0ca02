"""Collections while others store, publish and delete: what is found by a look-up is never freed under it."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroaring import BitMap64

from repository.errors import BallastError, NoSuchSnapshotError
from repository.planning import Wish
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.units import KIB
from tests.support.repositories import SetClock, make, open_for_writing, publish, read_files, write_tree
from tests.support.stores import noise


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    clock = SetClock()
    make(tmp_path / "r", clock)
    return open_for_writing(tmp_path / "r", clock)


def before_condemning(repository: Repository, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Let another thread do `action` after the plan was made and before anything is condemned."""
    real = repository.store.condemn
    once = [action]

    def condemn(numbers: BitMap64) -> BitMap64:
        if once:
            thread = threading.Thread(target=once.pop())
            thread.start()
            thread.join(10)
            assert not thread.is_alive()
        return real(numbers)

    monkeypatch.setattr(repository.store, "condemn", condemn)


def test_a_hit_between_plan_and_condemning_is_spared(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"f{number}": noise(number, 100 * KIB) for number in range(6)}
    publish(repository, files, "old")
    repository.delete(repository.find("old"))
    lease = repository.store.lease()
    trees = []
    before_condemning(
        repository, monkeypatch, lambda: trees.append(write_tree(repository, {"kept": files["f3"]}, lease))
    )
    report = repository.gc(safety=Safety.NONE)
    assert report.freed_bytes > 4 * 90 * KIB
    slot = repository.publish(trees[0], lease, name="new")
    lease.close()
    repository.gc(safety=Safety.NONE)
    assert read_files(repository, slot) == {"kept": files["f3"]}
    assert repository.check(read_data=True).findings == ()
    repository.close()


def test_a_snapshot_published_after_the_roots_were_read_is_spared(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds everything by look-up, is published and gives up its lease while the plan is made."""
    files = {f"f{number}": noise(number, 100 * KIB) for number in range(6)}
    publish(repository, files, "old")
    publish(repository, {"other": noise(77, 100 * KIB)}, "other")
    repository.delete(repository.find("old"))
    planner = repository.collector.planner
    real = planner.plan_from
    once = [True]

    def plan(kept: BitMap64, wish: Wish) -> object:
        made = real(kept, wish)
        if once:
            once.pop()
            publish(repository, files, "new")
        return made

    monkeypatch.setattr(planner, "plan_from", plan)
    repository.gc(safety=Safety.NONE)
    assert not once
    assert read_files(repository, repository.find("new")) == files
    assert repository.check(read_data=True).findings == ()
    repository.close()


@pytest.mark.slow
def test_everybody_at_once(repository: Repository) -> None:
    pool = [noise(number, 40 * KIB) for number in range(24)]
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(work: Callable[[random.Random], None], seed: int) -> threading.Thread:
        def run() -> None:
            rng = random.Random(seed)
            try:
                while not stop.is_set():
                    work(rng)
            except BaseException as error:
                errors.append(error)
                stop.set()

        return threading.Thread(target=run)

    expected: dict[str, dict[str, bytes]] = {}

    def make_one(rng: random.Random) -> None:
        files = {f"f{number}": rng.choice(pool) for number in range(4)}
        name = f"s{rng.getrandbits(60):x}"
        publish(repository, files, name)
        expected[name] = files

    def delete_one(rng: random.Random) -> None:
        listed = repository.listed()
        if len(listed) > 4:
            try:
                repository.delete(rng.choice(listed))
            except NoSuchSnapshotError:
                return

    def undelete_one(rng: random.Random) -> None:
        trash = repository.trash()
        if trash:
            try:
                repository.undelete(rng.choice(trash))
            except BallastError:
                return

    def collect(_: random.Random) -> None:
        repository.gc(safety=Safety.NONE)

    def read_one(rng: random.Random) -> None:
        listed = [slot for slot in repository.listed() if slot.name in expected]
        if listed:
            slot = rng.choice(listed)
            with repository.using(slot):
                assert read_files(repository, slot) == expected[slot.name]

    def read_if_there(rng: random.Random) -> None:
        try:
            read_one(rng)
        except NoSuchSnapshotError:
            return

    works = [make_one, make_one, delete_one, undelete_one, collect, read_if_there]
    threads = [guarded(work, seed) for seed, work in enumerate(works)]
    for thread in threads:
        thread.start()
    stop.wait(6)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    for slot in repository.listed():
        assert read_files(repository, slot) == expected[slot.name]
    report = repository.check(read_data=True)
    assert report.is_sound, report.text()
    repository.close()
