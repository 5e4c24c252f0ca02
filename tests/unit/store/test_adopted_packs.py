"""A killed process leaves packs in the page cache only; the next one shares their records, and then the power goes."""

import random
from pathlib import Path

import pytest

from repository.format.record import RecordKind
from repository.packs import writer
from repository.storage.volume import Volume
from repository.units import KIB
from tests.support.calls import RecordingCalls
from tests.support.crash import Disk
from tests.support.stores import new_volume, noise, open_store

pytestmark = pytest.mark.logs("pack.header_damaged")


def _after_power_loss(disk: Disk, calls: RecordingCalls, folder: Path) -> list[Volume]:
    for operation in calls.log:
        disk.take(operation)
    volumes = []
    for trial in range(8):
        disk.crash(folder / f"image{trial}", random.Random(trial))
        volumes.append(Volume(folder / f"image{trial}"))
    return volumes


@pytest.mark.parametrize("retired_max", [0, writer.RETIRED_MAX])
def test_what_is_shared_with_a_dead_process_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retired_max: int
) -> None:
    """The names of its packs were never synced: neither of those it left open, nor of those it sealed when full."""
    monkeypatch.setattr(writer, "RETIRED_MAX", retired_max)
    root = tmp_path / "repo"
    new_volume(root)
    disk, calls = Disk.of(root), RecordingCalls()
    payloads = [noise(seed, 60 * KIB) for seed in range(150)]
    killed = open_store(Volume(root, calls))
    for payload in payloads:
        killed.put(RecordKind.CHUNK, [payload], killed.lease())
    store = open_store(Volume(root, calls))
    stored = store.put(RecordKind.CHUNK, payloads, store.lease())
    store.sync()
    for volume in _after_power_loss(disk, calls, tmp_path):
        again = open_store(volume)
        for item, payload in zip(stored, payloads, strict=True):
            assert again.read(item.id).payload == payload
