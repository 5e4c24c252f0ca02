"""Rounds of `kill -9` at a mount under a program with fsyncs; also a script: python -m tests.support.kill9 ROUNDS.

Ends only the daemon and the program that it started itself.
"""

import errno
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.support.mounted import BUSY, CALM, Mounted, ballast, init, open_directory
from tests.support.program import (
    EXECUTOR,
    Outcome,
    Step,
    look,
    nearest,
    outcome_of,
    plan,
    snapshots,
    states,
    write_program,
)
from tests.support.world import Picture, World, difference

STEPS: Final = 6_000
"""More than a program gets done before the latest kill."""
RUN_S_MIN: Final = 0.1
RUN_S_MAX: Final = 2.0
"""From when the program is started; an interpreter takes some 50 ms of that."""
PATIENCE_S: Final = 60.0
LOOKED_AT_MAX: Final = 8
"""Snapshots compared in a round, of all that were ever made."""
KILLED: Final = (None, errno.ENOTCONN, errno.ECONNABORTED)
"""What a program gets from a dead daemon; None: it came to the end of its steps."""


class Rounds:
    """One repository, killed again and again; each round goes on from what the one before left."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng: Final = random.Random(seed)
        self._repository = folder / "repository"
        self._world = World()
        self._kept: dict[str, Picture] = {}
        """The snapshots that were acknowledged."""
        self.kills = 0
        self.steps = 0
        init(self._repository, "--reserve", "0", "--headspace", "0")

    def run(self) -> str:
        """One round; returns a line about it. Raises AssertionError where something promised is missing."""
        mount = Mounted(self._repository, self._folder / "mnt", self._rng.choice((CALM, BUSY)))
        try:
            mount.start()
            found = look(mount.live)
            assert found == self._world.picture(), difference(found, self._world.picture())
            before, steps = self._world, plan(self._world, self._rng, STEPS, f"round {self.kills}")
            outcome = self._killed_under(mount, steps)
            assert not (trouble := mount.trouble()), trouble
            self._check()
            mount.start()
            taken, self._world = _state_like(look(mount.live), before, steps, outcome)
            self._compare_snapshots(mount, before, steps, outcome)
            assert not (trouble := mount.trouble()), trouble
            mount.umount()
        finally:
            mount.clean_up()
        self._check()
        self.kills += 1
        self.steps += outcome.returned
        return f"{outcome.returned} steps returned; {outcome.begun - taken} of {outcome.begun} begun are gone"

    def _killed_under(self, mount: Mounted, steps: list[Step]) -> Outcome:
        program, notes = self._folder / "program", self._folder / "notes"
        write_program(steps, program)
        notes.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", EXECUTOR, program, notes, mount.live]) as worker:
            try:
                time.sleep(self._rng.uniform(RUN_S_MIN, RUN_S_MAX))
                mount.kill()
                worker.wait(PATIENCE_S)
            finally:
                worker.kill()
        outcome = outcome_of(notes)
        assert outcome.errno in KILLED, f"{outcome}: {steps[outcome.begun - 1]}"
        return outcome

    def _compare_snapshots(self, mount: Mounted, before: World, steps: list[Step], outcome: Outcome) -> None:
        shown = set(mount.names())
        for name, returned, then in snapshots(before, steps, outcome):
            assert name in shown or not returned, f"the snapshot '{name}' was made and is missing"
            if name in shown:
                self._kept[name] = then.picture()
        for name in self._rng.sample(sorted(self._kept), min(LOOKED_AT_MAX, len(self._kept))):
            found = look(mount.snapshots / name)
            assert found == self._kept[name], f"snapshot '{name}':\n{difference(found, self._kept[name])}"

    def _check(self) -> None:
        done = ballast("check", self._repository, "--read-data")
        assert done.returncode == 0, done.stdout + done.stderr


def _state_like(found: Picture, before: World, steps: list[Step], outcome: Outcome) -> tuple[int, World]:
    """The state that was found among those that may be left: after how many steps, and the tree."""
    sizes = {path: row[3] for path, row in found.items()}
    for count, state in states(before, steps, outcome):
        if {path: len(state.thing(path).data) for path in state.names} == sizes and state.picture() == found:
            return count, state.copy()
    raise AssertionError(nearest(found, before, steps, outcome))


def main() -> int:
    """Run the drill."""
    rounds = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 100_000
    print(f"seed {seed}", flush=True)
    with open_directory() as folder:
        drill = Rounds(folder, seed)
        for number in range(1, rounds + 1):
            print(f"{number:3d}  {drill.run()}", flush=True)
    print(f"{drill.kills} kills, {drill.steps} steps: nothing promised is missing, check is clean each time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
