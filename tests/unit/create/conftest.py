"""A small repository, and an empty directory to fill."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from repository.repo import Repository
from tests.support.repositories import SetClock, make, open_for_writing


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def repo(tmp_path: Path, clock: SetClock) -> Iterator[Repository]:
    make(tmp_path / "repo", clock)
    with open_for_writing(tmp_path / "repo", clock) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "files"
    directory.mkdir()
    return directory
