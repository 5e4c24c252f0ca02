"""Power cuts at any moment of a repacking: every snapshot reads back, and the next collection goes on from there."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from repository.errors import BallastError
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.units import KIB, MIB
from tests.crash.images import SYNCS, recover, verify, verify_check
from tests.crash.workload import Workload, found
from tests.support.bare import BareCalls, BareRecordingCalls
from tests.support.calls import Operation
from tests.support.crash import Disk
from tests.support.repositories import SetClock, open_for_writing, publish, read_files

pytestmark = pytest.mark.slow

Files = dict[str, bytes]
FILES: Final = 120
IMAGES: Final = 24


class Session:
    """A repository on a volume that neither allocates nor punches, full of mostly dead packs; and a collection on
    record that repacks them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "r"
        self.folder = folder
        self.clock = SetClock()
        self.rng = random.Random(seed)
        found(self.path, self.clock)
        self.wanted = self._fill()
        self.disk = Disk.of(self.path)
        calls = BareRecordingCalls()
        with open_for_writing(self.path, self.clock, calls) as repository:
            self.before = {info.index for info in repository.store.packs()}
            calls.mark("collecting")
            self.freed_bytes = repository.collector.collect(Safety.NONE, exactness=False).freed_bytes
            calls.mark("collected")
            publish(repository, self._files(9, 3), "later", parent=repository.find("b"))
            calls.mark("published")
            self.after = {info.index for info in repository.store.packs()}
        self.log = calls.log

    def _files(self, seed: int, count: int) -> Files:
        rng = random.Random(seed)
        return {f"{seed}-{number:03d}": rng.randbytes(rng.randint(9 * KIB, 60 * KIB)) for number in range(count)}

    def _fill(self) -> dict[str, Files]:
        files = self._files(1, FILES)
        wanted = {
            "a": {name: data for number, (name, data) in enumerate(files.items()) if number % 9 == 0},
            "b": {name: data for number, (name, data) in enumerate(files.items()) if number % 11 == 0},
        }
        with open_for_writing(self.path, self.clock, BareCalls()) as repository:
            whole = publish(repository, files, "whole")
            slot = publish(repository, wanted["a"], "a")
            publish(repository, wanted["b"], "b", parent=slot)
            repository.delete(whole)
        return wanted

    def marked(self, text: str) -> int:
        return next(at for at, one in enumerate(self.log) if one.name == "mark" and one.path == text)

    def images(self, count: int) -> Iterator[tuple[int, Path]]:
        """Images of power cuts within the collection, many of them beside a sync."""
        first, last = self.marked("collecting"), self.marked("published")
        syncs = [at for at, one in enumerate(self.log) if one.name in ("fsync", "fdatasync") and first < at < last]
        cuts = {self.rng.choice(syncs) + self.rng.randint(0, 1) for _ in range(count)}
        cuts |= {self.rng.randint(first, last) for _ in range(count - len(cuts))}
        target = self.folder / "image"
        done = 0
        for cut in sorted(cuts):
            for operation in self.log[done:cut]:
                self.disk.take(operation)
            done = cut
            self.disk.crash(target, self.rng)
            yield cut, target
            shutil.rmtree(target)

    def verify(self, image: Path, cut: int) -> None:
        """All is there, and goes on: a collection, a snapshot gone, another collection, and no record of it left."""
        calls = BareCalls()
        with open_for_writing(image, self.clock, calls) as repository:
            _same(repository, self.wanted)
            verify_check(image)
            freed = repository.gc(safety=Safety.NONE).freed_bytes
            _same(repository, self.wanted)
            if cut < self.marked("collected"):
                held = sum(info.allocated_bytes for info in repository.store.packs() if info.sealed)
                assert held < 2 * MIB, f"{held} bytes are held after {freed} came free"
            repository.delete(repository.find("a"))
            repository.gc(safety=Safety.NONE)
            _same(repository, {"b": self.wanted["b"]})
        verify_check(image)


def _same(repository: Repository, wanted: dict[str, Files]) -> None:
    for name, files in wanted.items():
        assert read_files(repository, repository.find(name)) == files


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.logs("pack.header_damaged", "index.segment_discarded")
def test_a_power_cut_while_packs_are_emptied(memory_folder: Path, seed: int) -> None:
    session = Session(memory_folder, seed)
    assert session.freed_bytes > 1 * MIB, "nothing was repacked"
    assert not session.before & session.after, "an old pack stayed"
    for cut, image in session.images(IMAGES):
        session.verify(image, cut)


MISSING: Final[dict[str, Callable[[Operation], bool]]] = {
    "the copies": lambda one: one.name == "fdatasync" and one.path.endswith(".pack"),
    "the slots": lambda one: one.name == "fdatasync" and one.path.endswith("/catalog"),
}


@pytest.mark.logs("pack.header_damaged", "index.segment_discarded", "record.damaged", "pack.directory_damaged")
@pytest.mark.parametrize("what", MISSING)
def test_a_sync_that_is_left_out_shows(memory_folder: Path, what: str) -> None:
    session = Session(memory_folder, 5)
    session.log[:] = [Operation("mark", "left out") if MISSING[what](one) else one for one in session.log]
    failures = 0
    for cut, image in session.images(3 * IMAGES):
        try:
            session.verify(image, cut)
        except (AssertionError, BallastError):
            failures += 1
    assert failures


class BareSession:
    """A session of `live` as in test_power_loss, where nothing can be allocated or punched: collections repack."""

    def __init__(self, folder: Path, seed: int, steps: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        path = folder / "session"
        found(path, SetClock())
        self.disk = Disk.of(path)
        calls = BareRecordingCalls()
        work = Workload(path, seed, calls)
        work.run(steps)
        work.live.kill()
        self.clock, self.history, self.log = work.clock, work.history, list(calls.log)

    def images(self, count: int) -> Iterator[tuple[int, Path]]:
        syncs = [at for at, one in enumerate(self.log) if one.name in SYNCS]
        cuts = sorted(self.rng.choice(syncs) + self.rng.randint(0, 1) for _ in range(count))
        done = 0
        for cut in cuts:
            for operation in self.log[done:cut]:
                self.disk.take(operation)
            done = cut
            self.disk.crash(self.folder / "image", self.rng)
            yield cut, self.folder / "image"
            shutil.rmtree(self.folder / "image")


@pytest.mark.logs("pack.header_damaged", "index.segment_discarded")
@pytest.mark.parametrize("seed", (201, 202, 207, 209))
def test_nothing_promised_is_missing(memory_folder: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="repository.repack")
    session = BareSession(memory_folder, seed, 200)
    assert any(record.msg == "repack.round" for record in caplog.records), "no collection repacked"
    assert not any(one.name in ("punch", "fallocate") for one in session.log)
    for cut, image in session.images(12):
        live = recover(image, session.clock, BareRecordingCalls())
        verify(live, session.history, cut)
        live.repository.gc(safety=Safety.NONE)
        live.kill()
        again = recover(image, session.clock, BareRecordingCalls())
        verify_check(image)
        again.kill()
