"""Which costs stay flat while files, chunks or snapshots grow 16-fold. Ballast alone, through its command.

Owner of: on each axis the two other things stay as they are, and the same figures are taken at each size.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import steps
from bench.ballast import BALLAST, Mount, ballast, new_repository
from bench.data import FILES_PER_GROWING_DIRECTORY, add_small_files
from bench.measure import Meter, drop_caches, memory_bytes
from bench.record import CPU, PEAK, Recorder, Sample, values_of

MOUNTED: Final = "ballast-mount"
DIRECT: Final = "ballast"
STARTING_SNAPSHOTS: Final = 32
STARTING_FILES: Final = 2000
COMMITS: Final = 20
"""Of which the median counts, at each size."""
CHANGED_FILES: Final = 10
IDLE_AFTER_S: Final = 3.0
"""How long a mount is left alone before its memory is looked at."""
FIXED: Final = "fixed"
"""The snapshot that is browsed at every size: of the first files alone."""
SNAPSHOT_EVERY_FILES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Ground:
    """Where growth is measured. `most` is the number of files or chunks at 16x; `in_memory` a directory for sources."""

    work: Path
    in_memory: Path
    most: int
    recorder: Recorder
    drop: Callable[[], bool] = drop_caches


class Growing:
    """One repository that grows, and its mount."""

    def __init__(self, ground: Ground, axis: str) -> None:
        self.ground = ground
        self.axis = axis
        self.home = ground.work / f"growth-{axis}"
        self.repository = new_repository(self.home)
        self.mount = Mount(self.repository, self.home / "mnt")
        self.files = 0
        self._snapshots = 0
        self._writes = 0

    def close(self) -> None:
        self.mount.stop()
        shutil.rmtree(self.home)

    def keep(self, step: str, values: dict[str, float], peer: str = MOUNTED) -> None:
        self.ground.recorder.keep(Sample(self.axis, step, peer, 1, values))

    def fill_live(self, files: int) -> None:
        """Empty files, one request each, until `live` has `files`; committed now and then, as a user's would be."""
        while self.files < files:
            directory = self.mount.live / f"{self.files // FILES_PER_GROWING_DIRECTORY:06}"
            directory.mkdir(exist_ok=True)
            for _ in range(min(FILES_PER_GROWING_DIRECTORY, files - self.files)):
                os.mknod(directory / f"{self.files:08}", 0o644)
                self.files += 1
            if self.files % SNAPSHOT_EVERY_FILES == 0:
                self.snapshot()

    def snapshot(self, name: str = "") -> tuple[str, float]:
        """A snapshot on request, and the seconds that it took."""
        self._snapshots += 1
        name = name or f"s{self._snapshots:05}"
        began_s = time.perf_counter()
        (self.mount.snapshots / name).mkdir()
        return name, time.perf_counter() - began_s

    def change_ten(self) -> None:
        """New bytes in ten files, far from each other."""
        for number in range(CHANGED_FILES):
            at = (number * 7919 + self._writes * 31) % self.files
            path = self.mount.live / f"{at // FILES_PER_GROWING_DIRECTORY:06}" / f"{at:08}"
            path.write_bytes(b"%d %d\n" % (self._writes, at) * 4)
        self._writes += 1

    def measure(self, scale: int, more: dict[str, float]) -> None:
        """Every figure at one size."""
        commits: list[float] = []
        names: list[str] = []
        for _ in range(COMMITS):
            self.change_ten()
            name, seconds = self.snapshot()
            commits.append(seconds)
            names.append(name)
        self.mount.stop()
        values = {**more, "commit_s": statistics.median(commits), "commit_max_s": max(commits)}
        self.ground.recorder.cold = self.ground.drop() and self.ground.recorder.cold
        self.mount.start()
        values["ready_cold_s"] = self.mount.ready_s
        began_s = time.perf_counter()
        found = sum(len(files) for _, _, files in os.walk(self.mount.snapshots / FIXED))
        values |= {"find_fixed_s": time.perf_counter() - began_s, "fixed_files": float(found)}
        self.mount.start()
        values["ready_s"] = self.mount.ready_s
        time.sleep(IDLE_AFTER_S)
        values["idle_bytes"] = float(memory_bytes(self.mount.daemons))
        values |= self._delete(names[COMMITS // 2])
        self.keep(steps.growth(self.axis, scale), values)

    def _delete(self, name: str) -> dict[str, float]:
        """Deleting one snapshot, deciding (dry run), collecting: all through the mount, with the start of a command."""
        with Meter(self.mount.daemons) as meter:
            with meter.part("delete"):
                (self.mount.snapshots / name).rmdir()
            meter.run("decide", [BALLAST, "gc", self.repository, "--safety", "none", "--dry-run"])
            meter.run("collect", [BALLAST, "gc", self.repository, "--safety", "none"])
        values = values_of(meter.usage())
        return {key: values[key] for key in ("delete_s", "decide_s", "collect_s")} | {"delete_cpu_s": values[CPU]}


def files_part(ground: Ground) -> None:
    """Files in `live`: four fifths of `most` at 16x."""
    growing = Growing(ground, "files")
    try:
        growing.mount.start()
        for scale in steps.SCALES:
            wanted = ground.most * 4 // 5 * scale // steps.SCALES[-1]
            before = growing.files
            with Meter(growing.mount.daemons) as meter, meter.part("create"):
                growing.fill_live(wanted)
            usage = meter.usage()
            if scale == steps.SCALES[0]:
                growing.snapshot(FIXED)
                _more_snapshots(growing, STARTING_SNAPSHOTS)
            created = growing.files - before
            more = {
                "files": float(growing.files),
                "create_us": usage.wall_s / created * 1e6,
                "create_cpu_us": usage.cpu_s / created * 1e6,
                PEAK: float(usage.peak_bytes),
            }
            growing.measure(scale, more)
    finally:
        growing.close()


def snapshots_part(ground: Ground) -> None:
    """Snapshots of a few files: 32 at first, 512 at 16x."""
    growing = Growing(ground, "snapshots")
    try:
        growing.mount.start()
        growing.fill_live(STARTING_FILES)
        growing.snapshot(FIXED)
        for scale in steps.SCALES:
            _more_snapshots(growing, STARTING_SNAPSHOTS * scale)
            growing.measure(scale, {"snapshots": float(len(os.listdir(growing.mount.snapshots)))})
    finally:
        growing.close()


def chunks_part(ground: Ground) -> None:
    """Small files straight in, each with a chunk of its own: `most` at 16x. The source lies in memory."""
    growing = Growing(ground, "chunks")
    source = ground.in_memory / "growing"
    try:
        source.mkdir()
        growing.mount.start()
        growing.fill_live(STARTING_FILES)
        _more_snapshots(growing, STARTING_SNAPSHOTS)
        there = 0
        for scale in steps.SCALES:
            wanted = ground.most * scale // steps.SCALES[-1]
            add_small_files(source, there, wanted)
            growing.mount.stop()
            name = FIXED if scale == steps.SCALES[0] else f"straight-{scale}"
            create: Sequence[str | Path] = [BALLAST, "snapshot", "create", growing.repository, source, "--name", name]
            with Meter() as meter:
                meter.run("create", create)
            usage = meter.usage()
            if scale == steps.SCALES[-1]:
                growing.keep(steps.STRAIGHT_MILLION, values_of(usage, wanted), DIRECT)
            more = {
                "files": float(wanted),
                "chunks": float(_chunks(growing.repository)),
                "straight_in_us": usage.wall_s / (wanted - there) * 1e6,
                "straight_in_cpu_us": usage.cpu_s / (wanted - there) * 1e6,
                PEAK: float(usage.peak_bytes),
            }
            there = wanted
            growing.mount.start()
            growing.measure(scale, more)
    finally:
        shutil.rmtree(source, ignore_errors=True)
        growing.close()


def _more_snapshots(growing: Growing, count: int) -> None:
    """Snapshots, each with ten changes, until there are `count`."""
    while len(os.listdir(growing.mount.snapshots)) < count:
        growing.change_ten()
        growing.snapshot()


def _chunks(repository: Path) -> int:
    status: dict[str, int] = json.loads(ballast("status", repository, "--json"))
    return status["chunks"]


AXES: Final[dict[str, Callable[[Ground], None]]] = {
    "files": files_part,
    "chunks": chunks_part,
    "snapshots": snapshots_part,
}
