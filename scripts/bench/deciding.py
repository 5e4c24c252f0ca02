"""The part "decision": what `scripts/bench/decision` prints, as a figure."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench import steps
from bench.measure import BenchError
from bench.record import CPU, Recorder, Sample

ROOT: Final = Path(__file__).parents[2]
SUM: Final = re.compile(r"^all of it +([0-9.]+)$", re.MULTILINE)
CENSUS: Final = re.compile(r"^taking the census, once +([0-9.]+)$", re.MULTILINE)
DEADLINE_S: Final = 600.0


def decision_part(recorder: Recorder, chunks: int, snapshots: int) -> None:
    """CPU time of all that is decided before a snapshot is given up; the census, which a mount has, is apart."""
    words = [sys.executable, "-m", "bench.decision", "--chunks", str(chunks), "--snapshots", str(snapshots)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    if done.returncode != 0:
        raise BenchError(f"bench.decision ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    recorder.keep(Sample("decision", steps.DECISION, "ballast-mount", 1, read_decision(done.stdout)))


def read_decision(said: str) -> dict[str, float]:
    """Seconds of CPU time. Raises BenchError where the sum is missing."""
    found, census = SUM.search(said), CENSUS.search(said)
    if found is None:
        raise BenchError("bench.decision printed no sum")
    values = {CPU: float(found[1]) / 1000}
    return values | ({"census_cpu_s": float(census[1]) / 1000} if census else {})
