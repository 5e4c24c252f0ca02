"""What the tests of the mount's surroundings get: processes started by the command line, as a user would."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Mounting, mounting


@pytest.fixture
def ballast(tmp_path: Path) -> Iterator[Mounting]:
    """A fresh repository, not mounted. The mount's log may hold no error in the end."""
    with mounting(tmp_path) as one:
        one.init()
        yield one
        assert " ERROR " not in one.log(), one.log()


@pytest.fixture
def mounted(ballast: Mounting) -> Mounting:
    """The same, mounted for writing, with snapshots that come quickly."""
    ballast.mount("--settle", "0.2s", "--interval", "0.2s")
    return ballast


@pytest.fixture
def quiet(ballast: Mounting) -> Mounting:
    """For what is logged as an error on purpose."""
    ballast.environment["BALLAST_LOG"] = "critical"
    return ballast
