"""How much of a test `scripts/test --fast` runs. The whole suite runs all of it."""

from typing import Final

import pytest
from hypothesis import settings

_DEFAULT: Final = 100
"""What Hypothesis tries where neither a test nor a profile says how much."""


def examples(wanted: int) -> int:
    """`wanted` examples, and less by as much as the profile tries less than usual."""
    return max(1, wanted * settings().max_examples // _DEFAULT)


def seeds(count: int, fast: int) -> list[object]:
    """0 to `count` - 1, to parametrize with; all but the first `fast` are marked slow."""
    return [seed if seed < fast else pytest.param(seed, marks=pytest.mark.slow) for seed in range(count)]
