"""The golden repository, laid out once for all tests that only look, and anew for those that write."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.conftest import Run, run
from tests.format.golden import Expected, lay_out, load, unpacked

__all__ = ["Run", "run"]

Members = Mapping[str, tuple[int, bytes | None]]


@pytest.fixture(scope="session")
def members() -> Members:
    """What the archive holds."""
    return unpacked()


@pytest.fixture(scope="session")
def expected() -> Expected:
    """What the maker put in."""
    return load()


@pytest.fixture(scope="session")
def golden_path(members: Members, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a killed mount left it. Not to be changed: see test_nothing_was_written."""
    path = tmp_path_factory.mktemp("golden") / "repository"
    lay_out(members, path, as_it_was=True)
    return path


@pytest.fixture
def own_copy(members: Members, memory_folder: Path) -> Path:
    """One for this test alone."""
    path = memory_folder / "repository"
    lay_out(members, path, as_it_was=True)
    return path
