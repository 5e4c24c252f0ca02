"""What repacking would give, against adding it up pack by pack and step by step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repository.format.pack import DIRECTORY_ROW_BYTES
from repository.ids import PackIndex
from repository.policy.columns import PackFacts, join
from repository.policy.gains import STAYS
from repository.policy.repack import repack_gains

STEPS = 4
records = st.lists(
    st.tuples(st.integers(64, 20_000), st.sampled_from([*range(STEPS + 1), int(STAYS)]), st.sampled_from([0, 1, 1])),
    max_size=12,
)


@given(st.lists(st.tuples(records, st.booleans()), max_size=5))
def test_the_curve_is_that_of_the_packs_one_by_one(packs: list[tuple[list[tuple[int, int, int]], bool]]) -> None:
    facts, fates, wanted = [], [], [0] * (STEPS + 1)
    for index, (rows, sealed) in enumerate(packs):
        lengths = [length for length, _, _ in rows]
        allocated = sum(lengths) + 4096
        facts.append(
            PackFacts(
                PackIndex(index),
                sealed,
                0,
                allocated,
                np.cumsum([0, *lengths])[:-1].astype(np.uint32),
                np.array(lengths, np.uint32),
                np.array([kind for _, _, kind in rows], np.uint8),
            )
        )
        fates += [fate for _, fate, _ in rows]
        for step in range(STEPS + 1):
            live = [length + DIRECTORY_ROW_BYTES for length, fate, kind in rows if kind and fate > step]
            dead = [kind for _, fate, kind in rows if kind and fate <= step]
            gain = allocated - sum(live)
            if sealed and live and dead and gain > sum(live):
                wanted[step] += gain
    assert repack_gains(join(facts), np.array(fates, np.int32), STEPS).tolist() == wanted
