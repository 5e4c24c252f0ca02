"""`kill -9` of the daemon in the middle of a program's work, a few times; scripts/drills/kill9 does it more often."""

import pytest

from tests.support.kill9 import Rounds
from tests.support.mounted import open_directory

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("seed", range(3))
def test_nothing_promised_is_missing_and_what_is_left_is_a_prefix(seed: int) -> None:
    """Twice in a row, so that the second recovery begins at what the first left."""
    with open_directory() as folder:
        rounds = Rounds(folder, seed)
        rounds.run()
        rounds.run()
