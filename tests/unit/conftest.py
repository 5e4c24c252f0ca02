"""A clock that stands still, a small repository on it, and an empty directory of files to store."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from repository import crew
from repository.repo import Repository
from repository.units import MIB
from tests.support.fulldisk.disks import new_disk
from tests.support.fulldisk.stage import Stage
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


def _disk(folder: Path, kind: str) -> Iterator[Path]:
    folder.mkdir()
    with new_disk(Stage(folder, folder, folder, folder), kind, 400 * MIB) as disk:
        yield disk.path


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A disk that keeps attributes of 64 KiB. For tests marked mount."""
    yield from _disk(tmp_path / "xfs", "xfs")


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A disk that keeps no attributes beyond 4 KiB. For tests marked mount."""
    yield from _disk(tmp_path / "ext4", "ext4")


@pytest.fixture(autouse=True)
def no_threads_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle threads that trio keeps for some seconds after another test do not count where a crew is hired."""
    others = threading.active_count() - 1
    monkeypatch.setattr(crew, "_threads", lambda: max(1, threading.active_count() - others))
