"""Images of a recorded session, opened and checked against what had been promised."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from repository.repo import Repository
from tests.crash.history import History
from tests.crash.workload import CATALOG_SLOTS, Workload, found
from tests.support.calls import Operation, RecordingCalls
from tests.support.crash import Disk
from tests.support.repositories import SetClock
from tests.support.sync_live import SyncLive, picture_of
from tests.support.world import Picture, canonical, difference

SYNCS: Final = ("fdatasync", "fsync")


class Session:
    """A finished session: the disk as it was before, and the log of operations with its history."""

    def __init__(self, folder: Path, seed: int, steps: int, slots: int = CATALOG_SLOTS) -> None:
        self.folder: Final = folder
        self.path: Final = folder / "session"
        found(self.path, SetClock(), slots=slots)
        self._disk: Final = Disk.of(self.path)
        work = Workload(self.path, seed)
        work.run(steps)
        self.clock: Final = work.clock
        self.log: Final[list[Operation]] = list(work.calls.log)
        self.history: Final[History] = work.history
        self.written: Final[list[bytes]] = work.written
        self.rng: Final = random.Random(seed)
        work.live.kill()

    def cuts(self, count: int) -> list[int]:
        """Moments of a crash, in order: half right before or behind a sync, half anywhere."""
        syncs = [index for index, operation in enumerate(self.log) if operation.name in SYNCS]
        near = [index + self.rng.randint(0, 1) for index in self.rng.sample(syncs, min(count // 2, len(syncs)))]
        anywhere = [self.rng.randint(0, len(self.log)) for _ in range(count - len(near))]
        return sorted(near + anywhere)

    def disks(self, cuts: list[int]) -> Iterator[tuple[int, Disk]]:
        """The disk at each cut; it changes when the next is asked for. Once."""
        done = 0
        for cut in cuts:
            for operation in self.log[done:cut]:
                self._disk.take(operation)
            done = cut
            yield cut, self._disk

    def images(self, cuts: list[int]) -> Iterator[tuple[int, Path]]:
        """For each cut an image in a directory of its own, which is removed again when the next is asked for. Once."""
        target = self.folder / "image"
        for cut, disk in self.disks(cuts):
            disk.crash(target, self.rng)
            yield cut, target
            shutil.rmtree(target)


def recover(image: Path, clock: SetClock, calls: RecordingCalls | None = None) -> SyncLive:
    """Open for writing, as the next mount does."""
    clock.pass_days(0.01)
    return SyncLive(image, calls=calls, clock=clock)


def verify(live: SyncLive, history: History, cut: int) -> Picture:
    """Everything promised before `cut` is there, nothing else is, and check finds nothing. Returns the live tree."""
    picture = canonical(live.picture())
    allowed = history.live.allowed(cut)
    assert picture in allowed, f"live is not as promised:\n{difference(picture, allowed[-1])}"
    _verify_snapshots(live.repository, history, cut)
    verify_check(live.repository.path)
    return picture


def verify_check(path: Path) -> None:
    """`ballast check --read-data`, as another process would run it."""
    with Repository.open(path, writable=False) as repository:
        report = repository.check(read_data=True)
    assert not report.findings, report.text()


def _verify_snapshots(repository: Repository, history: History, cut: int) -> None:
    slots = {slot.snapshot_id: slot for slot in repository.catalog.slots()}
    assert slots.keys() <= history.snapshots.keys(), "a snapshot that nobody made"
    for snapshot_id, register in history.snapshots.items():
        slot = slots.get(snapshot_id)
        state = None if slot is None else (slot.state, slot.name, slot.pinned)
        assert state in register.allowed(cut), f"snapshot {snapshot_id}: {state}, not {register.allowed(cut)}"
        if slot is not None:
            contents = canonical(picture_of(repository, slot))
            wanted = history.contents[snapshot_id]
            assert contents == wanted, f"snapshot '{slot.name}':\n{difference(contents, wanted)}"


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file under a directory, for comparing before and after."""
    found: dict[str, bytes] = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
