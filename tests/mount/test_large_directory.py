"""A directory of 100,000 entries: its cost is counted in records, not with a stopwatch."""

import os
import stat
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from repository.repo import Repository
from tests.support.mounted import Mounted, python

pytestmark = pytest.mark.mount

ENTRIES: Final = 100_000
AT_ONCE: Final = 10_000
"""What one process makes or removes: far from what any may take, also where others keep the machine busy."""
MAKE: Final = """
import stat
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    os.mknod(f"entry {number:06d}", stat.S_IFREG | 0o644)
"""
LOOK: Final = """
with os.scandir(sys.argv[1]) as entries:
    sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
print(len(sizes), sum(sizes.values()), min(sizes), max(sizes))
"""
REMOVE: Final = """
import itertools
os.chdir(sys.argv[1])
with os.scandir(".") as entries:
    for entry in itertools.islice(entries, int(sys.argv[2])):
        os.unlink(entry.name)
"""


def records(path: Path) -> int:
    """How many records the repository holds."""
    with closing(Repository.open(path, writable=False)) as repository:
        return sum(pack.records for pack in repository.store.packs())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_entries(mount: Mounted) -> None:
    large = mount.live / "large"
    large.mkdir()
    for first in range(0, ENTRIES, AT_ONCE):
        python(MAKE, large, str(first), str(first + AT_ONCE))
    everything = f"{ENTRIES} 0 entry 000000 entry {ENTRIES - 1:06d}"
    assert python(LOOK, large).strip() == everything

    snapshot = mount.commit("full")
    assert stat.S_ISREG((snapshot / "large" / "entry 054321").lstat().st_mode)
    assert not (snapshot / "large" / "entry 100000").exists()

    before = records(mount.repository)
    (large / "entry 050000").write_text("grown")
    (large / "entry 050000 and a half").touch()
    (large / "entry 075000").unlink()
    os.rename(large / "entry 000001", large / "renamed")
    changed = mount.commit("changed")
    assert records(mount.repository) - before <= 40, "a few segments of some 256 entries each, not four hundred"
    assert python(LOOK, changed / "large").strip() == f"{ENTRIES} 5 entry 000000 renamed"

    for _ in range(0, ENTRIES, AT_ONCE):
        python(REMOVE, large, str(AT_ONCE))
    large.rmdir()
    mount.remount()
    assert os.listdir(mount.live) == []
    assert python(LOOK, snapshot / "large").strip() == everything
