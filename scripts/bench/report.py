"""What came out, as a table, as JSON, and as a line of the history.

Owner of: nothing that names a host, a user or a place is written; a machine is its class.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypedDict

import psutil

from bench.data import Extent
from bench.measure import Usage
from bench.rounds import STEPS, Results

MIB: Final = 1 << 20
OURS: Final = ("ballast-mount", "ballast")


class Figures(TypedDict):
    """One peer at one step, over all rounds: medians, and the range of the wall time."""

    wall_s: float
    wall_min_s: float
    wall_max_s: float
    cpu_s: float
    peak_bytes: int
    parts_s: dict[str, float]


class Report(TypedDict):
    """The whole document: `--json` prints it, the history has one on each line. Its keys are stable."""

    time: str
    commit: str
    machine: dict[str, str]
    versions: dict[str, str]
    data: dict[str, str | int]
    rounds: int
    cold_reads: bool
    steps: dict[str, dict[str, Figures]]
    ratios: dict[str, dict[str, dict[str, float]]]
    cpu_ratios: dict[str, dict[str, dict[str, float]]]
    size_bytes: dict[str, int]
    grown_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Data:
    """What was stored: which tree, how large, and the large file's size."""

    tree: str
    extent: Extent
    large_bytes: int


def _figures(usages: Sequence[Usage]) -> Figures:
    walls = [usage.wall_s for usage in usages]
    names = list(dict.fromkeys(name for usage in usages for name in usage.parts_s))
    return {
        "wall_s": round(statistics.median(walls), 3),
        "wall_min_s": round(min(walls), 3),
        "wall_max_s": round(max(walls), 3),
        "cpu_s": round(statistics.median(usage.cpu_s for usage in usages), 3),
        "peak_bytes": max(usage.peak_bytes for usage in usages),
        "parts_s": {
            name: round(statistics.median(usage.parts_s.get(name, 0.0) for usage in usages), 3) for name in names
        },
    }


def _ratios(by_peer: Mapping[str, Figures], column: Literal["wall_s", "cpu_s"]) -> dict[str, dict[str, float]]:
    """Each of ours over each peer: below 1 is faster, or takes less of the processor."""
    return {
        ours: {
            peer: round(by_peer[ours][column] / figures[column], 2)
            for peer, figures in by_peer.items()
            if peer not in OURS and figures[column] > 0
        }
        for ours in OURS
        if ours in by_peer
    }


def make(results: Results, data: Data, rounds: int, work: Path) -> Report:
    """Medians over all rounds."""
    steps: dict[str, dict[str, Figures]] = {}
    for step in STEPS:
        of_step = [sample for sample in results.samples if sample.step == step]
        peers = sorted({sample.peer for sample in of_step}, key=lambda peer: (peer in OURS, peer))
        if peers:
            steps[step] = {
                peer: _figures([sample.usage for sample in of_step if sample.peer == peer]) for peer in peers
            }
    sizes: dict[str, list[int]] = {}
    grown: dict[str, list[int]] = {}
    for size in results.sizes:
        sizes.setdefault(size.peer, []).append(size.size_bytes)
        if size.grown_bytes is not None:
            grown.setdefault(size.peer, []).append(size.grown_bytes)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(work),
        "versions": _versions(sizes),
        "data": {"tree": data.tree, **asdict(data.extent), "large_bytes": data.large_bytes},
        "rounds": rounds,
        "cold_reads": results.cold,
        "steps": steps,
        "ratios": {step: _ratios(by_peer, "wall_s") for step, by_peer in steps.items()},
        "cpu_ratios": {step: _ratios(by_peer, "cpu_s") for step, by_peer in steps.items()},
        "size_bytes": {peer: int(statistics.median(of_peer)) for peer, of_peer in sizes.items()},
        "grown_bytes": {peer: int(statistics.median(of_peer)) for peer, of_peer in grown.items()},
    }


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _commit() -> str:
    root = str(Path(__file__).parents[2])
    commit = _said("git", "-C", root, "rev-parse", "--short=12", "--verify", "--quiet", "HEAD")
    changed = _said("git", "-C", root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'none'}{'+changes' if changed else ''}"


def _machine(work: Path) -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "memory_gib": str(round(psutil.virtual_memory().total / (1 << 30))),
        "arch": platform.machine(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "filesystem": _said("stat", "-f", "-c", "%T", str(work)),
    }


def _versions(peers: Iterable[str]) -> dict[str, str]:
    known = {"restic": ("restic", "version"), "borg": ("borg", "--version"), "cp": ("cp", "--version")}
    lines = {peer: _said(*known[peer]).partition("\n")[0] for peer in peers if peer in known}
    # "restic 0.14.0 compiled with ...", "borg 1.2.4", "cp (GNU coreutils) 9.1"
    return {peer: next((word for word in line.split() if word[:1].isdigit()), line) for peer, line in lines.items()}


def table(report: Report) -> str:
    """For people: one table a step, then the sizes."""
    stored = report["data"]
    content_mib, large_mib = int(stored["content_bytes"]) // MIB, int(stored["large_bytes"]) // MIB
    lines = [f"{stored['tree']}: {stored['files']} files, {content_mib} MiB; large file {large_mib} MiB"]
    lines.append(f"wall time: median of {report['rounds']}; ratios of it (of CPU time): above 1 Ballast is slower")
    if not report["cold_reads"]:
        lines.append("The caches could not be dropped (not root): the reads are warm.")
    for step, by_peer in report["steps"].items():
        ratios, cpu = report["ratios"][step], report["cpu_ratios"][step]
        others = [f"{ours} /" for ours in ratios]
        head = f"\n{step:<17}{'s':>8}  {'min - max':>15}{'CPU s':>8}{'MiB':>7}"
        lines.append(head + "".join(f"{title:>17}" for title in others) + "   parts, s")
        for peer, figures in by_peer.items():
            spread = f"{figures['wall_min_s']:.2f} - {figures['wall_max_s']:.2f}"
            both = [(ratios[ours].get(peer), cpu[ours].get(peer)) for ours in ratios]
            ratio = "".join(
                f"{_ratio(wall) + (f' ({_ratio(used)})' if used is not None else ''):>17}" for wall, used in both
            )
            parts = figures["parts_s"]
            shown = (
                "   " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()) if len(parts) > 1 else ""
            )
            lines.append(
                f"  {peer:<15}{figures['wall_s']:>8.2f}  {spread:>15}{figures['cpu_s']:>8.2f}"
                f"{figures['peak_bytes'] / MIB:>7.0f}{ratio}{shown}"
            )
    lines.append("\nrepository at the end, MiB")
    lines.extend(f"  {peer:<15}{size / MIB:>8.0f}" for peer, size in report["size_bytes"].items())
    if report["grown_bytes"]:
        lines.append("\nadded to it by the edits of the large file, MiB")
        lines.extend(f"  {peer:<15}{size / MIB:>8.1f}" for peer, size in report["grown_bytes"].items())
    return "\n".join(line.rstrip() for line in lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def append_history(report: Report, history: Path) -> None:
    """One line of JSON at the end of `history`."""
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(report, sort_keys=True) + "\n")
