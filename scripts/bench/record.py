"""What was measured, kept line by line while it is measured: an interruption loses nothing.

Owner of: every figure has a place (part, step, peer, round), and one that could not be had has a reason there instead.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.measure import Usage

WALL: Final = "wall_s"
CPU: Final = "cpu_s"
PEAK: Final = "peak_bytes"
RESIDENT: Final = "peak_resident"
"""1 where the peak counts shared pages in each process, as PSS could not be read; else it is not there."""
RATE: Final = "rate"
"""Reads, bytes or files per second, as the step says."""
AMOUNT: Final = "amount"
"""How many of them: CPU time is compared for each, where a step ends with its time."""
DISK: Final = "disk_bytes"
"""What the daemons read from the disk during the step."""
BYTES: Final = "bytes"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One peer at one step in one round; the keys of `values` end in their unit."""

    part: str
    step: str
    peer: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """A peer that is missing from a step, or from all that follow in its part; `reason` is for people."""

    part: str
    step: str
    peer: str
    reason: str


def values_of(usage: Usage, amount: float | None = None) -> dict[str, float]:
    """A usage as the values of a sample; `amount` (bytes, reads, files) becomes a rate."""
    values = {WALL: usage.wall_s, CPU: usage.cpu_s, PEAK: float(usage.peak_bytes)}
    if usage.resident:
        values[RESIDENT] = 1.0
    if len(usage.parts_s) > 1:
        values |= {f"{name}_s": seconds for name, seconds in usage.parts_s.items()}
    if amount is not None and usage.wall_s > 0:
        values |= {RATE: amount / usage.wall_s, AMOUNT: amount}
    return values


class Recorder:
    """Keeps samples and failures in memory and, at once, as lines of JSON in `log`."""

    def __init__(self, log: Path | None, note: Note) -> None:
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []
        self.cold = True
        """False once the caches could not be dropped: the reads are warm then."""
        self._log = log
        self._note = note
        self._began_s = time.monotonic()

    def say(self, line: str) -> None:
        """A line of progress with the minutes since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self._began_s), 60)
        self._note(f"{minutes:3}:{seconds:02}  {line}")

    def keep(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._write({"sample": {**asdict(sample), "values": dict(sample.values)}})
        shown = ", ".join(f"{name} {_short(value)}" for name, value in sample.values.items())
        self.say(f"{sample.part:<10} {sample.step:<20} {sample.peer:<14} {shown}")

    def fail(self, failure: Failure) -> None:
        if failure not in self.failures:
            self.failures.append(failure)
            self._write({"failure": asdict(failure)})
            self.say(f"{failure.part:<10} {failure.step:<20} {failure.peer:<14} FAILED: {failure.reason}")

    def _write(self, document: Mapping[str, object]) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(document, sort_keys=True) + "\n")


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


Figures = dict[str, dict[str, dict[str, float]]]
"""By step, peer and key: the median over the rounds."""


def medians(samples: list[Sample]) -> Figures:
    """Medians of every value over the rounds; of wall time the least and the most too."""
    gathered: dict[str, dict[str, dict[str, list[float]]]] = {}
    for sample in samples:
        of_peer = gathered.setdefault(sample.step, {}).setdefault(sample.peer, {})
        for key, value in sample.values.items():
            of_peer.setdefault(key, []).append(value)
    figures: Figures = {}
    for step, peers in gathered.items():
        for peer, keys in peers.items():
            figures.setdefault(step, {})[peer] = {
                **{key: _median(key, values) for key, values in keys.items()},
                **({"wall_min_s": min(keys[WALL]), "wall_max_s": max(keys[WALL])} if WALL in keys else {}),
            }
    return figures


def _median(key: str, values: list[float]) -> float:
    """Of peaks the highest: they are bounds."""
    return max(values) if key == PEAK else statistics.median(values)
