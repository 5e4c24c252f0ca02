"""A file under random operations, against a plain array: within a mount, over commits, remounts and kills.

More of it: BALLAST_FSX_OPERATIONS=50000 BALLAST_FSX_SEED=7 pytest tests/mount/test_fsx.py
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import fsx
from tests.support.mounted import Mounted

pytestmark = pytest.mark.mount

OPERATIONS: Final = int(os.environ.get("BALLAST_FSX_OPERATIONS", "1000"))
"""Per seed and test."""
SEEDS: Final = [int(os.environ["BALLAST_FSX_SEED"])] if "BALLAST_FSX_SEED" in os.environ else [1, 2]


def start(path: Path, shadow: Path, seed: int, operations: int) -> subprocess.Popen[str]:
    words = [sys.executable, str(Path(fsx.__file__)), str(path), str(shadow), str(seed), str(operations)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """The digest of the file in the end."""
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said.strip()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_two_files_at_once_while_commits_go_on(place: Path, tmp_path: Path, seed: int) -> None:
    both = [start(place / name, tmp_path / name, seed * 1000 + at, OPERATIONS) for at, name in enumerate("ab")]
    sums = [finish(process) for process in both]
    assert [digest(place / name) for name in "ab"] == sums


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_over_snapshots_remounts_and_kills(mount: Mounted, tmp_path: Path, seed: int) -> None:
    path, shadow = mount.live / "file", tmp_path / "shadow"
    rounds = 8
    kept: dict[str, str] = {}
    for number in range(rounds):
        expected = finish(start(path, shadow, seed * 1000 + number, OPERATIONS // rounds))
        match number % 4:
            case 0:
                name = f"round-{number}"
                kept[name] = expected
                mount.commit(name)
            case 1:
                mount.remount()
            case 2:
                mount.kill()
                mount.start()
            case _:
                (mount.live / "link").unlink(missing_ok=True)
                os.link(path, mount.live / "link")
        assert digest(path) == expected, f"after round {number}"
    for name, expected in kept.items():
        assert digest(mount.snapshots / name / "file") == expected, name
    assert digest(mount.live / "link") == digest(path)
