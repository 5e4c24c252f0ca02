"""What `live` holds while it is written to: claims and memory follow what is pending, not what was written."""

import os
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, python, run

pytestmark = pytest.mark.mount

MIB = 1024 * 1024

OVERWRITE = """
file = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
part = os.urandom(1 << 20)
for _ in range(800):
    os.pwrite(file, part, 0)
"""
CUT = """
file = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
part = os.urandom(1 << 20)
for _ in range(800):
    os.pwrite(file, part, 0)
    os.ftruncate(file, 0)
"""
SCRATCH = """
part = os.urandom(1 << 20)
for number in range(600):
    with open(f"{sys.argv[1]}/{number}", "wb") as file:
        file.write(part)
    os.unlink(file.name)
"""
SMALL = """
file = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
for number in range(30_000):
    os.pwrite(file, b"x" * 100, number % 50 * 4096)
"""


def allocated(path: Path) -> int:
    return int(run(["du", "-s", "--block-size=1", path]).split()[0])


@pytest.mark.parametrize("code", [OVERWRITE, CUT, SCRATCH, SMALL], ids=["overwrite", "cut", "scratch", "small"])
def test_bytes_that_were_overwritten_in_memory_claim_no_disk(mount: Mounted, code: str) -> None:
    """Found by writing one MiB again and again for half a minute: the claims had taken 55 GB of the disk."""
    before = allocated(mount.repository)
    python(code, mount.live)
    assert allocated(mount.repository) - before <= 150 * MIB


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_copying_in_takes_bounded_memory(mount: Mounted) -> None:
    code = """
dice = open("/dev/urandom", "rb")
with open(sys.argv[1] + "/large", "wb") as file:
    for _ in range(200):
        file.write(dice.read(1 << 20))
"""
    before = memory(mount.pid)
    python(code, mount.live)
    assert memory(mount.pid) - before <= 150 * MIB
    (mount.live / "large").unlink()
