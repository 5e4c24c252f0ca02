"""A walk over more files than the mount remembers: memory stays bounded, and nobody inside notices."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.mounting import Mounting, until

pytestmark = pytest.mark.mount

PLACES_MAX = 500
ROWS_MAX = 15
SMALL_TABLE = f"""
import sys
import fusefs.places
fusefs.places.PlaceTable.__init__.__defaults__ = ({PLACES_MAX}, {ROWS_MAX})
from fusefs.cli.main import main
sys.exit(main())
"""


def test_the_oldest_are_forgotten_and_what_is_in_use_is_not(ballast: Mounting) -> None:
    ballast.mount("--settle", "1h")
    for number in range(20):
        directory = ballast.live / f"directory {number:02d}"
        directory.mkdir()
        for file in range(100):
            (directory / f"file {file:02d}").write_text(f"{number} {file}")
    (ballast.snapshots / "one").mkdir()
    (ballast.snapshots / "two").mkdir()
    ballast.umount()
    words = ["mount", "--foreground", "--read-only", str(ballast.repository), str(ballast.mountpoint)]
    environment = {**ballast.environment, "BALLAST_LOG": "debug"}
    log = ballast.base / "log"
    with log.open("w") as out:
        daemon = subprocess.Popen([sys.executable, "-c", SMALL_TABLE, *words], env=environment, stderr=out)
    until(lambda: "mount.ready" in log.read_text())
    inside = ballast.snapshots / "one" / "directory 00"
    before = os.getcwd()
    os.chdir(inside)
    try:
        with open("file 07") as held:
            for _ in range(2):
                found = subprocess.run(["find", str(ballast.snapshots)], capture_output=True, check=True, text=True)
                assert found.stdout.count("\n") == 2 * (20 * 101 + 1) + 2  # snapshots/ and latest
            until(lambda: _latest("left", log.read_text()) <= PLACES_MAX)
            until(lambda: _latest("rows", log.read_text()) <= ROWS_MAX)
            assert os.getcwd() == str(inside)
            assert held.read() == "0 7"
            with open("file 08") as other:
                assert other.read() == "0 8"
            assert len(os.listdir()) == 100
            assert (ballast.snapshots / "two" / "directory 19" / "file 99").read_text() == "19 99"
    finally:
        os.chdir(before)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
    assert "places.not_evicted" not in log.read_text()


def _latest(what: str, log: str) -> int:
    """How many there were after the latest batch."""
    counts = [int(count) for count in re.findall(rf"places\.evicted .*{what}=(\d+)", log)]
    return counts[-1] if counts else sys.maxsize
