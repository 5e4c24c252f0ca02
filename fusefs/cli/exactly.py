"""Figures about what deleting or collecting frees: exact, as far as the user wants to wait for that."""

import time
from typing import Final

from repository.repo import Repository

LOOK_S: Final = 30.0
"""How long a dry run makes sure of its figures: some thousand snapshots. They are too small, never too large, where
that was too short."""


def look_closer(repo: Repository) -> None:
    """Find out what each snapshot needs, so that figures are exact. Raises DamagedError."""
    until_s = time.monotonic() + LOOK_S
    repo.collector.look_closer(lambda: time.monotonic() > until_s)
