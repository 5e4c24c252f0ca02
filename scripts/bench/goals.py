"""The goals, each as a bound on one figure or on the ratio of two; pure.

Owner of: a goal that was not measured is never counted as met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

from bench import steps
from bench.record import AMOUNT, BYTES, CPU, PEAK, RATE, WALL, Failure, Figures

DIRECT: Final = "ballast"
MOUNTED: Final = "ballast-mount"
MOUNTS: Final = ("restic", "borg", "borg2", "s3ql")
"""Other programs' mounts: of them the best counts."""
MB: Final = 1e6
EXT4_WARM_LIMIT: Final = 1.2
"""What is still called the kernel's own speed."""
FLAT_LIMIT: Final = 1.5
"""What is still called flat, from 1x to 16x."""

Verdict = Literal["met", "missed", "not measured"]


@dataclass(frozen=True, slots=True)
class Term:
    """One figure: of the named peers the one that has it; of several the best."""

    step: str
    peers: tuple[str, ...]
    key: str = WALL
    larger_is_better: bool = False

    def value(self, figures: Figures, key: str | None = None) -> tuple[float, str] | None:
        """The value and whose it is; None where nobody has it."""
        at = figures.get(self.step, {})
        found = [(at[peer][key or self.key], peer) for peer in self.peers if (key or self.key) in at.get(peer, {})]
        if not found:
            return None
        return max(found) if self.larger_is_better else min(found)


@dataclass(frozen=True, slots=True)
class Goal:
    """`ours` over `theirs` (or over `scale` where nobody is compared with) is at most, or at least, `limit`."""

    what: str
    against: str
    limit: float
    ours: Term
    theirs: Term | None = None
    at_least: bool = False
    unit: str = "×"
    scale: float = 1.0


class Outcome(TypedDict):
    """One line of the table; `measured` and the ratio of CPU time are None where there are none."""

    what: str
    against: str
    goal: str
    measured: float | None
    unit: str
    cpu_ratio: float | None
    verdict: Verdict
    why: str


def _beside(
    what: str, step: str, ours: str, theirs: str | tuple[str, ...], limit: float, key: str = WALL, *, best: str = ""
) -> Goal:
    """Ours is at most `limit` times theirs."""
    peers = (theirs,) if isinstance(theirs, str) else theirs
    return Goal(what, best or peers[0], limit, Term(step, (ours,), key), Term(step, peers, key))


def _faster(what: str, step: str, theirs: str | tuple[str, ...], limit: float, *, best: str = "") -> Goal:
    """Our rate is at least `limit` times theirs."""
    peers = (theirs,) if isinstance(theirs, str) else theirs
    ours = Term(step, (MOUNTED,), RATE)
    return Goal(what, best or peers[0], limit, ours, Term(step, peers, RATE, larger_is_better=True), at_least=True)


def _below(what: str, step: str, key: str, limit: float, unit: str, scale: float = 1.0) -> Goal:
    return Goal(what, "", limit, Term(step, (MOUNTED, DIRECT), key), unit=unit, scale=scale)


_BEST: Final = "best peer's mount"
_FIRST: Final = "straight in, first copy of the tree"
_LARGE: Final = "straight in, large file"
_LIVE: Final = "cp -a of the tree into live"
_READ: Final = "large file through the mount, cold: speed"
_COMMIT: Final = "commit after ten changes"
_MILLION: Final = "mount, most files and chunks"

GOALS: Final[tuple[Goal, ...]] = (
    _beside(_FIRST, steps.FIRST, DIRECT, "restic", 0.6),
    _beside(_FIRST, steps.FIRST, DIRECT, "borg", 0.7),
    _beside("straight in, unchanged tree", steps.AGAIN, DIRECT, "restic", 0.4),
    _beside(_LARGE, steps.LARGE, DIRECT, "tar-zstd", 1.0),
    _beside(_LARGE, steps.LARGE, DIRECT, "restic", 0.4),
    _beside(_LARGE, steps.LARGE, DIRECT, "borg", 0.8),
    _beside(_LIVE, steps.FIRST, MOUNTED, "null-mount", 1.5, "cp_s"),
    _beside(_LIVE, steps.FIRST, MOUNTED, "s3ql", 0.15, "cp_s"),
    Goal("large file into live", "straight in", 1.3, Term(steps.LARGE, (MOUNTED,)), Term(steps.LARGE, (DIRECT,))),
    _faster(_READ, steps.READ_LARGE, "restic", 3.0),
    _faster(_READ, steps.READ_LARGE, "borg2", 1.3),
    _faster(_READ, steps.READ_LARGE, "c-passthrough", 0.4),
    _faster("random 4 KiB reads, cold: speed", steps.READ_RANDOM, MOUNTS, 3.0, best=_BEST),
    _beside("cp -r of the tree out of a snapshot", steps.COPY_OUT, MOUNTED, MOUNTS, 0.5, best=_BEST),
    _beside("find of a snapshot, cold mount", steps.FIND, MOUNTED, MOUNTS, 0.4, best=_BEST),
    _beside("stat of all in a snapshot, cold mount", steps.STAT, MOUNTED, MOUNTS, 0.4, best=_BEST),
    _beside("the same, warm", steps.STAT_WARM, MOUNTED, "cp", EXT4_WARM_LIMIT, best="ext4"),
    _beside("restore of the tree", steps.RESTORE, DIRECT, "restic", 0.6),
    _beside("restore of the tree", steps.RESTORE, DIRECT, "cp", 1.5, best="cp -a, sync"),
    _beside("restore of the file", steps.RESTORE_LARGE, DIRECT, "restic", 0.6),
    _beside("restore of the file", steps.RESTORE_LARGE, DIRECT, "cp", 1.5, best="cp -a, sync"),
    _below(f"{_COMMIT}, tree", steps.TEN_COMMITS, "commit_s", 100, "ms", 1e-3),
    _below(f"{_COMMIT}, most files", steps.growth("files", 16), "commit_s", 100, "ms", 1e-3),
    Goal(
        f"{_COMMIT}, 16 x the files", "1 x", FLAT_LIMIT,
        Term(steps.growth("files", 16), (MOUNTED,), "commit_s"),
        Term(steps.growth("files", 1), (MOUNTED,), "commit_s"),
    ),
    _below(f"{_MILLION}: ready", steps.growth("chunks", 16), "ready_s", 0.5, "s"),
    _below(f"{_MILLION}: idle", steps.growth("chunks", 16), "idle_bytes", 150, "MB", MB),
    _below("decision of an emergency collection", steps.DECISION, CPU, 100, "ms", 1e-3),
    _beside("repository size, tree", steps.SIZE_TREE, DIRECT, "restic", 1.05, BYTES),
    _beside("the same, beyond an empty repository", steps.GROWN_TREE, DIRECT, "restic", 1.05, BYTES),
    _beside("growth by the 200 edits", steps.GROWN_EDITS, DIRECT, "restic", 0.35, BYTES),
    _beside("delete a snapshot and collect", steps.DELETE, DIRECT, "restic", 0.1),
    _beside("peak memory, copying in", steps.FIRST, DIRECT, "restic", 1.25, PEAK),
    _below("peak memory, copying in, most files", steps.STRAIGHT_MILLION, PEAK, 400, "MB", MB),
)  # fmt: skip


def judge(figures: Figures, failures: Sequence[Failure] = (), goals: Sequence[Goal] = GOALS) -> list[Outcome]:
    """Every goal in its order."""
    return [_judge_one(goal, figures, failures) for goal in goals]


def _judge_one(goal: Goal, figures: Figures, failures: Sequence[Failure]) -> Outcome:
    limit = f"{'≥' if goal.at_least else '≤'} {goal.limit:g} {goal.unit}"
    outcome: Outcome = {
        "what": goal.what, "against": goal.against, "goal": limit, "measured": None, "unit": goal.unit,
        "cpu_ratio": None, "verdict": "not measured", "why": "",
    }  # fmt: skip
    ours = goal.ours.value(figures)
    theirs = goal.theirs.value(figures) if goal.theirs else (goal.scale, "")
    if ours is None or theirs is None or theirs[0] <= 0:
        absent = goal.ours if ours is None else goal.theirs
        outcome["why"] = _reason(absent, failures) if absent is not None else ""
        return outcome
    measured = ours[0] / theirs[0]
    met = measured >= goal.limit if goal.at_least else measured <= goal.limit
    outcome["measured"] = float(f"{measured:.3g}") if measured < 1000 else round(measured)
    outcome["verdict"] = "met" if met else "missed"
    if goal.theirs is not None and len(goal.theirs.peers) > 1:
        outcome["why"] = theirs[1]
    if goal.theirs is not None and goal.ours.key in (WALL, RATE):
        outcome["cpu_ratio"] = _cpu_ratio(figures, goal.ours.step, ours[1], theirs[1])
    return outcome


def _cpu_ratio(figures: Figures, step: str, ours: str, theirs: str) -> float | None:
    own, other = cpu_each(figures[step][ours]), cpu_each(figures[step].get(theirs, {}))
    return round(own / other, 2) if own is not None and other else None


def cpu_each(keys: Mapping[str, float]) -> float | None:
    """CPU time, for each read, byte or file where these were counted."""
    return keys[CPU] / (keys.get(AMOUNT) or 1) if CPU in keys else None


def _reason(term: Term, failures: Sequence[Failure]) -> str:
    """Why nobody has the figure: what was said when it failed, most to the point first."""
    for failure in failures:
        if failure.peer in term.peers and failure.step == term.step:
            return f"failed: {failure.reason}"
    for failure in failures:
        if failure.peer in term.peers:
            return failure.reason if failure.step == steps.INSTALLED else f"{failure.step} failed: {failure.reason}"
    return "not run"


def counted(outcomes: Sequence[Outcome]) -> Mapping[Verdict, int]:
    """How many are met, missed and not measured."""
    verdicts: tuple[Verdict, ...] = ("met", "missed", "not measured")
    return {verdict: sum(outcome["verdict"] == verdict for outcome in outcomes) for verdict in verdicts}
