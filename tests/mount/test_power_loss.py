"""Power cuts under a mount on a real ext4, whose disk logs its writes and flushes: what was promised is there.

tests/crash does the same with a model of a file system, at many more points; here file system and kernel are real.
"""

import random
from pathlib import Path
from typing import Final

import pytest

from tests.support.blocklog import SECTOR_BYTES, STYLES, WHOLE_BYTES, Entry, Kind, LoggedDisk
from tests.support.powercut import Cut, Lost, record

pytestmark = [
    pytest.mark.mount,
    pytest.mark.logs("pack.header_damaged", "index.segment_discarded", "record.damaged"),
]

STEPS: Final = 240
CUTS: Final = 20
BY_MOUNT_EVERY: Final = 10
"""The others are recovered in this process, which is quicker."""


@pytest.mark.parametrize(("seed", "block_bytes"), [(0, 4096), (1, 1024)])
def test_what_was_promised_survives_a_power_cut(memory_folder: Path, seed: int, block_bytes: int) -> None:
    session = record(memory_folder, seed, STEPS, block_bytes=block_bytes)
    for number, (cut, image) in enumerate(session.images(session.cuts(CUTS))):
        session.verify(cut, image, by_mount=number % BY_MOUNT_EVERY == 0)


def test_the_disk_keeps_what_was_flushed_and_may_lose_the_rest(tmp_path: Path) -> None:
    """The model itself: no sector is anything but one of the values that were written to it since the last flush."""
    sectors, rng = 64, random.Random(0)
    before, image = tmp_path / "before", tmp_path / "image"
    before.write_bytes(bytes(sectors * SECTOR_BYTES))
    disk = LoggedDisk(before)
    may = [{0} for _ in range(sectors)]
    seen = {style: set[bytes]() for style in STYLES}
    for value in range(1, 200):
        start = rng.randrange(WHOLE_BYTES // SECTOR_BYTES, sectors - 8)
        disk.take(Entry(Kind.WRITE, start * SECTOR_BYTES, bytes([value]) * SECTOR_BYTES * 8))
        for sector in range(start, start + 8):
            may[sector].add(value)
        if value == 150:
            disk.take(Entry(Kind.FLUSH))
            disk.crash(image, "none", rng)
            may = [{byte} for byte in image.read_bytes()[::SECTOR_BYTES]]
            assert sum(map(sum, may)) > 0
    for style in STYLES * 10:
        disk.crash(image, style, rng)
        found = image.read_bytes()
        seen[style].add(found)
        for sector in range(sectors):
            assert set(found[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]) <= may[sector]
    assert len(seen["none"]) == len(seen["all"]) == 1 and len(seen["subset"]) > 5 and len(seen["sectors"]) > 5


def test_a_mount_that_does_not_sync_would_be_found_out(memory_folder: Path) -> None:
    """The same with a daemon whose syncs the kernel answers and doesn't do: it proves that the above can fail."""
    session = record(memory_folder, 0, STEPS, lying=True)
    middle, end = (session.begin + len(session.log)) // 2, len(session.log)
    for cut, image in session.images([Cut(middle, "none"), Cut(end, "none")]):
        with pytest.raises(Lost):
            session.verify(cut, image, by_mount=False)
