"""Whether a large write is refused, and in what words."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.policy.preflight import (
    LARGE_BYTES,
    SAMPLES_MAX,
    Remedy,
    Strider,
    gave_up_text,
    lower_estimate_bytes,
    refuses,
    restore_shortage_text,
    shortage_text,
    usable_bytes,
)
from repository.units import GB, GIB, MB, MIB


def test_two_gibibytes_or_a_tenth_stay_free() -> None:
    assert usable_bytes(100 * GIB, 1000 * GIB) == 98 * GIB
    assert usable_bytes(100 * GB, 10 * GB) == 99 * GB
    assert usable_bytes(1 * GIB, 1000 * GIB) == 0


def test_small_writes_are_not_refused_beforehand() -> None:
    assert not refuses(LARGE_BYTES - 1, 0)
    assert refuses(LARGE_BYTES, 0) and refuses(LARGE_BYTES, LARGE_BYTES - 1)
    assert not refuses(LARGE_BYTES, LARGE_BYTES)


@given(st.lists(st.integers(0, 40 * MIB), max_size=300))
def test_places_are_at_equal_distances_in_the_stream(sizes: list[int]) -> None:
    strider = Strider()
    starts: dict[bytes, int] = {}
    at = 0
    for index, size in enumerate(sizes):
        starts[b"%d" % index] = at
        strider.offer(b"%d" % index, size)
        at += size
    places = strider.places()
    assert len(places) <= SAMPLES_MAX
    found = [starts[place.item] + place.offset for place in places]
    assert all(place.offset < sizes[int(place.item)] for place in places)
    steps = {later - earlier for earlier, later in pairwise(found)}
    assert len(steps) <= 1
    if at >= 2 * MIB:
        assert len(places) >= min(SAMPLES_MAX // 2, at // MIB - 1)


def test_one_huge_file_costs_no_more_steps_than_it_has_places() -> None:
    strider = Strider()
    strider.offer(b"small", 10)
    strider.offer(b"huge", 1 << 50)
    assert len(strider.places()) > SAMPLES_MAX // 2


def test_the_lower_estimate_is_below_the_mean_by_how_unsure_it_is() -> None:
    assert lower_estimate_bytes(10 * GB, []) == 0
    assert lower_estimate_bytes(10 * GB, [1.0] * 64) == 10 * GB
    assert lower_estimate_bytes(10 * GB, [0.0] * 64) == 0
    assert lower_estimate_bytes(10 * GB, [0.25] * 2) == 2.5 * GB
    assert 3.9 * GB < lower_estimate_bytes(10 * GB, [0.0, 1.0] * 50) < 4.1 * GB
    assert lower_estimate_bytes(10 * GB, [0.0, 1.0]) == 0


def test_the_lower_estimate_rarely_exceeds_the_truth() -> None:
    """Data of which some share is new, looked at in 64 places: too much is estimated about 2 times in 100."""
    rng = random.Random(7)
    too_much = 0
    for _ in range(2000):
        share = rng.random()
        shares = [1.0 if rng.random() < share else 0.0 for _ in range(SAMPLES_MAX)]
        too_much += lower_estimate_bytes(1 * GB, shares) > share * GB
    assert too_much < 100


@pytest.mark.parametrize(
    ("remedy", "words"),
    [
        (Remedy(), "There is no older snapshot whose deletion would help: free at least 7.0 GB on /media/usb,"),
        (Remedy((), 3 * GB), "hold no more than 3.0 GB of their own: free at least 7.0 GB on /media/usb,"),
        (
            Remedy(("a", "b"), 8 * GB),
            "('ballast snapshot delete /r a b' would do), free at least 7.0 GB on /media/usb,",
        ),
    ],
)
def test_a_refusal_has_the_figures_and_what_would_help(remedy: Remedy, words: str) -> None:
    text = shortage_text(5 * GB, 12 * GB, "/media/usb", remedy, "/r")
    assert text.startswith("Insufficient storage: 5.0 GB available, need 12.0 GB.")
    assert words in text and text.endswith("or store less (--no-estimate begins all the same).")


def test_words_of_the_others() -> None:
    text = restore_shortage_text(5 * GB, 12 * GB, "/home")
    assert text.startswith("Insufficient storage: 5.0 GB available, need 12.0 GB. Free at least 7.0 GB on /home, or ")
    text = gave_up_text(700 * MB, 900 * MB, "/media/usb", any_spare=False, repo="/r")
    assert "700.0 MB were stored when the disk was full. Nothing of them is listed" in text and "/r" not in text
    assert "ballast snapshot list /r" in gave_up_text(1, 2, "/media/usb", any_spare=True, repo="/r")
