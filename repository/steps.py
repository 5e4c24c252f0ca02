"""What the steps of the ladder do, and what came of each.

An error of the volume frees nothing and stops nothing, but for one that ends all writing. No step allocates but giving
back; none creates or renames a name (`fusefs/RECOVERY.md` lists the calls).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, assert_never

from repository.collect import Collector
from repository.errors import BallastError, BusyError, NoSpaceError, NoSuchSnapshotError, ReadOnlyError, SyncFailedError
from repository.events import EventRing
from repository.format.catalog import Slot, SnapshotKind
from repository.policy.collect import Safety
from repository.policy.retention import EXPONENT_DEFAULT, Kept, Randomness, thinning_order
from repository.policy.rungs import (
    Broke,
    Collect,
    Collected,
    Effect,
    Event,
    GaveBack,
    GiveBack,
    LookCloser,
    Looked,
    Refuse,
    Release,
    Released,
    Retry,
    Thin,
    Thinned,
    Tried,
    TryRoom,
)
from repository.ports import Clock
from repository.snapshots import Snapshots, id_text
from repository.space import Space
from repository.store import RecordStore
from repository.units import NS_PER_S, format_size

log = logging.getLogger(__name__)

LOOK_CLOSER_S: Final = 10.0
"""How long a writer waits for exact reachability: a third of its deadline. What is known by then counts."""


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """What recovery may do. `auto_delete`: give up whole snapshots by the retention policy, of which `min_snapshots`
    of each source stay; a larger `deletion_exponent` spreads those more evenly. `margin_bytes` None: as `policy.room`
    says."""

    auto_delete: bool = False
    min_snapshots: int = 1
    deletion_exponent: float = EXPONENT_DEFAULT
    margin_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a repository recovery works on."""

    store: RecordStore
    space: Space
    collector: Collector
    snapshots: Snapshots
    events: EventRing
    clock: Clock


@dataclass(slots=True)
class Run:
    """One way through the ladder: what it may do, and what it did, for the log and the ring of events."""

    began_ns: int
    settings: RecoverySettings
    rng: Randomness
    steps: list[str] = field(default_factory=list)
    thinned: list[str] = field(default_factory=list)


class Steps:
    """Carries out one effect at a time. Only for whoever has the turn."""

    def __init__(self, parts: Parts, run: Run, hurry: Callable[[], bool]) -> None:
        """`hurry` is asked whether what takes long should end early."""
        self._store = parts.store
        self._space = parts.space
        self._collector = parts.collector
        self._snapshots = parts.snapshots
        self._events = parts.events
        self._clock = parts.clock
        self.run = run
        self._hurry = hurry
        self._step_began_ns = 0

    def begin(self, settings: RecoverySettings, rng: Randomness) -> None:
        """A new way through the ladder."""
        self.run = Run(self._clock.now_ns(), settings, rng)

    def carry_out(self, effect: Effect) -> Event:
        """Do it, and say what came of it. Of a collection's errors only those stop anything that end all writing.

        Raises VolumeError where the volume does not answer about its room, or the reserve."""
        self._step_began_ns = self._clock.now_ns()
        try:
            match effect:
                case Release():
                    return self._release(effect)
                case Collect():
                    return self._collect(effect)
                case LookCloser():
                    return self._look_closer()
                case Thin():
                    return self._thin(effect)
                case GiveBack():
                    return self._give_back()
                case TryRoom():
                    return Tried(self._space.fits(effect.nbytes), self._space.sight())
                case Retry() | Refuse():
                    raise AssertionError("nothing is left to do")
                case _:
                    assert_never(effect)
        except (SyncFailedError, ReadOnlyError) as error:
            if isinstance(error, SyncFailedError):
                self._store.fail(error)
            self._note("stopped", f"stopped: {error}")
            return Broke()

    def _release(self, effect: Release) -> Event:
        wanted = self._space.reserve().bytes_ if effect.nbytes is None else effect.nbytes
        try:
            freed = self._space.release(wanted)
            if freed:
                self._note("released", f"release {format_size(freed)}", nbytes=freed)
        except NoSpaceError as error:  # there are other steps that free
            self._note("not_released", f"release: {error}")
        return Released(self._space.sight())

    def _collect(self, effect: Collect) -> Event:
        freed, starved, wish = 0, False, effect.enough_bytes
        if wish is not None and not self._space.frees_by_copying:
            wish += effect.more_bytes
        try:
            report = self._collector.collect(
                Safety.NONE,
                exactness=False,
                enough_bytes=wish,
                trash=effect.trash,
                stop=self._hurry,
            )
            freed = report.freed_bytes
            wanted = report.plan.reclaimable_bytes
            enough = wanted if effect.enough_bytes is None else min(wanted, effect.enough_bytes)
            if self._space.frees_by_copying and effect.enough_bytes is not None:
                enough = effect.enough_bytes
            starved = freed < enough and not self._hurry()
            self._note("collected", f"collect {format_size(freed)}", nbytes=freed, expired=len(report.expired))
        except NoSpaceError as error:
            starved = True
            self._note("not_collected", f"collect: {error}")
        except (SyncFailedError, ReadOnlyError):
            raise
        except BallastError as error:
            self._note("not_collected", f"collect: {error}")
        self._space.freed(freed)
        gave_way = self._hurry() and (wish is None or freed < wish)
        return Collected(freed, self._space.sight(), starved, gave_way)

    def _look_closer(self) -> Event:
        until_ns = self._clock.now_ns() + int(LOOK_CLOSER_S * NS_PER_S)
        uncovered = False
        try:
            uncovered = self._collector.look_closer(lambda: self._hurry() or self._clock.now_ns() > until_ns)
            self._note("looked_closer", f"look closer: {'more' if uncovered else 'nothing'} is garbage")
        except (SyncFailedError, ReadOnlyError):
            raise
        except BallastError as error:
            self._note("not_looked_closer", f"look closer: {error}")
        return Looked(uncovered, self._space.sight())

    def _thin(self, effect: Thin) -> Event:
        gone = 0
        try:
            gone = self._give_up_snapshots(effect)
        except (SyncFailedError, ReadOnlyError):
            raise
        except BallastError as error:
            self._note("not_thinned", f"thin: {error}")
        return Thinned(gone, self._space.sight())

    def _give_up_snapshots(self, effect: Thin) -> int:
        """Delete the first of the retention policy's order that are enough, or none at all."""
        candidates = {slot.snapshot_id: slot for slot in self._snapshots.listed()}
        order = thinning_order(
            [self._kept(slot) for slot in candidates.values()],
            min_snapshots=self.run.settings.min_snapshots,
            exponent=self.run.settings.deletion_exponent,
            rng=self.run.rng,
        )
        plan = self._collector.plan_thinning(order, effect.enough_bytes)
        if plan is None and effect.least_bytes < effect.enough_bytes:
            plan = self._collector.plan_thinning(order, effect.least_bytes)
        if plan is None:
            self._note("not_thinned", f"thin: {len(order)} snapshots that may go would not be enough")
            return 0
        for snapshot_id in plan.snapshots:
            self._give_up_snapshot(candidates[snapshot_id], len(order))
        self._note("thinned", f"thin {len(plan.snapshots)} snapshots", snapshots=len(plan.snapshots))
        return len(plan.snapshots)

    def _kept(self, slot: Slot) -> Kept:
        keep = slot.pinned or slot.kind is SnapshotKind.NAMED or self._snapshots.is_needed(slot.snapshot_id)
        return Kept(slot.snapshot_id, slot.source, slot.time_ns, keep)

    def _give_up_snapshot(self, slot: Slot, candidates: int) -> None:
        try:
            self._snapshots.delete(slot)
        except (BusyError, NoSuchSnapshotError):  # pinned or deleted by somebody since the plan was made
            return
        reason = f"disk full: chosen by weight among {candidates} of the snapshots that may be given up"
        fields = {"name": slot.name, "id": id_text(slot.snapshot_id), "source": slot.source, "reason": reason}
        log.info("snapshot.thinned", extra={f"snapshot_{key}": value for key, value in fields.items()})
        self._events.add("snapshot.thinned", fields)
        self.run.thinned.append(slot.name)

    def _give_back(self) -> Event:
        state = self._space.restore()
        self._note("gave_back", f"give back: {'whole' if state.whole else 'does not fit'}", nbytes=state.bytes_)
        return GaveBack(self._space.sight())

    def _note(self, event: str, text: str, **figures: int) -> None:
        """What a step did, with the seconds that it took."""
        seconds = max(0, self._clock.now_ns() - self._step_began_ns) / NS_PER_S
        self.run.steps.append(f"{text} in {seconds:.3f} s")
        log.info("recovery.step", extra={"step": event, "text": text, "seconds": round(seconds, 4), **figures})
