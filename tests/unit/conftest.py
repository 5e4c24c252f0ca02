"""A clock that stands still, a small repository on it, and an empty directory of files to store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from repository.repo import Repository
from tests.support.repositories import SetClock, make, open_for_writing


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def path(tmp_path: Path, clock: SetClock) -> Path:
    """An empty repository; nobody has it open."""
    found = tmp_path / "repo"
    make(found, clock)
    return found


@pytest.fixture
def repo(path: Path, clock: SetClock) -> Iterator[Repository]:
    """The same, opened for writing."""
    with open_for_writing(path, clock) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    return directory
