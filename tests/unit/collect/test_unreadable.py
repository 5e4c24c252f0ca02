"""A record of a punched pack that cannot be read for a moment was once taken for punched, and then was."""

import errno
import itertools
from pathlib import Path

import pytest

from repository.errors import BallastError
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.units import KIB
from tests.support.calls import Fault, FaultyCalls
from tests.support.repositories import SetClock, make, open_for_reading, open_for_writing, publish, read_files
from tests.support.stores import noise

pytestmark = pytest.mark.slow

FILES = {f"f{number}": noise(number, 20 * KIB) for number in range(30)}


def _punched(path: Path, clock: SetClock) -> dict[str, bytes]:
    """A repository with a punched pack; what its snapshot holds."""
    make(path, clock)
    kept = {name: data for number, (name, data) in enumerate(FILES.items()) if number % 3}
    with open_for_writing(path, clock) as repository:
        publish(repository, FILES, "all")
        publish(repository, kept, "kept")
        repository.delete(repository.find("all"))
        assert repository.gc(safety=Safety.NONE).freed_bytes
    return kept


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.logs(
    "pack.unreadable",
    "pack.directory_damaged",
    "pack.header_damaged",
    "pack.not_examined",
    "pack.spare_not_taken",
    "record.damaged",
)
def test_what_cannot_be_read_for_a_moment_is_not_punched(memory_folder: Path, index: bool) -> None:
    clock = SetClock()
    path = memory_folder / "r"
    kept = _punched(path, clock)
    for nth in itertools.count(1):
        if not index:
            for segment in (path / "index").iterdir():
                segment.unlink()
        fault = Fault("pread", errno.EIO, nth, path="/packs/")
        fired = _collect_more(path, clock, FaultyCalls([fault]), nth)
        with open_for_reading(path, clock) as repository:
            assert read_files(repository, repository.find("kept")) == kept, f"after a failed read {nth}"
            assert repository.check(read_data=True).is_sound
        if not fired:
            break
    assert nth > 40, "each read of one whole run has failed once"


def _collect_more(path: Path, clock: SetClock, calls: FaultyCalls, nth: int) -> int:
    """Something comes and goes, and is collected; whatever fails, fails."""
    try:
        with Repository.open(path, writable=True, clock=clock, calls=calls) as repository:
            publish(repository, {"x": noise(1_000 + nth, 30 * KIB)}, f"x{nth}")
            repository.delete(repository.find(f"x{nth}"))
            repository.gc(safety=Safety.NONE)
    except BallastError:
        pass
    return calls.faults[0].fired
