"""A repository on a disk of a few dozen blocks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from repository.recovery import RecoverySettings
from repository.repo import Repository
from repository.units import KIB
from tests.support.repositories import SetClock
from tests.support.tinydisk import TinyDisk, allow_tiny_packs, make_tiny, open_tiny, tiny_disk


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def disk(memory_folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> TinyDisk:
    allow_tiny_packs(monkeypatch)
    path = memory_folder / "r"
    make_tiny(path, clock)
    return tiny_disk(path, 160 * KIB)


@pytest.fixture
def repository(disk: TinyDisk, clock: SetClock) -> Iterator[Repository]:
    with open_tiny(Path(disk.root), disk, clock) as opened:
        opened.recovery.settings = RecoverySettings(margin_bytes=0)
        yield opened
