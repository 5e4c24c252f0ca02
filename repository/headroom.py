"""The headroom: room that stays allocated for operations that shrink, and for commits of what was acknowledged.

Owner of the rule who draws on it: the journal of operations on names and attributes down to the part that is kept
for commits, and commits down to nothing. Never the bytes of files. In memory it is a standing claim in the ledger,
which room that comes free fills first; across processes it is the spare pack (see `packs/spare.py`).
"""

import logging
from collections.abc import Callable
from typing import Final

from repository.errors import BallastError
from repository.format.config import Config
from repository.format.pack import DIRECTORY_FIXED_BYTES, PACK_HEADER_BYTES
from repository.ledger import Claim, Ledger
from repository.packs.spare import spare_bytes

COMMIT_SHARE: Final = 4
"""One part in so many of the headroom is kept for commits: what a removal journaled must be committable."""

_log: Final = logging.getLogger(__name__)


class Headroom:
    """Thread safe. Everything but `refill(allocate=True)` is arithmetic and never blocks."""

    def __init__(self, ledger: Ledger, config: Config, allocate: Callable[[int], bool]) -> None:
        """`allocate` makes what lacks to so many bytes, if it can; True when the headroom is whole."""
        self._ledger = ledger
        self._allocate = allocate
        held = PACK_HEADER_BYTES + DIRECTORY_FIXED_BYTES + ledger.slack_bytes
        self.wanted_bytes: Final = max(0, spare_bytes(config) - held)
        """Size of the whole headroom: what claims may count on in a spare pack."""
        self.kept_bytes: Final = self.wanted_bytes // COMMIT_SHARE

    def establish(self) -> None:
        """At the opening for writing: claim the spare pack, and make what is missing of it, if there is room.

        Never an error: what cannot be had is missing.
        """
        self._ledger.want_standing(self.wanted_bytes)
        try:
            self.refill(allocate=True)
        except BallastError as error:
            _log.warning("headroom.not_made", extra={"reason": str(error)})

    def take(self, nbytes: int, records: int) -> Claim | None:
        """Claim room that exists: ordinary room, and headroom for what is lacking. None: too little is left.

        For the journal of what shrinks; forfeit it like any claim, and what is left of it comes back.
        """
        return self._ledger.try_claim(nbytes, records, headroom_left=self.kept_bytes)

    def top_up(self, claim: Claim, cost: int) -> bool:
        """Raise `claim` to `cost` for a commit, from all there is. False: too little is left."""
        return self._ledger.top_up(claim, cost, headroom_left=0) == 0

    def left_bytes(self) -> int:
        """How large it is now."""
        return self._ledger.standing()

    @property
    def whole(self) -> bool:
        """Whether nothing lacks."""
        return self._ledger.standing() >= self.wanted_bytes

    def refill(self, *, allocate: bool = False) -> bool:
        """Whether it is whole; with `allocate` after trying to make it so. The guard of growth is not asked.

        Blocks only with `allocate`. Raises SyncFailedError, VolumeError; a full volume is no error.
        """
        return self.whole or (allocate and self._allocate(self.wanted_bytes))
