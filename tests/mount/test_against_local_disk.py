"""Random operations on names, on a mount and on the local disk at once: same answers, same trees, also in snapshots,
after remounts and after kills.

More of it: BALLAST_NAMESPACE_OPERATIONS=20000 BALLAST_NAMESPACE_SEED=7 pytest tests/mount/test_against_local_disk.py
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounted import Mounted, ballast, open_directory
from tests.support.namespace import Twins, picture

pytestmark = pytest.mark.mount

OPERATIONS: Final = int(os.environ.get("BALLAST_NAMESPACE_OPERATIONS", "1500"))
"""Per seed and test."""
_SEED: Final = os.environ.get("BALLAST_NAMESPACE_SEED")
SEEDS: Final = [1, 2] if _SEED is None else [int(_SEED)]
ROUNDS: Final = 12


@contextmanager
def twins(tested: Path, seed: int) -> Iterator[Twins]:
    """`tested`, and an empty directory beside the mount on the local disk."""
    with open_directory() as directory:
        (directory / "local").mkdir()
        both = Twins(tested, directory / "local", seed)
        try:
            yield both
        finally:
            both.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_while_commits_go_on(place: Path, seed: int) -> None:
    with twins(place, seed) as both:
        for number in range(OPERATIONS):
            both.step()
            if number % 150 == 149:
                both.compare()
        both.compare()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_over_snapshots_remounts_and_kills(mount: Mounted, seed: int) -> None:
    top = mount.live / "top"
    top.mkdir()
    kept: dict[str, dict[str, tuple[object, ...]]] = {}
    with twins(top, 100 + seed) as both:
        for number in range(ROUNDS):
            for _ in range(OPERATIONS // ROUNDS):
                both.step()
            both.compare()
            match number % 4:
                case 0 | 2:
                    mount.commit(f"round-{number}")
                    kept[f"round-{number}"] = picture(both.local)
                case 1:
                    both.close()
                    mount.remount()
                case _:
                    handle = os.open(top, os.O_RDONLY)
                    os.fsync(handle)
                    os.close(handle)
                    mount.kill()
                    both.close()
                    mount.start()
            both.compare()
    for name, expected in kept.items():
        assert picture(mount.snapshots / name / "top") == expected, name
    mount.umount()
    done = ballast("check", "--read-data", mount.repository)
    assert done.returncode == 0, done.stdout
