"""Rounds of `kill -9` at a mount under a program with fsyncs; also a script: python -m tests.support.kill9 ROUNDS.

Ends only the daemon and the program that it started itself.
"""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.support.mounted import BUSY, CALM, Mounted, ballast, init, open_directory
from tests.support.program import EXECUTOR, Outcome, Step, look, outcome_of, plan, snapshots, states, write_program
from tests.support.world import Picture, World, difference

STEPS: Final = 6_000
"""More than a program gets done before the latest kill."""
RUN_S_MAX: Final = 2.0
PATIENCE_S: Final = 60.0
FILES_MAX: Final = 100
"""Beyond this the world begins anew, so that looking at all of it stays quick."""


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
        options = self._rng.choice((CALM, BUSY))
        mount = Mounted(self._repository, self._folder / "mnt", options)
        try:
            mount.start()
            self._compare(mount, World(), [], Outcome(0, 0, None))
            steps = plan(self._world, self._rng, STEPS, f"round {self.kills}")
            outcome = self._killed_under(mount, steps)
            if outcome.errno == 5: print(mount.log.read_text()[-3000:])
            self._check()
            mount.start()
            taken = self._compare(mount, self._world, steps, outcome)
            mount.umount()
        finally:
            mount.clean_up()
        self._check()
        self.kills += 1
        self.steps += outcome.returned
        promised = outcome.begun - taken
        return f"errno {outcome.errno} {steps[outcome.begun-1]} {outcome.returned} steps returned, the last {promised} of {outcome.begun} begun are gone"

    def _killed_under(self, mount: Mounted, steps: list[Step]) -> Outcome:
        program, notes = self._folder / "program", self._folder / "notes"
        write_program(steps, program)
        notes.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", EXECUTOR, program, notes, mount.live]) as worker:
            try:
                time.sleep(self._rng.uniform(0.1, RUN_S_MAX))
                mount.kill()
                worker.wait(PATIENCE_S)
            finally:
                worker.kill()
        return outcome_of(notes)

    def _compare(self, mount: Mounted, before: World, steps: list[Step], outcome: Outcome) -> int:
        """What is mounted now is one of the states that may be left; returns after how many steps."""
        found = look(mount.live)
        if not steps:
            assert found == self._world.picture(), difference(found, self._world.picture())
        else:
            self._world = self._state_like(found, before, steps, outcome)
        shown = set(mount.names())
        for name, returned, then in snapshots(before, steps, outcome):
            assert returned <= (name in shown), f"the snapshot '{name}' was made and is missing"
            if name in shown:
                self._kept[name] = then.picture()
        for name, wanted in self._kept.items():
            here = look(mount.snapshots / name)
            assert here == wanted, f"snapshot '{name}':\n{difference(here, wanted)}"
        return outcome.begun - sum(1 for _ in states(before, steps, outcome)) if not steps else self._taken

    def _state_like(self, found: Picture, before: World, steps: list[Step], outcome: Outcome) -> World:
        nearest, lines = "", 1 << 30
        left = sum(1 for _ in states(before, steps, outcome))
        for index, state in enumerate(states(before, steps, outcome)):
            wanted = state.picture()
            if found == wanted:
                self._taken = outcome.begun - (left - 1 - index)
                return state.copy()
            story = difference(found, wanted)
            if story.count("\n") < lines:
                nearest, lines = f"after {outcome.begun - (left - 1 - index)} steps it were:\n{story}", story.count("\n")
        raise AssertionError(f"no state between the last promise and the end ({outcome}) is like it; {nearest}")

    def _check(self) -> None:
        done = ballast("check", self._repository, "--read-data")
        assert done.returncode == 0, done.stdout + done.stderr


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
