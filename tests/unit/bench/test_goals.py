"""The table of goals: each is judged by the right figures, and none is met that was not measured."""

import json
from pathlib import Path

import pytest
from bench import goals, report, steps
from bench.deciding import read_decision
from bench.goals import GOALS, Goal, Term, judge
from bench.measure import BenchError, Usage
from bench.record import AMOUNT, BYTES, CPU, PEAK, RATE, WALL, Failure, Figures, Recorder, Sample, medians, values_of

TREE_SIZE = Goal("size", "restic", 1.05, Term("size", ("ballast",), BYTES), Term("size", ("restic",), BYTES))
SPEED = Goal(
    "speed",
    "best",
    3.0,
    Term("read", ("ballast-mount",), RATE),
    Term("read", ("restic", "borg"), RATE, larger_is_better=True),
    at_least=True,
)


def test_a_bound_is_met_up_to_its_limit() -> None:
    at: Figures = {"size": {"ballast": {BYTES: 105.0}, "restic": {BYTES: 100.0}}}
    assert judge(at, goals=[TREE_SIZE])[0]["verdict"] == "met"
    at["size"]["ballast"][BYTES] = 106.0
    (outcome,) = judge(at, goals=[TREE_SIZE])
    assert (outcome["verdict"], outcome["measured"], outcome["goal"]) == ("missed", 1.06, "≤ 1.05 ×")


def test_speed_is_compared_with_the_best_that_was_measured() -> None:
    at: Figures = {
        "read": {
            "ballast-mount": {RATE: 600.0, WALL: 1.0, CPU: 1.2, AMOUNT: 600.0},
            "restic": {RATE: 100.0, WALL: 6.0, CPU: 0.6, AMOUNT: 600.0},
            "borg": {RATE: 250.0, WALL: 2.0, CPU: 2.0, AMOUNT: 500.0},
        }
    }
    (outcome,) = judge(at, goals=[SPEED])
    assert (outcome["verdict"], outcome["measured"], outcome["why"]) == ("missed", 2.4, "borg")
    assert outcome["cpu_ratio"] == 0.5, "of each read: the reads end with their time"
    del at["read"]["borg"]
    (outcome,) = judge(at, goals=[SPEED])
    assert (outcome["verdict"], outcome["measured"], outcome["why"]) == ("met", 6.0, "restic")


def test_what_was_not_measured_is_not_met_and_says_why() -> None:
    for outcome in judge({}):
        assert outcome["verdict"] == "not measured"
        assert outcome["measured"] is None
        assert outcome["why"] == "not run"
    failures = [
        Failure("all", steps.INSTALLED, "s3ql", "not installed: no package"),
        Failure("tree", steps.AGAIN, "restic", "restic backup ended with 1"),
    ]
    ours: Figures = {
        step: {"ballast": {WALL: 1.0}, "ballast-mount": {"cp_s": 1.0}} for step in (steps.FIRST, steps.AGAIN)
    }
    why = {(outcome["what"], outcome["against"]): outcome["why"] for outcome in judge(ours, failures)}
    assert why["cp -a of the tree into live", "s3ql"] == "not installed: no package"
    assert why["straight in, unchanged tree", "restic"] == "failed: restic backup ended with 1"
    assert why["straight in, first copy of the tree", "restic"] == f"{steps.AGAIN} failed: restic backup ended with 1"
    assert why["straight in, first copy of the tree", "borg"] == "not run"


def test_every_goal_can_be_met_and_missed() -> None:
    for goal in GOALS:
        for better in (True, False):
            factor = goal.limit * (1.01 if goal.at_least is better else 0.99)
            at: Figures = {}
            if goal.theirs is not None:
                at.setdefault(goal.theirs.step, {})[goal.theirs.peers[0]] = {goal.theirs.key: 7.0}
            scale = 7.0 if goal.theirs is not None else goal.scale
            at.setdefault(goal.ours.step, {})[goal.ours.peers[0]] = {goal.ours.key: scale * factor}
            assert judge(at, goals=[goal])[0]["verdict"] == ("met" if better else "missed"), goal


def test_the_issue_s_rows_are_all_there() -> None:
    """What is bounded, and by how much, as the table of goals has it."""
    limits = {(goal.what, goal.against): goal.limit for goal in GOALS}
    assert limits["straight in, first copy of the tree", "restic"] == 0.6
    assert limits["straight in, large file", "tar-zstd"] == 1.0
    assert limits["large file through the mount, cold: speed", "c-passthrough"] == 0.4
    assert limits["random 4 KiB reads, cold: speed", "best peer's mount"] == 3.0
    assert limits["delete a snapshot and collect", "restic"] == 0.1
    assert limits["mount, most files and chunks: ready", ""] == 0.5
    assert len(limits) == len(GOALS)


def test_units_are_those_of_the_goal() -> None:
    at: Figures = {
        steps.growth("chunks", 16): {"ballast-mount": {"ready_s": 0.45, "idle_bytes": 151e6}},
        steps.DECISION: {"ballast-mount": {CPU: 0.05}},
        steps.STRAIGHT_MILLION: {"ballast": {PEAK: 399e6}},
    }
    found = {outcome["what"]: (outcome["measured"], outcome["unit"], outcome["verdict"]) for outcome in judge(at)}
    assert found["mount, most files and chunks: ready"] == (0.45, "s", "met")
    assert found["mount, most files and chunks: idle"] == (151.0, "MB", "missed")
    assert found["decision of an emergency collection"] == (50.0, "ms", "met")
    assert found["peak memory, copying in, most files"] == (399.0, "MB", "met")


def test_medians_keep_the_range_and_the_highest_peak() -> None:
    samples = [
        Sample("tree", "s", "p", n, {WALL: wall, PEAK: peak})
        for n, wall, peak in ((1, 3.0, 5), (2, 1.0, 9), (3, 2.0, 7))
    ]
    assert medians(samples) == {"s": {"p": {WALL: 2.0, PEAK: 9, "wall_min_s": 1.0, "wall_max_s": 3.0}}}


def test_a_rate_counts_what_was_done() -> None:
    values = values_of(Usage(2.0, 1.0, 10, {"read": 2.0}), 500)
    assert values == {WALL: 2.0, CPU: 1.0, PEAK: 10.0, RATE: 250.0, AMOUNT: 500}


def test_samples_are_on_the_disk_before_the_next_is_taken(tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    said: list[str] = []
    recorder = Recorder(log, said.append)
    recorder.keep(Sample("tree", "find", "borg", 1, {WALL: 0.25}))
    assert json.loads(log.read_text())["sample"]["values"] == {WALL: 0.25}
    recorder.fail(Failure("tree", "find", "restic", "no"))
    recorder.fail(Failure("tree", "find", "restic", "no"))
    assert [list(json.loads(line)) for line in log.read_text().splitlines()] == [["sample"], ["failure"]]
    assert len(said) == 2
    assert "FAILED: no" in said[1]


def test_the_decision_is_read_from_what_is_printed() -> None:
    said = "taking the census, once      1234\nwhat to free      10.0\nall of it           85.5\n"
    assert read_decision(said) == {CPU: pytest.approx(0.0855), "census_cpu_s": pytest.approx(1.234)}
    with pytest.raises(BenchError, match="no sum"):
        read_decision("nothing")


def test_the_table_shows_missed_and_absent_goals_loudly() -> None:
    at: Figures = {"size": {"ballast": {BYTES: 106.0}, "restic": {BYTES: 100.0}}}
    text = report.goals_table(judge(at, [Failure("a", "read", "borg", "it broke")], goals=[TREE_SIZE, SPEED]))
    assert "1.06 ×" in text
    assert "MISSED" in text
    assert "not measured" in text
    assert text.endswith("2 bounds: 0 met, 1 missed, 1 not measured")
    assert goals.counted(judge({}))["not measured"] == len(GOALS)
