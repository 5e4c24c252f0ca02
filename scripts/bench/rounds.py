"""The order of things: each round does every step with every peer in turn, then the next step.

Owner of: between two peers' turns at one step nothing changes but the machine's mood, and the turn to go
first passes round.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.data import Changes, Edits
from bench.measure import Meter, Usage, drop_caches
from bench.peers import Peer, Reading

FIRST: Final = "first-copy"
AGAIN: Final = "unchanged-copy"
CHANGED: Final = "changed-copy"
SMALL: Final = "ten-changes"
LARGE: Final = "large-file"
EDITED: Final = "edited-large-file"
RESTORE: Final = "restore"
RESTORE_LARGE: Final = "restore-large"
DELETE: Final = "delete-and-collect"
FIND: Final = "find"
COPY_OUT: Final = "copy-out"
READ_LARGE: Final = "read-large"
STEPS: Final[tuple[str, ...]] = (
    FIRST, AGAIN, CHANGED, SMALL, LARGE, EDITED, FIND, COPY_OUT, READ_LARGE, RESTORE, RESTORE_LARGE, DELETE,
)  # fmt: skip
READ_STEPS: Final = (FIND, COPY_OUT, READ_LARGE)

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One peer at one step in one round."""

    round: int
    step: str
    peer: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Size:
    """What a peer's repository occupied at the end of a round, in bytes; and what the edits added to it."""

    round: int
    peer: str
    size_bytes: int
    grown_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `tree` belongs to the benchmark, which changes it; `large` lies alone in its directory."""

    peers: Sequence[Peer]
    steps: Sequence[str]
    rounds: int
    tree: Path
    large: Path
    scratch: Path


@dataclass(slots=True)
class Results:
    """All samples, in the order in which they were taken."""

    samples: list[Sample]
    sizes: list[Size]
    cold: bool = True
    grown: dict[tuple[int, str], int] = field(default_factory=dict)
    """By round and peer: what storing the edited large file added, in bytes."""


def run(plan: Plan, note: Note) -> Results:
    """Runs the plan. Raises BenchError when a peer fails; the tree is as before in any case."""
    results = Results([], [])
    changes = Changes(plan.tree)
    for number in range(1, plan.rounds + 1):
        turn = (number - 1) % len(plan.peers)
        peers = [*plan.peers[turn:], *plan.peers[:turn]]
        try:
            for peer in peers:
                peer.setup()
            _store(plan, changes, number, peers, results, note)
            if any(step in plan.steps for step in READ_STEPS):
                _read(plan, number, peers, results, note)
            _restore(plan, number, peers, results, note)
            if DELETE in plan.steps:
                for peer in peers:
                    results.cold = drop_caches() and results.cold
                    _keep_any(
                        results,
                        number,
                        DELETE,
                        peer,
                        peer.delete("changed" if CHANGED in plan.steps else "first"),
                        note,
                    )
        finally:
            changes.revert()
            _close(peers, number, results, note)
    return results


def _close(peers: Sequence[Peer], number: int, results: Results, note: Note) -> None:
    """Closes every peer, even when one cannot be: a mount must not stay behind."""
    failing = sys.exc_info()[0] is not None
    for peer in peers:
        try:
            if not failing:
                grown = results.grown.get((number, peer.name))
                results.sizes.append(Size(number, peer.name, peer.size_bytes(), grown))
            peer.close()
        except Exception as error:
            if not failing:
                raise
            note(f"{peer.name} could not be closed: {error}")


def _store(plan: Plan, changes: Changes, number: int, peers: Sequence[Peer], results: Results, note: Note) -> None:
    def every(step: str, store: Callable[[Peer], Usage | None]) -> None:
        for peer in peers:
            _keep_any(results, number, step, peer, store(peer), note)

    _warm(plan.tree)
    every(FIRST, lambda peer: peer.store("first", plan.tree))
    if AGAIN in plan.steps:
        every(AGAIN, lambda peer: peer.store("again", plan.tree))
    if CHANGED in plan.steps:
        changes.apply()
        every(CHANGED, lambda peer: peer.store("changed", plan.tree))
    if SMALL in plan.steps:
        changes.apply_small()
        every(SMALL, lambda peer: peer.store_small("small", plan.tree, changes.small))
    if any(step in plan.steps for step in (LARGE, EDITED, READ_LARGE, RESTORE_LARGE)):
        _warm(plan.large.parent)
        every(LARGE, lambda peer: peer.store("large", plan.large.parent))
    if EDITED in plan.steps:
        before = {peer.name: peer.size_bytes() for peer in peers}
        edits = Edits(plan.large)
        try:
            edits.apply()
            every(EDITED, lambda peer: peer.store("edited", plan.large.parent))
        finally:
            edits.revert()
        for peer in peers:
            if any(sample.step == EDITED and sample.peer == peer.name for sample in results.samples):
                results.grown[number, peer.name] = peer.size_bytes() - before[peer.name]


def _restore(plan: Plan, number: int, peers: Sequence[Peer], results: Results, note: Note) -> None:
    """To the same disk as the repositories, from a cold cache."""
    target = plan.tree.parent.with_name("restored")
    for step, label, source in ((RESTORE, "first", plan.tree), (RESTORE_LARGE, "large", plan.large.parent)):
        for peer in peers if step in plan.steps else ():
            target.mkdir()
            try:
                results.cold = drop_caches() and results.cold
                _keep_any(results, number, step, peer, peer.restore(label, source, target), note)
            finally:
                shutil.rmtree(target)


def _read(plan: Plan, number: int, peers: Sequence[Peer], results: Results, note: Note) -> None:
    target = plan.scratch / "copied-out"
    for peer in peers:
        opened = peer.reading(plan.tree, plan.large)
        if opened is None:
            continue
        with opened as reading:
            for step, command in _reads(reading, target):
                if step not in plan.steps:
                    continue
                results.cold = drop_caches() and results.cold
                with Meter(reading.daemons) as meter:
                    meter.run("read", command)
                _keep(results, Sample(number, step, peer.name, meter.usage()), note)
                with suppress(FileNotFoundError):
                    shutil.rmtree(target)


def _reads(reading: Reading, target: Path) -> Iterator[tuple[str, list[str | Path]]]:
    # The size makes find call stat for every file.
    yield FIND, ["find", reading.tree, "-size", "+1G"]
    yield COPY_OUT, ["cp", "-r", reading.tree, target]
    yield READ_LARGE, ["dd", f"if={reading.large}", "of=/dev/null", "bs=1M"]


def _keep_any(results: Results, number: int, step: str, peer: Peer, usage: Usage | None, note: Note) -> None:
    if usage is not None:
        _keep(results, Sample(number, step, peer.name, usage), note)


def _keep(results: Results, sample: Sample, note: Note) -> None:
    results.samples.append(sample)
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in sample.usage.parts_s.items())
    note(f"round {sample.round}  {sample.step:<17} {sample.peer:<14} {sample.usage.wall_s:8.2f} s  ({parts})")


def _warm(root: Path) -> None:
    """Reads everything once, so that the source's disk is no part of what is measured."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
