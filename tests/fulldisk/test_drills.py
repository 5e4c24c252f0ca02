"""The drills of scripts/drills/full-disk in their short versions, on ext4 and tmpfs.

Each plays in mount and process namespaces of its own: no mount, loop device or process is left, whatever happens.
"""

import subprocess
import sys
from typing import Final

import pytest

from tests.support.fulldisk.figures import DrillError, Report
from tests.support.fulldisk.tracing import allocates, whole
from tests.support.mounting import ROOT

DRILLS: Final = ("story", "transparent", "thinning", "no-way-out", "zero-bytes", "thief")
LONGER: Final = ("storm",)
"""A minute or more even when short: with the soaks."""
SEED: Final = "7"
TIMEOUT_S: Final = 400
"""Far beyond the half minute that the longest takes: other tests run beside it."""


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
@pytest.mark.parametrize("drill", [*DRILLS, *(pytest.param(one, marks=pytest.mark.soak) for one in LONGER)])
def test_every_figure_is_as_promised(drill: str, kind: str) -> None:
    """Its output tells each figure; the last line of a failing one names what is wrong."""
    words = ["--short", "--fs", kind, "--only", drill, "--seed", SEED]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fulldisk", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT_S - 20,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"=== {drill} on {kind}:" in done.stdout, done.stdout[-6000:]


HERE: Final = "/disk/repository"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            f'77 openat(AT_FDCWD</>, "{HERE}/packs/01/x.pack", O_RDWR|O_CREAT|O_EXCL, 0600) = 3<{HERE}/x>',
            True,
        ),
        (f'77 openat(AT_FDCWD</>, "{HERE}/packs/01/x.pack", O_RDWR|O_CLOEXEC) = 3<{HERE}/packs/01/x.pack>', False),
        (f'77 openat(AT_FDCWD</>, "{HERE}/packs/01/x.pack", O_RDWR|O_CREAT, 0600) = -1 ENOSPC (No space left)', False),
        ('77 openat(AT_FDCWD</>, "/elsewhere/x", O_RDWR|O_CREAT, 0600) = 3</elsewhere/x>', False),
        (f"77 fallocate(5<{HERE}/packs/01/x.pack>, 0, 4096, 1048576) = 0", True),
        (f"77 fallocate(5<{HERE}/ballast.reserve>, 0, 0, 1048576) = 0", False),
        (f"77 fallocate(5<{HERE}/x>, FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE, 4096, 1048576) = 0", False),
        (f'rename("{HERE}/index/a.tmp", "{HERE}/index/a") = 0', True),
        (f'mkdir("{HERE}/packs/ff", 0700) = 0', True),
        (f"77 ftruncate(5<{HERE}/packs/01/x.pack>, 4096) = 0", False),
        (f'unlink("{HERE}/packs/01/x.pack") = 0', False),
        ("77 +++ exited with 0 +++", False),
    ],
)
def test_what_counts_as_allocating(call: str, expected: bool) -> None:
    """The count of allocating calls would be zero as well if none were recognized."""
    assert allocates(call, HERE, {}) is expected


def test_a_cut_that_lengthens_allocates() -> None:
    assert allocates(f"77 ftruncate(5<{HERE}/packs/01/x.pack>, 8192) = 0", HERE, {"packs/01/x.pack": 4096})


def test_calls_of_threads_are_put_together() -> None:
    lines = [
        f'77 openat(AT_FDCWD</>, "{HERE}/x", O_RDWR|O_CREAT, 0600 <unfinished ...>',
        f"78 ftruncate(5<{HERE}/y>, 0) = 0",
        "77 <... openat resumed>) = -1 ENOSPC (No space left on device)",
    ]
    put_together = whole(lines)
    assert len(put_together) == 2
    assert not any(allocates(line, HERE, {"y": 4096}) for line in put_together)


def test_a_figure_that_is_wrong_ends_the_drill(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.at_least("freed", 100, 100)
    with pytest.raises(DrillError, match="freed: 99 bytes"):
        report.at_least("freed", 99, 100)
    assert "FAILED" in capsys.readouterr().out
