"""Drill 7, the storm: writers, readers, `ls`, snapshots, and a filler that cannot make up its mind; then kills."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from repository.status import Json
from repository.units import GIB, MB, MIB
from tests.support.fulldisk.disks import THROUGH_FUSE
from tests.support.fulldisk.fillers import Filler, fickle
from tests.support.fulldisk.play import Play
from tests.support.fulldisk.stage import ROOT
from tests.support.fulldisk.user import BACK_S, CALM, STAT_BLOCK_BYTES, User, attempt, random_bytes, write_random
from tests.support.fulldisk.writers import content

CREW: Final = 20
"""Writers in a process."""
DIRECTORIES: Final = 20
LS_S: Final = 30.0
"""Nobody waits longer for a listing: the deadline of a write, which no listing should come near."""
SNAPSHOTS: Final = 3
"""That many of the storm are kept at a time."""
EMPTY_BYTES: Final = 32 * MIB
"""More than a repository of nothing holds."""
SLOW_ROOM_BYTES: Final = 96 * MIB
"""Less than the writers of the short version keep."""
KILL_WITHIN_S: Final = 0.06
"""After the reserve was touched: about as long as a recovery takes. Less after each that was over by then, down to
KILL_WITHIN_MIN_S: on xfs it takes milliseconds."""
KILL_WITHIN_MIN_S: Final = 0.002
TRIES_PER_KILL: Final = 3


def play(play: Play) -> None:
    """Minutes of it, or seconds; then kills in the middle of recoveries."""
    report = play.report
    reserve = play.pick(24 * MB, 200 * MB)
    disk_bytes = play.pick(320 * MIB, 2 * GIB)
    with play.user(disk_bytes, reserve, "--headspace", "0") as (user, filler):
        user.mount(*CALM)
        for number in range(DIRECTORIES):
            os.mkdir(user.live / f"dir-{number}")
        if play.kind in THROUGH_FUSE:
            filler.leave(SLOW_ROOM_BYTES)  # the fickle filler writes its zeros there, and is too slow to fill a disk
        _storm(play, user, filler)
        _clear_up(user)
        _kills(play, user, filler)
        user.check()
        user.expect_calm_log("index.segment_discarded")  # a cache that a kill cut short, said when it is made anew
        report.equals("mounts left", user.is_mounted(), False)


def _storm(play: Play, user: User, filler: Filler) -> None:
    report = play.report
    writers, seconds = play.pick(24, 120), play.pick(10, 240)
    report.say(f"{writers} writers for {seconds} s, a filler of {user.disk.available_bytes():,} bytes")
    with _crews(user.live, writers, play.seed) as crews, fickle(user.disk, _most(user), play.seed) as other:
        looking = _Looking(user)
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            time.sleep(0.5)
            looking.tend_snapshots()
            report_dead = [crew for crew in crews if crew.poll() is not None]
            assert not report_dead, "a crew ended"
        said = [_stop(crew) for crew in crews]
        looking.stop()
        turns = other.stop()
    filler.give(1 << 60)  # else the writers' files alone may fill what it left, and then read-only is right
    report.say(f"the filler turned {turns[0]} times and met a full disk {turns[1]} times")
    _expect_unharmed(user, said, looking)
    user.expect_normal()
    report.equals("a write afterwards", attempt(lambda: (user.live / "after").write_bytes(bytes(100_000))), "ok")
    _verify(user, said)
    user.umount()
    user.mount(*CALM)
    _verify(user, said)
    user.ballast("status", user.repository)
    user.umount()
    user.check()


def _clear_up(user: User) -> None:
    """Nothing is left of the storm, and its room comes back."""
    before = user.disk.available_bytes()
    user.mount(*CALM)
    done = user.run("rm", "-rf", *(user.live / f"dir-{number}" for number in range(DIRECTORIES)))
    user.report.holds("rm -rf of all that is in live", done.err[:300] or "done", done.code == 0)
    for name in sorted(set(os.listdir(user.snapshots)) - {"latest"}):
        os.rmdir(user.snapshots / name)
    user.umount()
    for name in user.names():
        user.quietly("snapshot", "delete", user.repository, name)
    user.ballast("gc", user.repository, "--safety", "none")
    back = user.disk.available_bytes() - before
    user.report.at_most("stored after that", _packs_bytes(user), EMPTY_BYTES)
    user.report.at_least("room that came back", back, MIB)


def _packs_bytes(user: User) -> int:
    stored = user.status()["stored_bytes"]
    assert isinstance(stored, int)
    return stored


def _most(user: User) -> int:
    """Enough to leave the writers nothing."""
    return user.disk.available_bytes()


@contextmanager
def _crews(live: Path, writers: int, seed: int) -> Iterator[list["subprocess.Popen[str]"]]:
    crews: list[subprocess.Popen[str]] = []
    try:
        for first in range(0, writers, CREW):
            words = (str(live), str(first), str(min(CREW, writers - first)), str(DIRECTORIES), str(seed))
            crews.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.fulldisk.writers", *words],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for crew in crews:
            assert crew.stdout is not None
            assert crew.stdout.readline() == "ready\n"
        yield crews
    finally:
        for crew in crews:
            crew.kill()
            crew.wait()


def _stop(crew: "subprocess.Popen[str]") -> dict[str, Json]:
    output, _ = crew.communicate("stop\n", timeout=BACK_S)
    found: Json = json.loads(output)
    assert isinstance(found, dict)
    return found


class _Looking:
    """`ls -l` again and again, in all directories, on a thread of its own; and snapshots, made and deleted."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._stop = threading.Event()
        self.longest_s = 0.0
        self.count = 0
        self.wrong: list[str] = []
        self.snapshots: Counter[str] = Counter()
        self._made: list[str] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        dice = random.Random(1)
        while not self._stop.wait(0.02):
            folder = self._user.live / f"dir-{dice.randrange(DIRECTORIES)}"
            begun_s = time.monotonic()
            try:
                for entry in os.scandir(folder):
                    attempt(entry.stat)
            except OSError as error:
                self.wrong.append(f"{folder.name}: {error!r}")
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s)
            self.count += 1

    def tend_snapshots(self) -> None:
        name = f"storm-{sum(self.snapshots.values())}"
        answer = attempt(lambda: os.mkdir(self._user.snapshots / name))
        self.snapshots[f"mkdir {answer}"] += 1
        if answer == "ok":
            self._made.append(name)
        if len(self._made) > SNAPSHOTS:
            self.snapshots[f"rmdir {attempt(lambda: os.rmdir(self._user.snapshots / self._made.pop(0)))}"] += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(BACK_S)
        assert not self._thread.is_alive(), "ls hangs"


def _expect_unharmed(user: User, said: list[dict[str, Json]], looking: _Looking) -> None:
    report = user.report
    counts: Counter[str] = Counter()
    for one in said:
        found = one["counts"]
        assert isinstance(found, dict)
        counts.update({name: count for name, count in found.items() if isinstance(count, int)})
    wrong = [text for one in said if isinstance(texts := one["wrong"], list) for text in texts]
    report.holds("wrong or failed", wrong[:5] or 0, not wrong, f"of {dict(counts)}")
    longest_ms = max(ms for one in said if isinstance(ms := one["longest_ms"], int))
    report.holds("longest write", f"{longest_ms / 1000:.2f} s", longest_ms < 45_000, "the deadline is 30 s")
    report.holds("longest ls", f"{looking.longest_s:.2f} s of {looking.count}", looking.longest_s < LS_S, "below 30 s")
    report.equals("errors of ls", looking.wrong[:3], [])
    allowed = {"mkdir ok", "mkdir ENOSPC", "rmdir ok"}
    report.holds("snapshots", dict(looking.snapshots), set(looking.snapshots) <= allowed)
    recoveries = user.recoveries()
    outcomes = Counter(one.outcome for one in recoveries)
    report.holds("recoveries", dict(outcomes), bool(outcomes) and set(outcomes) <= {"recovered", "read-only"})
    report.holds("pauses", f"at most {max(one.pause_s for one in recoveries):.3f} s", True)


def _verify(user: User, said: list[dict[str, Json]]) -> None:
    """Every file, to the byte."""
    files, nbytes, wrong = 0, 0, []
    for one in said:
        rows = one["files"]
        assert isinstance(rows, list)
        for row in rows:
            assert isinstance(row, list)
            path, seed, acknowledged = row
            assert isinstance(path, str)
            assert isinstance(seed, int)
            assert isinstance(acknowledged, int)
            found = (user.live / path).read_bytes()
            files, nbytes = files + 1, nbytes + len(found)
            if found != content(seed, 0, acknowledged):
                wrong.append(f"{path}: {len(found)} bytes, {acknowledged} acknowledged")
    user.report.holds("files that read back as acknowledged", f"{files}, {nbytes:,} bytes", not wrong, str(wrong[:5]))


# --- kills ---------------------------------------------------------------------------------------------------


WRITER: Final = """
import os, sys
from tests.support.fulldisk.user import random_bytes
path, seed = sys.argv[1], int(sys.argv[2])
file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
number = 0
while True:
    try:
        for _ in range(4):
            os.write(file, random_bytes(seed + number, 1 << 18))
            number += 1
        os.fsync(file)
    except OSError as error:
        print("!", error.errno, flush=True)
        break
    print(number << 18, flush=True)
"""


def _kills(play: Play, user: User, filler: Filler) -> None:
    report, dice = play.report, random.Random(play.seed)
    wanted, tries, missed = play.pick(3, 50), 0, 0
    kills, within_s = 0, KILL_WITHIN_S
    while kills < wanted:
        tries += 1
        assert tries <= wanted * TRIES_PER_KILL, f"only {kills} of {tries} kills hit a recovery"
        pause_s = dice.uniform(0, within_s)
        hit = _killed_in_recovery(play, user, filler, play.seed * 100_000 + tries * 1_000, pause_s)
        within_s = min(within_s * 1.2, KILL_WITHIN_S) if hit else max(within_s * 0.7, KILL_WITHIN_MIN_S)
        kills += hit
        missed += not hit
    report.holds("kill -9 in the middle of a recovery", f"{kills} times, {missed} more missed one", kills == wanted)


def _killed_in_recovery(play: Play, user: User, filler: Filler, seed: int, pause_s: float) -> bool:
    """One kill, `pause_s` after the reserve was touched; whether it was lent at that time. What was synced has to be
    there afterwards."""
    garbage = play.pick(24 * MIB, 100 * MIB)
    filler.give(1 << 60)
    user.quietly("mount", user.repository, user.mountpoint, *CALM)
    # Where only the trash would make the reserve whole, it is left alone until somebody needs room.
    write_random(user.live / "asks", MIB, seed)
    _until(lambda: user.mode() == "normal" and user.reserve_whole(), "mode normal after a kill")
    for name in ("killed", "garbage", "asks"):
        (user.live / name).unlink(missing_ok=True)
    for name in sorted(set(os.listdir(user.snapshots)) - {"latest"}):
        os.rmdir(user.snapshots / name)  # `umount` made one of what was killed: fifty would fill the disk for good
    write_random(user.live / "garbage", garbage, seed)
    os.mkdir(user.snapshots / "garbage")
    os.unlink(user.live / "garbage")
    os.rmdir(user.snapshots / "garbage")
    filler.leave_at_most(4 * MIB)
    pid, whole = user.pid(), user.reserve_bytes()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(user.live / "killed"), str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for_lending(user.repository / "ballast.reserve", whole, writer)
        time.sleep(pause_s)
        lent = user.reserve_bytes() < whole
        os.kill(pid, signal.SIGKILL)
        assert writer.stdout is not None
        lines = writer.stdout.read().split("\n")
    finally:
        writer.kill()
        writer.wait()
    synced = max((int(line) for line in lines if line.isdecimal()), default=0)
    subprocess.run(["umount", "-l", user.mountpoint], check=True)
    user.quietly("check", user.repository, "--read-data")
    user.quietly("mount", user.repository, user.mountpoint, *CALM)
    found = (user.live / "killed").read_bytes() if synced else b""
    wanted = b"".join(random_bytes(seed + number, 1 << 18) for number in range(synced >> 18))
    text = f"{len(found):,} bytes, {synced:,} synced, {'lent' if lent else 'whole'}"
    user.report.holds("killed; of the file there is", text, found[:synced] == wanted)
    user.quietly("umount", user.mountpoint)
    return lent


def _wait_for_lending(reserve: Path, whole: int, writer: "subprocess.Popen[str]") -> None:
    deadline_s = time.monotonic() + BACK_S
    while reserve.stat().st_blocks * STAT_BLOCK_BYTES >= whole:
        if writer.poll() is not None or time.monotonic() > deadline_s:
            return
        time.sleep(0.0005)


def _until(true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + BACK_S
    while not true():
        assert time.monotonic() < deadline_s, f"waited in vain: {what}"
        time.sleep(0.2)
