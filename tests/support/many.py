"""Many snapshots of a large tree and a walk over all of them. A script: python -m tests.support.many COUNT [TREE].

Times are only shown. What is asserted are counts: entries, system calls and bytes of the daemon, and its memory. Who
drops the kernel's caches meanwhile makes commits read more.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench.data import regular_files, unpack_linux
from bench.measure import BenchError

from tests.support.mounted import CALM, Mounted, ballast_json, init, open_directory

TREES: Final = Path(__file__).parents[2] / ".bench"
"""Where the benchmarks unpack the kernel's source too."""
CHANGED: Final = 10
"""Files that are saved again before each snapshot, each with a line of its own at its end."""
COPY_MEMORY_BYTES_MAX: Final = 400_000_000
"""Resident, at the peak, while the tree is copied in: DESIGN's bound for a million files."""
MEMORY_BYTES_MAX: Final = 200_000_000
"""Resident, at the peak since mounting, mapped files of the repository included. DESIGN's bound for a mount of a
million files that idles is 150 MB; a walk adds trees in the cache and the places of numbers that the kernel knows."""
GROWTH_MAX: Final = 1.25
"""Of the last tenth of the commits over the first. Which ten files are changed makes more of a difference than that."""
SLACK_CALLS: Final = 8
SLACK_BYTES: Final = 1 << 16
"""And this many more, for medians are small numbers."""
COUNTED: Final = ("reads", "read_bytes", "writes", "written_bytes")
PROGRESS_LINES: Final = 50
LOOKED_AT: Final = 5
"""Snapshots of which every changed file is compared."""
PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Io:
    """What the daemon asked of its disk so far: all threads but the one that talks to the kernel's FUSE."""

    reads: int
    read_bytes: int
    writes: int
    written_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Io":
        """Counts system calls, whether the page cache answers or not."""
        whole, loop = (_numbers(Path(f"/proc/{pid}/{task}io").read_text()) for task in ("", f"task/{pid}/"))
        return cls(*(whole[name] - loop[name] for name in ("syscr", "rchar", "syscw", "wchar")))

    def since(self, before: "Io") -> "Io":
        return Io(
            self.reads - before.reads,
            self.read_bytes - before.read_bytes,
            self.writes - before.writes,
            self.written_bytes - before.written_bytes,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the daemon, in bytes. `peak_bytes` counts from when it was started."""

    resident_bytes: int
    peak_bytes: int
    proportional_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Memory":
        status = _numbers(Path(f"/proc/{pid}/status").read_text())
        rollup = _numbers(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return cls(*(1024 * kib for kib in (status["VmRSS"], status["VmHWM"], rollup["Pss"])))

    def __str__(self) -> str:
        return (
            f"RSS {self.resident_bytes / 1e6:.0f} MB, peak {self.peak_bytes / 1e6:.0f} MB, "
            f"PSS {self.proportional_bytes / 1e6:.0f} MB"
        )


def _numbers(text: str) -> dict[str, int]:
    """Lines `name: number` of a file in /proc."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}


class Walked:
    """Follows what a find over all snapshots prints: as names are sorted, one snapshot looks like the other."""

    def __init__(self, one: bytes) -> None:
        self._one = one
        self._rest = b""
        self._begun = False
        self.snapshots = 0
        """Walked to their ends, each with every entry."""
        self.entries = 0
        """`snapshots` itself, `latest`, and those of all snapshots that were walked to their ends."""

    def take(self, letters: bytes) -> None:
        """The next of find's output."""
        rest = self._rest + letters
        while rest:
            if not self._begun:
                self._begun, size = rest[:1] == b"d", 1
                assert self._begun, rest[:10]
            elif rest[:1] == b"l":
                size = 1
            elif len(rest) >= len(self._one):
                size = len(self._one)
                assert rest[:size] == self._one, f"snapshot {self.snapshots} of the walk is not as the others"
                self.snapshots += 1
            else:
                break
            self.entries += size
            rest = rest[size:]
        self._rest = rest

    def __str__(self) -> str:
        return f"{self.snapshots:,} snapshots, {self.entries:,} entries"


class Many:
    """One repository with many snapshots, from its first to the walk over all."""

    def __init__(self, folder: Path, tree: Path, count: int) -> None:
        self._tree = tree
        self._names = [f"snapshot {number:06d}" for number in range(count)]
        self._rng: Final = random.Random(count)
        self._lines: dict[str, dict[Path, bytes]] = {}
        """For each snapshot what was appended right before it."""
        self._repository = folder / "repository"
        self._mount = Mounted(self._repository, folder / "mnt", CALM)
        self._begun_s = time.monotonic()
        init(self._repository, "--reserve", "0", "--headspace", "0")

    def run(self) -> None:
        """Everything; raises AssertionError where something is not as it should be."""
        try:
            self._mount.start()
            self._copy_in()
            self._make_snapshots()
            self._mount.umount()
            self._mount_again()
            self._find_over_all()
            self._compare_some()
            assert not (trouble := self._mount.trouble()), trouble
            self._mount.umount()
        finally:
            self._mount.clean_up()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun_s:6.0f}s  {text}", flush=True)

    def _copy_in(self) -> None:
        subprocess.run(["cp", "-a", self._tree, self._mount.live / "tree"], check=True)
        memory = Memory.of(self._mount.pid)
        self._say(f"copied in: {memory}")
        assert memory.peak_bytes <= COPY_MEMORY_BYTES_MAX

    def _make_snapshots(self) -> None:
        files = [path.relative_to(self._tree) for path in regular_files(self._tree)]
        assert len(files) >= CHANGED, "too small a tree"
        commits: list[tuple[float, Io]] = []
        for name in self._names:
            before = Io.of(self._mount.pid)
            if commits:
                self._change(name, self._rng.sample(files, CHANGED))
            begun_s = time.perf_counter()
            self._mount.commit(name)
            commits.append((time.perf_counter() - begun_s, Io.of(self._mount.pid).since(before)))
            if len(commits) % max(1, len(self._names) // 10) == 0:
                latest = commits[-(len(self._names) // 10) :]
                calls = ", ".join(f"{what} {median(_count(io, what) for _, io in latest):,.0f}" for what in COUNTED)
                self._say(f"{len(commits)} snapshots; {Memory.of(self._mount.pid)}; a commit: {calls}")
        self._judge(commits[1:])

    def _change(self, name: str, paths: list[Path]) -> None:
        self._lines[name] = {}
        for path in paths:
            line = self._lines[name][path] = f"/* for {name} */\n".encode()
            (self._mount.live / "tree" / path).write_bytes((self._tree / path).read_bytes() + line)

    def _judge(self, commits: list[tuple[float, Io]]) -> None:
        """The first snapshot, which holds the whole tree, is not among them."""
        times_ms = [1000 * seconds for seconds, _ in commits]
        self._say(f"a commit took {median(times_ms):.0f} ms in the median, {max(times_ms):.0f} ms at worst")
        tenth = max(1, len(commits) // 10)
        first, last = commits[:tenth], commits[-tenth:]
        for what in COUNTED:
            early, late = (median(_count(io, what) for _, io in some) for some in (first, last))
            self._say(f"{what} of a commit and its ten changes: {early:,.0f} at first, {late:,.0f} at last")
            slack = SLACK_BYTES if what.endswith("bytes") else SLACK_CALLS
            assert late <= early * GROWTH_MAX + slack, f"{what} of a commit grow with the number of snapshots"

    def _mount_again(self) -> None:
        begun_s = time.perf_counter()
        self._mount.start()
        ready_s = time.perf_counter() - begun_s
        begun_s = time.perf_counter()
        listed = self._mount.names()
        self._say(f"mounted in {ready_s:.2f} s; ls took {time.perf_counter() - begun_s:.3f} s; {self._memory()}")
        assert listed == self._names
        begun_s = time.perf_counter()
        rows = ballast_json("snapshot", "list", self._repository)
        assert isinstance(rows, list) and len(rows) == len(self._names)
        self._say(f"`ballast snapshot list` took {time.perf_counter() - begun_s:.2f} s")

    def _memory(self) -> Memory:
        memory = Memory.of(self._mount.pid)
        assert memory.peak_bytes <= MEMORY_BYTES_MAX, f"{memory}: more than {MEMORY_BYTES_MAX / 1e6:.0f} MB"
        return memory

    def _find_over_all(self) -> None:
        one = subprocess.run(_find(self._mount.snapshots / self._names[0]), check=True, capture_output=True).stdout
        source = subprocess.run(_find(self._tree), check=True, capture_output=True).stdout
        assert Counter(one) == Counter(b"d" + source), "the first snapshot does not hold what the tree does"
        walked, total = Walked(one), len(self._names) * len(one)
        self._say(f"find over {len(self._names):,} × {len(one):,} entries begins")
        begun_s, shown = time.perf_counter(), 0
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(_find(self._mount.snapshots), stdout=subprocess.PIPE, stderr=errors) as walk,
        ):
            assert walk.stdout is not None
            try:
                while piece := os.read(walk.stdout.fileno(), PIECE_BYTES):
                    walked.take(piece)
                    if walked.entries * PROGRESS_LINES // total > shown:
                        shown = walked.entries * PROGRESS_LINES // total
                        rate = walked.entries / (time.perf_counter() - begun_s)
                        self._say(f"{walked.entries / total:4.0%}  {walked}, {rate:,.0f}/s; {self._memory()}")
            except KeyboardInterrupt:
                self._say(f"interrupted after {time.perf_counter() - begun_s:.0f} s: {walked}; {self._memory()}")
                raise
            finally:
                walk.kill()
            walk.wait()
            errors.seek(0)
            assert walk.returncode == 0, errors.read(2000).decode(errors="replace")
        took_s = time.perf_counter() - begun_s
        self._say(f"find ended after {took_s:.0f} s: {walked}, {took_s / walked.entries * 1e6:.1f} µs each")
        assert walked.snapshots == len(self._names) and walked.entries == total + 2, f"{walked}"

    def _compare_some(self) -> None:
        """In a snapshot the files changed for it have its line; in the snapshot before they have another, or none."""
        looked_at = self._rng.sample(range(1, len(self._names)), min(LOOKED_AT, len(self._names) - 1))
        for index in looked_at:
            for path, line in self._lines[self._names[index]].items():
                here, before = (
                    (self._mount.snapshots / name / "tree" / path).read_bytes()
                    for name in (self._names[index], self._names[index - 1])
                )
                assert here == (self._tree / path).read_bytes() + line, f"{self._names[index]}: {path}"
                assert before != here, f"{self._names[index - 1]}: {path}"
        self._say(f"the changed files of {len(looked_at)} snapshots hold what they should; {self._memory()}")


def _count(io: Io, what: str) -> int:
    counts = {"reads": io.reads, "read_bytes": io.read_bytes, "writes": io.writes, "written_bytes": io.written_bytes}
    return counts[what]


def _find(root: Path) -> list[str]:
    """Prints a letter for each entry: its kind."""
    return ["find", str(root), "-printf", "%y"]


def main() -> int:
    """Run the drill."""
    count = int(sys.argv[1])
    try:
        tree = Path(sys.argv[2]) if len(sys.argv) > 2 else unpack_linux(TREES)
    except BenchError as error:
        print(f"many-snapshots: {error}", file=sys.stderr)
        return 1
    try:
        with open_directory() as folder:
            Many(folder, tree, count).run()
    except KeyboardInterrupt:
        return 130
    print(
        f"{count} snapshots: every count agrees, no commit costs more for them, memory below "
        f"{MEMORY_BYTES_MAX / 1e6:.0f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
