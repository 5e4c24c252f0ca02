"""Caches are written only where the reserve is whole: at an opening too."""

import random
import shutil
from pathlib import Path
from typing import Final

import pytest

from repository import shelf
from repository.index import keeper
from repository.policy.collect import Safety
from repository.policy.rungs import Mode
from repository.units import KIB
from tests.support.repositories import SetClock, publish
from tests.support.tinydisk import BLOCK, RESERVE, allow_tiny_packs, make_tiny, open_tiny, tiny_disk

pytestmark = pytest.mark.logs("index.not_written", "pack.not_sealed")
ROOM: Final = 160 * KIB


@pytest.mark.parametrize(("free_bytes", "written"), [(0, False), (RESERVE - BLOCK, False), (ROOM, True)])
def test_opening_writes_no_index_while_the_reserve_does_not_fit(
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, written: bool
) -> None:
    """A little room that another program left is not for caches, however many records have none."""
    allow_tiny_packs(monkeypatch)
    clock, path = SetClock(), memory_folder / "r"
    make_tiny(path, clock)
    disk = tiny_disk(path, ROOM)
    with open_tiny(path, disk, clock) as repository:
        for seed in range(6):
            publish(repository, {"file": random.Random(seed).randbytes(9000)}, f"s{seed}")
    for module in (keeper, shelf):
        monkeypatch.setattr(module, "FLUSH_ROWS", 4)
    shutil.rmtree(path / "index")
    (path / "ballast.reserve").write_bytes(b"")
    disk.adopt()
    disk.leave(free_bytes)
    disk.created.clear()
    with open_tiny(path, disk, clock) as repository:
        assert repository.recovery.mode is (Mode.NORMAL if written else Mode.EMERGENCY)
        assert len(repository.snapshots.listed()) == 6
        repository.recovery.collect(Safety.FULL)
    assert any("index" in name for name in disk.created) is written
