"""An fsync that fails: nothing more is acknowledged, reading goes on, and the next mount finds all that was."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from repository.errors import SyncFailedError, VolumeError
from repository.format.journal import NodeGone
from repository.format.record import RecordKind
from repository.ids import FileId
from repository.policy.collect import Safety
from repository.repo import Repository
from tests.crash.history import History
from tests.crash.images import recover, verify
from tests.crash.workload import Workload, found
from tests.support.calls import Operation, RecordingCalls
from tests.support.crash import Disk
from tests.support.repositories import SetClock
from tests.support.sync_live import SyncLive, picture_of

pytestmark = pytest.mark.logs(
    "pack.header_damaged", "store.failed", "index.segment_discarded", "record.damaged", "events.not_written"
)

STEPS: Final = 120


class FailingSync(RecordingCalls):
    """The sync that would be operation number `at` of the log fails, once: the kernel tells of an error only once."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at
        self.fired = False

    def _meet(self, fd: int) -> None:
        if len(self.log) == self._at:
            self.fired = True
            self.log.append(Operation("sync_failed", self._paths[fd], length=self._at))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fdatasync(self, fd: int) -> None:
        self._meet(fd)
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._meet(fd)
        super().fsync(fd)


class _Reference:
    """A session in which all goes well: which syncs there are, and what was promised before each."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self.seed: Final = seed
        self._disk = self._fresh("reference")
        work = Workload(folder / "reference", seed)
        work.run(STEPS)
        work.live.kill()
        self.log: Final = work.calls.log
        self.history: Final[History] = work.history

    def _fresh(self, name: str) -> Disk:
        found(self._folder / name, SetClock())
        return Disk.of(self._folder / name)

    def syncs(self) -> list[int]:
        """Those that somebody waits for: the index is only a cache."""
        return [
            index
            for index, operation in enumerate(self.log)
            if operation.name in ("fdatasync", "fsync") and "/index" not in operation.path
        ]

    def failing(self, at: int) -> tuple[Workload, Disk]:
        """The same session up to the failure of its sync `at`."""
        path = self._folder / "failing"
        shutil.rmtree(path, ignore_errors=True)
        disk = self._fresh("failing")
        calls = FailingSync(at)
        work = Workload(path, self.seed, calls)
        with pytest.raises(SyncFailedError):
            work.run(STEPS)
        assert calls.fired
        assert [one.name for one in calls.log[:at]] == [one.name for one in self.log[:at]]
        return work, disk


def _is_stopped(live: SyncLive) -> None:
    """Whatever would acknowledge something now is refused, however often it is asked; reading is not."""
    repository = live.repository
    asked: list[Callable[[], object]] = [
        live.store.sync,
        lambda: live.store.put(RecordKind.CHUNK, [b"too late"], live.leases[0]),
        lambda: live.journal.write([NodeGone(FileId(99))], live.leases[1], 1),
        lambda: repository.gc(safety=Safety.NONE),
        repository.marks.unmounted,
        *(lambda slot=slot: repository.rename(slot, "too late") for slot in repository.listed() if not slot.pinned),
    ]
    for ask in asked * 2:
        with pytest.raises(VolumeError, match=r"Writing|durable"):
            ask()
    for slot in repository.listed():
        picture_of(repository, slot)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 64))
def test_nothing_is_acknowledged_after_it_and_nothing_before_it_is_lost(memory_folder: Path, seed: int) -> None:
    reference = _Reference(memory_folder, seed)
    rng = random.Random(seed)
    first = next(index for index, one in enumerate(reference.log) if one.name == "mark")
    for at in rng.sample([index for index in reference.syncs() if index > first], 8):
        work, disk = reference.failing(at)
        with Repository.open(work.path, writable=False) as reading:
            reading.check()
        if work.is_open:
            _is_stopped(work.live)
            work.live.kill()
        log = list(work.calls.log)
        _verify_power_cut(disk, log, memory_folder / "image", rng, reference.history, at)
        live = recover(work.path, work.clock)
        verify(live, reference.history, at)
        live.kill()


def _verify_power_cut(
    disk: Disk, log: list[Operation], image: Path, rng: random.Random, history: History, at: int
) -> None:
    for operation in log:
        disk.take(operation)
    disk.crash(image, rng)
    live = recover(image, SetClock())
    verify(live, history, at)
    live.kill()
    shutil.rmtree(image)
