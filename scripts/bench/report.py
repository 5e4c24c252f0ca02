"""What came out, as tables, as JSON, and as a line of the history.

Owner of: nothing that names a host, a user or a place is written; a machine is its class.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypedDict

import psutil

from bench import install, steps
from bench.goals import DIRECT, MOUNTED, Outcome, counted, cpu_each, judge
from bench.record import AMOUNT, BYTES, CPU, DISK, PEAK, RATE, RESIDENT, WALL, Failure, Figures, Recorder, medians

MIB: Final = 1 << 20
OURS: Final = (MOUNTED, DIRECT)
SIZES: Final = (
    steps.SIZE_EMPTY,
    steps.SIZE_TREE,
    steps.GROWN_TREE,
    steps.SIZE_LARGE,
    steps.GROWN_EDITS,
    steps.IMAGE,
    steps.GROWN_IMAGE,
)
PLAIN: Final = (WALL, CPU, PEAK, RESIDENT, RATE, AMOUNT, DISK, BYTES, "wall_min_s", "wall_max_s")
VERSION_COMMANDS: Final = {"restic": ["restic", "version"], "cp": ["cp", "--version"], "zstd": ["zstd", "--version"]}


class Report(TypedDict):
    """The whole document: `--json` prints it, the history has one on each line. Its keys are stable."""

    time: str
    commit: str
    machine: dict[str, str]
    versions: dict[str, str]
    data: dict[str, str | int]
    rounds: int
    cold_reads: bool
    peaks: str
    """What is summed up over the processes: `pss`, or `rss` where that could not be had everywhere."""
    finished: bool
    figures: Figures
    failures: list[dict[str, str]]
    goals: list[Outcome]


def make(recorder: Recorder, data: Mapping[str, str | int], rounds: int, work: Path, *, finished: bool) -> Report:
    """Medians over all rounds, and every goal."""
    figures = medians(recorder.samples)
    failures = [_placeless(failure, work) for failure in recorder.failures]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(work),
        "versions": _versions(),
        "data": dict(data),
        "rounds": rounds,
        "cold_reads": recorder.cold,
        "peaks": "rss" if any(RESIDENT in sample.values for sample in recorder.samples) else "pss",
        "finished": finished,
        "figures": {
            step: {peer: {key: _rounded(value) for key, value in keys.items()} for peer, keys in peers.items()}
            for step, peers in figures.items()
        },
        "failures": [asdict(failure) for failure in failures],
        "goals": judge(figures, failures),
    }


def _rounded(value: float) -> float:
    return round(value, 4) if abs(value) < 1000 else round(value)


def _placeless(failure: Failure, work: Path) -> Failure:
    reason = (
        failure.reason.replace(str(work), "WORK").replace(str(install.ROOT), "REPO").replace(platform.node(), "HOST")
    )
    return Failure(failure.part, failure.step, failure.peer, reason)


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def _commit() -> str:
    root = str(install.ROOT)
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


def _versions() -> dict[str, str]:
    commands = dict(VERSION_COMMANDS)
    for name, home in (("borg", "borg-1.4"), ("borg2", "borg-2")):
        own = install.TOOLS / home / "bin" / "borg"
        if own.exists():
            commands[name] = [str(own), "--version"]
    commands.setdefault("borg", ["borg", "--version"])
    versions: dict[str, str] = {}
    for name, command in sorted(commands.items()):
        words = _said(*command).partition("\n")[0].replace(",", " ").split()
        # "restic 0.14.0 compiled with ...", "borg 1.4.5", "cp (GNU coreutils) 9.1"
        found = [word for word in words if word.lstrip("v")[:1].isdigit() and "." in word]
        if found:
            versions[name] = found[0]
    return versions


def goals_table(outcomes: Sequence[Outcome]) -> str:
    """For people, and for the README: the measured figure beside each goal."""
    rows = [("what", "against", "goal", "measured", "(CPU)", "")]
    for outcome in outcomes:
        measured = "–" if outcome["measured"] is None else f"{outcome['measured']:g} {outcome['unit']}"
        cpu = "" if outcome["cpu_ratio"] is None else f"({outcome['cpu_ratio']:g})"
        verdict = {"met": "met", "missed": "MISSED", "not measured": "not measured"}[outcome["verdict"]]
        against = outcome["against"]
        if outcome["measured"] is not None and outcome["why"]:
            against += f" ({outcome['why']})"
        why = f": {outcome['why']}" if outcome["measured"] is None and outcome["why"] else ""
        rows.append((outcome["what"], against, outcome["goal"], measured, cpu, verdict + why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows]
    lines = [f"{line}  {row[5]}".rstrip() for line, row in zip(lines, rows, strict=True)]
    numbers = counted(outcomes)
    summary = ", ".join(f"{number} {verdict}" for verdict, number in numbers.items())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", f"{len(outcomes)} bounds: {summary}"])


def table(report: Report) -> str:
    """For people: what each step took, sizes, growth, what failed, and the goals."""
    data = ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{value}" for name, value in report["data"].items()
    )
    lines = [data, f"medians of {report['rounds']} round(s); the last columns: wall time over that peer's (CPU time)"]
    if not report["cold_reads"]:
        lines.append("The caches could not be dropped (not root): the reads are warm.")
    if report["peaks"] == "rss":
        lines.append("PSS could not be read of all processes: their peaks count the pages that they share in each.")
    if not report["finished"]:
        lines.append("Interrupted, or out of time: not every part was run.")
    growing = {steps.growth(axis, scale) for axis in steps.AXES for scale in steps.SCALES}
    for step, by_peer in report["figures"].items():
        if step not in growing and any(WALL in keys for keys in by_peer.values()):
            lines += ["", *_step_table(step, by_peer)]
    lines += _sizes_table(report["figures"])
    for axis in steps.AXES:
        lines += _growth_table(axis, report["figures"])
    if report["failures"]:
        lines += ["", "not measured"]
        lines += [
            f"  {failure['part']}, {failure['step']}, {failure['peer']}: {failure['reason']}"
            for failure in report["failures"]
        ]
    lines += ["", goals_table(report["goals"])]
    return "\n".join(line.rstrip() for line in lines)


def _step_table(step: str, by_peer: Mapping[str, Mapping[str, float]]) -> list[str]:
    ours = [peer for peer in OURS if peer in by_peer]
    lines = [
        f"{step:<22}{'s':>8}  {'min - max':>17}{'CPU s':>8}{'MiB':>7}" + "".join(f"{peer + ' /':>19}" for peer in ours)
    ]
    for peer, keys in sorted(by_peer.items(), key=lambda item: (item[0] in OURS, item[0])):
        if WALL not in keys:
            continue
        spread = f"{keys['wall_min_s']:.2f} - {keys['wall_max_s']:.2f}"
        ratios = "".join(f"{'' if peer in OURS else _ratios(by_peer[own], keys):>19}" for own in ours)
        more = ", ".join(f"{key.removesuffix('_s')} {value:.2f}" for key, value in keys.items() if key not in PLAIN)
        more += f" ({keys[DISK] / MIB:.0f} MiB from disk)" if DISK in keys else ""
        rate = f"{keys[RATE]:,.0f}/s " if RATE in keys else ""
        cpu = f"{keys[CPU]:8.2f}{keys[PEAK] / MIB:7.0f}" if CPU in keys else " " * 15
        lines.append(f"  {peer:<20}{keys[WALL]:>8.2f}  {spread:>17}{cpu}{ratios}   {rate}{more}")
    return lines


def _ratios(own: Mapping[str, float], other: Mapping[str, float]) -> str:
    if RATE in own and RATE in other and own[RATE]:
        wall = f"{other[RATE] / own[RATE]:.2f}"
    else:
        wall = f"{own[WALL] / other[WALL]:.2f}" if WALL in own and other[WALL] else ""
    own_cpu, other_cpu = cpu_each(own), cpu_each(other)
    return wall + (f" ({own_cpu / other_cpu:.2f})" if own_cpu is not None and other_cpu else "")


def _sizes_table(figures: Figures) -> list[str]:
    columns = [step for step in SIZES if any(BYTES in keys for keys in figures.get(step, {}).values())]
    if not columns:
        return []
    peers = sorted({peer for step in columns for peer in figures[step]}, key=lambda peer: (peer in OURS, peer))
    lines = ["", f"{'repository, MiB':<22}" + "".join(f"{step:>19}" for step in columns)]
    for peer in peers:
        sizes = [figures[step].get(peer, {}).get(BYTES) for step in columns]
        if any(size is not None for size in sizes):
            lines.append(
                f"  {peer:<20}" + "".join(f"{'' if size is None else f'{size / MIB:.1f}':>19}" for size in sizes)
            )
    return lines


def _growth_table(axis: str, figures: Figures) -> list[str]:
    found = [figures.get(steps.growth(axis, scale), {}).get(MOUNTED, {}) for scale in steps.SCALES]
    if not found[0]:
        return []
    head = "".join(f"{f'{scale} x':>14}" for scale in steps.SCALES)
    lines = ["", f"{'growth of ' + axis:<22}{head}{'16 x / 1 x':>14}"]
    for key in found[0]:
        values = [keys.get(key) for keys in found]
        shown = "".join(f"{_with_unit(key, value):>14}" for value in values)
        first, last = values[0], values[-1]
        ratio = f"{last / first:.2f}" if first and last is not None else ""
        lines.append(f"  {key.removesuffix('_bytes'):<20}{shown}{ratio:>14}")
    return lines


def _with_unit(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key.endswith("_bytes"):
        return f"{value / MIB:.1f} MiB"
    if key.endswith("_us"):
        return f"{value:.0f} µs"
    if key.endswith("_s"):
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:,.0f}"


def append_history(report: Report, history: Path) -> None:
    """One line of JSON at the end of `history`."""
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(report, sort_keys=True) + "\n")
