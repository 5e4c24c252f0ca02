"""The account of allocated room: what open packs hold, and what of it is claimed.

Owner of the invariant *claimed <= usable*: whoever holds a claim can store that much without a system call that
allocates. Pure arithmetic under a lock that is never held over a system call, so an event loop may call it.

A part of the room is the *headroom* (`standing`): room that comes free or is added goes there first, until it is
`standing_wanted` large. So whatever else is free, the headroom is whole. It is given out by `try_claim` and `top_up`
only to who asks for it.

One scalar covers bytes and positions alike. A record costs `max(stored length + its directory row,
position_bytes)`, where position_bytes = pack_bytes / 65,535: a pack's room is the smaller of its bytes and of its
positions times position_bytes, and no record can take more than its cost from either. Of each open pack
`slack_bytes`, the cost of the largest chunk, are not counted: so while anything is left of what is counted, some
pack has room for one more record whole.
"""

import threading
from typing import Final

from repository.format.pack import DIRECTORY_ROW_BYTES, POSITIONS_MAX
from repository.format.record import HEADER_BYTES


class Claim:
    """Room that nobody else can take, for `nbytes` stored bytes (headers included) in at most `records` records.

    Puts under a claim draw it down; `store.forfeit` gives back the rest. Records longer than the largest chunk may
    not find room under a claim alone.
    """

    __slots__ = ("nbytes", "records", "remaining_cost")

    def __init__(self, nbytes: int, records: int, cost: int) -> None:
        self.nbytes = nbytes
        self.records = records
        self.remaining_cost = cost
        """What is left, in the ledger's unit. Owned by the ledger."""


class Ledger:
    """Usable and claimed room, in cost units. Thread safe, never blocks on I/O."""

    def __init__(self, pack_bytes: int, chunk_max_bytes: int) -> None:
        self.position_bytes: Final = -(-pack_bytes // POSITIONS_MAX)
        self.slack_bytes: Final = max(chunk_max_bytes + HEADER_BYTES + DIRECTORY_ROW_BYTES, self.position_bytes)
        self._lock = threading.Lock()
        self._usable = 0
        self._claimed = 0
        """By everybody, the headroom included."""
        self._standing = 0
        self._standing_wanted = 0

    def record_cost(self, stored_length: int) -> int:
        """What one record of `stored_length` bytes (with header) costs."""
        return max(stored_length + DIRECTORY_ROW_BYTES, self.position_bytes)

    def claim_cost(self, nbytes: int, records: int) -> int:
        """The most that `records` records of together `nbytes` stored bytes can cost."""
        return nbytes + records * (DIRECTORY_ROW_BYTES + self.position_bytes)

    def try_claim(self, nbytes: int, records: int, *, headroom_left: int | None = None) -> Claim | None:
        """A claim out of room that is allocated already; None where there is too little.

        With `headroom_left`, what is lacking is taken out of the headroom, of which so much stays.
        """
        cost = self.claim_cost(nbytes, records)
        with self._lock:
            if self._take(cost, headroom_left):
                return None
        return Claim(nbytes, records, cost)

    def top_up(self, claim: Claim, cost: int, *, headroom_left: int | None = None) -> int:
        """Raise what is left of `claim` to `cost`, if there is room; else return how much room is missing.

        `headroom_left`: as for `try_claim`.
        """
        with self._lock:
            more = cost - claim.remaining_cost
            if more <= 0:
                return 0
            missing = self._take(more, headroom_left)
            if missing == 0:
                claim.remaining_cost = cost
            return missing

    def _take(self, cost: int, headroom_left: int | None) -> int:
        """Claim `cost`, if there is room; else return how much is missing. Under the lock."""
        free = self._usable - self._claimed
        spare = 0 if headroom_left is None else max(0, self._standing - headroom_left)
        if cost > free + spare:
            return cost - free - spare
        lent = max(0, cost - free)
        self._standing -= lent
        self._claimed += cost - lent
        return 0

    def missing(self, nbytes: int, records: int) -> int:
        """How much room must be added before `try_claim` can succeed."""
        with self._lock:
            return max(0, self._claimed + self.claim_cost(nbytes, records) - self._usable)

    def spend(self, claim: Claim, cost: int, usable_drop: int) -> None:
        """Records of together `cost` were placed under `claim`; the packs' usable room fell by `usable_drop`."""
        with self._lock:
            drawn = min(cost, claim.remaining_cost)
            claim.remaining_cost -= drawn
            self._claimed -= drawn
            self._usable -= usable_drop
            self._fill_standing()

    def forfeit(self, claim: Claim) -> None:
        """Give back what is left of `claim`. May be called twice."""
        with self._lock:
            self._claimed -= claim.remaining_cost
            claim.remaining_cost = 0
            self._fill_standing()

    def merge(self, into: Claim, other: Claim) -> None:
        """`into` takes over what is left of `other`."""
        with self._lock:
            into.nbytes += other.nbytes
            into.records += other.records
            into.remaining_cost += other.remaining_cost
            other.remaining_cost = 0

    def split(self, claim: Claim, cost: int) -> Claim:
        """A claim of its own for `cost` of what is left of `claim` (all of it, where that is less)."""
        with self._lock:
            cost = min(cost, claim.remaining_cost)
            claim.remaining_cost -= cost
        return Claim(cost, 0, cost)

    def add_room(self, room: int) -> None:
        """Open packs gained `room` usable bytes."""
        with self._lock:
            self._usable += room
            self._fill_standing()

    def try_remove_room(self, room: int) -> bool:
        """Take `room` usable bytes out, unless claims need them."""
        with self._lock:
            if self._usable - room < self._claimed:
                return False
            self._usable -= room
            return True

    # -- the headroom ------------------------------------------------------------------------------------------

    def want_standing(self, cost: int) -> None:
        """The headroom is to be `cost` large; it takes what is free at once, and what comes free later."""
        with self._lock:
            self._standing_wanted = cost
            self._fill_standing()

    def standing(self) -> int:
        """How large the headroom is now."""
        with self._lock:
            return self._standing

    def _fill_standing(self) -> None:
        more = min(self._standing_wanted - self._standing, self._usable - self._claimed)
        if more > 0:
            self._standing += more
            self._claimed += more

    def usable_bytes(self) -> int:
        with self._lock:
            return self._usable

    def claimed_bytes(self) -> int:
        with self._lock:
            return self._claimed
