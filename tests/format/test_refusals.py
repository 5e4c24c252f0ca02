"""What is no repository, or one of a later format, is refused in one sentence that says why; nothing is touched."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.format.conftest import Members
from tests.format.golden import lay_out

COMMANDS = (
    ("status",), ("snapshot", "list"), ("check",), ("gc",), ("rebuild",), ("snapshot", "delete", "REPO", "any"),
    ("snapshot", "create", "REPO", "."), ("restore", "REPO", "any", "nowhere"), ("mount", "REPO", "nowhere"),
)  # fmt: skip
NOBODY = 65_534
EXIT_FAILED, EXIT_NO_REPOSITORY = 1, 10


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty one that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="ballast-refusals-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def ballast(words: tuple[str, ...], repo: Path, *, user: int | None = None) -> tuple[int, str]:
    """Runs a command on `repo`; exit code and the one sentence of standard error."""
    given = [str(repo) if word == "REPO" else word for word in words]
    if "REPO" not in words:
        given.append(str(repo))
    done = subprocess.run(
        [sys.executable, "-m", "fusefs.cli.main", *given],
        cwd=repo.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(repo.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    assert len(lines) == 1 and lines[0].startswith("ballast: ") and lines[0].endswith("."), done.stderr
    return done.returncode, lines[0].removeprefix("ballast: ")
