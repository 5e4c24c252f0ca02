"""Growth is measured through the command alone: every size has the same figures, and nothing is left."""

from pathlib import Path

import pytest
from bench import growth, steps
from bench.goals import judge
from bench.record import PEAK, Recorder, medians

MOST = 64


@pytest.mark.mount
@pytest.mark.slow
def test_chunks_have_the_same_figures_at_each_size(memory_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "STARTING_SNAPSHOTS", 2)
    monkeypatch.setattr(growth, "STARTING_FILES", 20)
    monkeypatch.setattr(growth, "COMMITS", 2)
    monkeypatch.setattr(growth, "IDLE_AFTER_S", 0.0)
    work, in_memory = memory_folder / "work", memory_folder / "memory"
    work.mkdir()
    in_memory.mkdir()
    recorder = Recorder(memory_folder / "samples.jsonl", lambda line: None)
    growth.chunks_part(growth.Ground(work, in_memory, MOST, recorder, drop=bool))
    figures = medians(recorder.samples)
    sizes = [figures[steps.growth("chunks", scale)]["ballast-mount"] for scale in steps.SCALES]
    assert sizes[0].keys() == sizes[1].keys() == sizes[2].keys()
    wanted = {"commit_s", "ready_s", "ready_cold_s", "idle_bytes", "find_fixed_s", "decide_s", "collect_s"}
    assert wanted <= sizes[0].keys()
    assert [size["files"] for size in sizes] == [MOST // 16, MOST // 4, MOST]
    assert sizes[0]["fixed_files"] == sizes[2]["fixed_files"] > 0
    assert sizes[0]["idle_bytes"] > 10e6
    assert sizes[2]["chunks"] >= MOST
    assert figures[steps.STRAIGHT_MILLION]["ballast"][PEAK] > 10e6
    judged = {outcome["what"]: outcome["verdict"] for outcome in judge(figures)}
    assert judged["mount, most files and chunks: idle"] == "met"
    assert list(work.iterdir()) == []
    assert list(in_memory.iterdir()) == []
