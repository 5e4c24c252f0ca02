"""Power cuts and failing calls: what was acknowledged is there, and nothing else breaks."""

import errno
import random
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from repository.errors import BallastError
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.storage.probe import PROBE_NAME
from repository.units import KIB
from tests.support.calls import Fault, FaultyCalls, Operation, RecordingCalls
from tests.support.crash import Image
from tests.support.repositories import SetClock, make, open_for_writing, publish, read_files
from tests.support.stores import noise

SAMPLES: Final = 24
Files = Mapping[str, bytes]
COMMON: Final[Files] = {f"c{number}": noise(number, 30 * KIB) for number in range(3)}
FILES: Final[dict[str, Files]] = {
    name: {**COMMON, **{f"{name}{number}": noise(100 * index + number, 60 * KIB) for number in range(6)}}
    for index, name in enumerate(("a", "b", "c", "d"), 1)
}


class BrokenCalls(FaultyCalls):
    """Faults on purpose, and a log of marks only."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(faults=[fault])
        self.log: list[Operation] = []

    def mark(self, text: str) -> None:
        self.log.append(Operation("mark", text))


def story(path: Path, clock: SetClock, calls: RecordingCalls | BrokenCalls) -> None:
    """What happens; each acknowledgement is a mark that says which snapshots exist from now on."""

    def acknowledge(*names: str) -> None:
        calls.mark("have " + " ".join(names))

    def begin(*names: str) -> None:
        calls.mark("may " + " ".join(names))

    with open_for_writing(path, clock, calls) as repository:
        calls.mark("have")
        begin("a")
        publish(repository, FILES["a"], "a")
        acknowledge("a")
        begin("b")
        publish(repository, FILES["b"], "b")
        acknowledge("a", "b")
        begin("-a")
        repository.delete(repository.find("a"))
        acknowledge("b")
        repository.gc(safety=Safety.NONE)
        begin("c")
        publish(repository, FILES["c"], "c")
        acknowledge("b", "c")
    with open_for_writing(path, clock, calls) as repository:
        begin("d")
        publish(repository, FILES["d"], "d")
        acknowledge("b", "c", "d")
        begin("-c")
        repository.delete(repository.find("c"))
        acknowledge("b", "d")
        repository.gc(safety=Safety.NONE)
        acknowledge("b", "d")


def expected(operations: list[Operation]) -> tuple[set[str], set[str]]:
    """What must be listed after these operations, and what may or may not be."""
    sure: set[str] = set()
    unsure: set[str] = set()
    for operation in operations:
        if operation.name == "mark" and operation.path.startswith("have"):
            sure, unsure = set(operation.path.split()[1:]), set()
        elif operation.name == "mark" and operation.path.startswith("may"):
            unsure = {name.lstrip("-") for name in operation.path.split()[1:]}
    return sure - unsure, unsure


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Operation], int]:
    """A whole story's calls, and how many of them made the empty repository."""
    path = tmp_path_factory.mktemp("story") / "repository"
    calls, clock = RecordingCalls(), SetClock()
    make(path, clock, calls=calls)
    # The probe of the volume leaves nothing behind; its file is renamed while it is open, which an Image does not know.
    calls.log = [operation for operation in calls.log if PROBE_NAME not in operation.path]
    founded = len(calls.log)
    story(path, clock, calls)
    return path, calls.log, founded


@pytest.mark.slow
@pytest.mark.parametrize("sample", range(SAMPLES))
@pytest.mark.logs("pack.header_damaged", "pack.directory_damaged", "index.discarded")
def test_after_a_power_cut(recorded: tuple[Path, list[Operation], int], tmp_path: Path, sample: int) -> None:
    path, log, founded = recorded
    rng = random.Random(sample)
    end = founded + (len(log) - founded) * sample // SAMPLES + rng.randint(0, (len(log) - founded) // SAMPLES)
    operations = log[:end]
    target = tmp_path / "image"
    target.mkdir()
    Image(path, operations, rng).write_to(target)
    sure, unsure = expected(operations)
    clock = SetClock()
    with open_for_writing(target, clock) as repository:
        verify(repository, sure, unsure, end)
        repository.gc(safety=Safety.NONE)
        verify(repository, sure, unsure, end)
        publish(repository, FILES["a"], "afterwards")
    with open_for_writing(target, clock) as repository:
        assert read_files(repository, repository.find("afterwards")) == FILES["a"]
        verify(repository, sure, unsure | {"afterwards"}, end)
    shutil.rmtree(target)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("name", "nth"),
    [
        *[("pwritev", nth) for nth in (1, 2, 3, 5, 8, 13)],
        *[("fdatasync", nth) for nth in (1, 2, 3, 4, 5, 7, 9)],
        *[("fsync", nth) for nth in (1, 2)],
        *[("fallocate", nth) for nth in (1, 2)],
        ("punch", 1),
        ("create", 2),
    ],
)
@pytest.mark.slow
@pytest.mark.logs("store.failed", "catalog.mirror_failed", "events.not_written", "pack.not_sealed", "pack.no_stub")
def test_after_a_failed_call(tmp_path: Path, name: str, nth: int, number: int) -> None:
    """The nth call fails, the process gives up there; what it acknowledged is there, and everything goes on."""
    path, clock = tmp_path / "r", SetClock()
    make(path, clock)
    calls = BrokenCalls(Fault(name, number, nth))
    with suppress(BallastError):
        story(path, clock, calls)
    calls.check()
    sure, unsure = expected(calls.log)
    with open_for_writing(path, clock) as repository:
        verify(repository, sure, unsure, nth)
        repository.gc(safety=Safety.NONE)
        verify(repository, sure, unsure, nth)
        publish(repository, FILES["a"], "afterwards")
        assert read_files(repository, repository.find("afterwards")) == FILES["a"]


def verify(repository: Repository, sure: set[str], unsure: set[str], end: int) -> None:
    listed = {slot.name for slot in repository.listed()}
    assert sure <= listed <= sure | unsure, f"after call {end}"
    for slot in repository.listed():
        if slot.name in FILES:
            assert read_files(repository, slot) == FILES[slot.name], f"'{slot.name}' after call {end}"
    report = repository.check(read_data=True)
    assert report.is_sound, f"after call {end}: {report.text()}"
