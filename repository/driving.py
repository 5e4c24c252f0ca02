"""Driving the ladder: one at a time, from an event to its end, with all that has to be told of it.

What to do next is decided by `policy/ladder.py` and done by `steps.py`. Owner of the state of the machine: nobody else
steps it. Who may drive, and in which order locks are taken, is said in `recovery.py`.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from repository.errors import BallastError, NoSpaceError
from repository.policy.ladder import State, step
from repository.policy.retention import Randomness
from repository.policy.room import Needs, Sight
from repository.policy.rungs import (
    Broke,
    Changed,
    Effect,
    Event,
    Interrupted,
    Mode,
    Purpose,
    Refuse,
    Refused,
    Retry,
    Step,
)
from repository.status import MODE_EVENT, RECOVERY_EVENT
from repository.steps import Parts, RecoverySettings, Run, Steps
from repository.turns import Turns
from repository.units import NS_PER_S, format_size

log = logging.getLogger(__name__)

_NOWHERE: Final = Sight(0, 0)


class Driver:
    """The state of one repository's recovery, and what changes it; the base of `Recovery`. Thread safe.

    `settings`, `rng` and `on_change` may be set at any time. `on_change` is told each new mode, on whatever thread
    found it: it must neither block nor call back.
    """

    def __init__(self, parts: Parts) -> None:
        self.settings = RecoverySettings()
        self.rng: Randomness = random.SystemRandom()
        self.on_change: Callable[[Mode], None] | None = None
        self._store = parts.store
        self._space = parts.space
        self._collector = parts.collector
        self._snapshots = parts.snapshots
        self._events = parts.events
        self._clock = parts.clock
        self._turns = Turns()
        """Whose turn it is."""
        self._lock = threading.Lock()
        """Over steps of the machine and the counters; innermost, never held over a system call."""
        self._state = State(Needs(segment_bytes=0, margin_bytes=0))
        self._stopping = False
        self._steps = Steps(parts, Run(0, self.settings, self.rng), self._hurried)

    @property
    def mode(self) -> Mode:
        """The mode now. Never blocks."""
        return Mode.FAILED if self._store.failed else self._state.mode

    def stop(self) -> None:
        """The repository is about to be closed: collections end between their rounds. Never blocks."""
        self._stopping = True

    def changed(self) -> None:
        """Something may have come free: the next allocation that fails is worth a climb. Never blocks."""
        self._step(Changed())

    def _note_refused(self, needed_bytes: int) -> None:
        """So much was refused without looking at anything. Never blocks."""
        with self._lock:
            if self._state.refuses:
                self._state, _ = step(self._state, Refused(needed_bytes, _NOWHERE))

    # --- with the turn -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A new way through the ladder."""
        self._steps.begin(self.settings, self.rng)
        needs = self._space.needs()
        margin = self.settings.margin_bytes
        if margin is not None:
            needs = replace(needs, margin_bytes=margin)
        with self._lock:
            self._state = replace(self._state, needs=needs, auto_delete=self.settings.auto_delete)

    def _drive(self, event: Event) -> Effect | None:
        """From an event to the end, one effect after the other. With the turn."""
        before = self._state.mode
        if self._store.failed and self._state.mode is not Mode.FAILED:
            self._step(Broke())
        try:
            with self._store.without_climbing():
                while True:
                    effects = self._step(event)
                    if not effects:
                        return None
                    if isinstance(effects[0], Retry | Refuse):
                        return effects[0]
                    event = self._steps.carry_out(effects[0])
        finally:
            if self._state.step is not Step.IDLE:
                self._step(Interrupted(self._last_sight()))
            mode = self._state.mode
            if mode is not before and {mode, before} & {Mode.READ_ONLY, Mode.FAILED}:
                self._events.add(MODE_EVENT, {"mode": mode.value, "before": before.value})

    def _last_sight(self) -> Sight:
        """When something went wrong that is not about room: a volume that does not answer lacks everything."""
        try:
            return self._space.sight()
        except BallastError:
            return Sight(0, 1)

    def _step(self, event: Event) -> tuple[Effect, ...]:
        with self._lock:
            before = self._state.mode
            self._state, effects = step(self._state, event)
            mode = self._state.mode
        if mode is not before:
            self._changed_mode(before, mode)
        return effects

    def _changed_mode(self, before: Mode, mode: Mode) -> None:
        log.info("recovery.mode", extra={"mode": mode.value, "before": before.value})
        self._store.allow_caches(mode is Mode.NORMAL)
        if self.on_change is not None:
            self.on_change(mode)

    def _hurried(self) -> bool:
        """Whether a collection should end early: at the end of all, or the margin's when somebody climbs."""
        return self._stopping or (self._state.purpose is Purpose.REST and self._turns.waiting() > 0)

    # --- telling -----------------------------------------------------------------------------------------------

    def _tell(self, error: NoSpaceError, outcome: str) -> None:
        """One event for a climb, unless there turned out to be room without it."""
        run = self._steps.run
        if not run.steps:
            return
        pause_s = max(0, self._clock.now_ns() - run.began_ns) / NS_PER_S
        trigger = f"{format_size(error.needed_bytes)} did not fit" if error.needed_bytes else str(error)
        freed = self._state.freed_bytes
        log.info("recovery.done", extra={"outcome": outcome, "freed_bytes": freed, "pause_s": round(pause_s, 3)})
        self._events.add(
            RECOVERY_EVENT,
            {
                "trigger": trigger,
                "steps": list(run.steps),
                "freed_bytes": freed,
                "deleted_snapshots": list(run.thinned),
                "pause_s": round(pause_s, 3),
                "outcome": outcome,
            },
        )
