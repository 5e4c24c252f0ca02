"""A power cut in the middle of `ballast init`: there is a whole repository, or none."""

import random
from pathlib import Path

import pytest

from repository import founding
from repository.errors import NoRepositoryError
from repository.repo import Repository
from tests.support.calls import RecordingCalls
from tests.support.crash import Disk
from tests.support.repositories import SetClock


def test_init(memory_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = RecordingCalls()
    monkeypatch.setattr(founding, "SLOTS_AT_INIT", 64)
    root = memory_folder / "repo"
    root.mkdir()
    disk, rng = Disk.of(root), random.Random(1)
    Repository.init(root, reserve_bytes=1 << 20, headspace_bytes=0, clock=SetClock(), calls=calls)
    made = 0
    for number, operation in enumerate(calls.log):
        disk.take(operation)
        if number < len(calls.log) - 16:
            continue
        image = memory_folder / f"image{number}"
        disk.crash(image, rng)
        try:
            repository = Repository.open(image, writable=True)
        except NoRepositoryError:
            assert number < len(calls.log) - 1, "init had returned"
            continue
        made += 1
        repository.close()
        with Repository.open(image, writable=False) as reading:
            assert not reading.check(read_data=True).findings
    assert made
