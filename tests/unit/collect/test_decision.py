"""What a decision costs, counted: nothing is read, and its steps grow with snapshots, not with records or packs."""

import sys
from types import FrameType

import numpy as np
from bench.decision import Shape, Stopwatch, Synthetic, decide, make
from pyroaring import BitMap64

from repository.ids import SnapshotId
from repository.planning import Planner
from repository.policy.collect import Safety, plan_dead
from repository.policy.columns import PackFacts, join
from tests.support.repositories import SetClock

BLOCK = 4096


def warm(synthetic: Synthetic) -> Planner:
    planner = synthetic.planner(SetClock())
    assert planner.warm_up()
    return planner


def calls_of(synthetic: Synthetic, planner: Planner) -> int:
    """Calls of Python functions that one decision takes."""
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        decide(synthetic, planner, Stopwatch())
    finally:
        sys.setprofile(None)
    return calls


def test_a_warm_decision_reads_nothing() -> None:
    synthetic = make(Shape(4_000, 40, 30))
    planner = warm(synthetic)
    store, volume = synthetic.store, synthetic.volume
    assert (store.directories, volume.opened) == (30, 0), "once a pack; none lacks blocks, so none is asked for holes"
    before = store.reads
    decide(synthetic, planner, Stopwatch())
    synthetic.catalog.remove(SnapshotId(7))
    decide(synthetic, planner, Stopwatch())
    assert (store.directories, volume.opened, store.reads) == (30, 0, before)


def test_a_decision_takes_as_many_steps_for_ten_times_the_records() -> None:
    small, large = make(Shape(3_000, 40, 25)), make(Shape(30_000, 40, 250))
    counts = []
    for synthetic in (small, large):
        planner = warm(synthetic)
        decide(synthetic, planner, Stopwatch())
        # Pieces that are freed become objects, each of them: the same few here as there.
        counts.append(calls_of(synthetic, planner))
    assert counts[1] < 1.5 * counts[0], counts


def test_the_synthetic_decision_is_right() -> None:
    synthetic = make(Shape(3_000, 30, 20), seed=4)
    planner = warm(synthetic)
    slots = synthetic.catalog.slots()
    facts = []
    for pack in sorted(synthetic.store.pack_indexes()):
        info, directory = synthetic.store.pack_info(pack), synthetic.store.directory(pack)
        columns = (directory.offset, directory.stored, directory.kind)
        facts.append(PackFacts(pack, True, 0, info.allocated_bytes, *columns))
    columns_ = join(facts)

    def unions(gone: set[SnapshotId]) -> int:
        kept = BitMap64(synthetic.store.leased())
        for slot, numbers in zip(slots, synthetic.needed, strict=True):
            if slot.snapshot_id not in gone or slot is slots[-1]:
                kept |= numbers
        dead = ~columns_.mask(kept)
        plan = plan_dead(columns_, dead, now_ns=0, safety=Safety.NONE, block_bytes=BLOCK)
        return plan.reclaimable_bytes

    rng = np.random.default_rng(0)
    order = [slots[at].snapshot_id for at in rng.permutation(len(slots))[:12].tolist()]
    for count in range(13):
        wanted = unions(set(order[:count]))
        assert planner.dead_bytes(order[:count]) == wanted
        found = planner.fewest(order, wanted)
        assert found.nbytes == wanted
        assert found.steps <= count
        assert unions(set(order[: found.steps])) == wanted
