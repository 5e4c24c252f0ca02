"""Claims for what `live` acknowledges, kept as a small running account so that most writes need no call at all.

Owner of the invariant: what was taken from a bank is covered by a claim on allocated blocks until it is split off for
the job that stores it.
"""

from typing import Final, Protocol

from repository.ledger import Claim


class Claims(Protocol):
    """The part of the record store that a bank needs."""

    def try_claim(self, nbytes: int, records: int) -> Claim | None: ...

    def merge(self, into: Claim, other: Claim) -> None: ...

    def split(self, claim: Claim, cost: int) -> Claim: ...

    def forfeit(self, claim: Claim) -> None: ...


class Growing(Protocol):
    """Where room comes from when what is allocated is used up."""

    async def grow(self, cost: int, step: int) -> Claim: ...


class Bank:
    """Room claimed in steps of at least `step_bytes` and handed out in smaller amounts. Loop thread only."""

    def __init__(self, claims: Claims, guard: Growing, step_bytes: int) -> None:
        self._claims: Final = claims
        self._guard: Final = guard
        self.step_bytes: Final = step_bytes
        self._claim: Claim | None = None
        self._left = 0
        self.taken = 0
        """What is acknowledged and not yet split off, in the ledger's cost units."""

    def try_take(self, cost: int) -> bool:
        """Takes `cost` out of room that is allocated already; False where that is too little."""
        if cost > self._left:
            missing = cost - self._left
            claim = self._claims.try_claim(max(missing, self.step_bytes), 0) or self._claims.try_claim(missing, 0)
            if claim is None:
                return False
            self.add(claim)
        self._left -= cost
        self.taken += cost
        return True

    async def take(self, cost: int) -> None:
        """Takes `cost`, in line with all others who need room. Raises NoSpaceError, VolumeError."""
        while True:
            self.add(await self._guard.grow(cost, self.step_bytes))
            if self.try_take(cost):
                return

    def add(self, claim: Claim) -> None:
        """Room that somebody else claimed, to be handed out here."""
        self._left += claim.remaining_cost
        if self._claim is None:
            self._claim = claim
        else:
            self._claims.merge(self._claim, claim)

    def split(self, cost: int) -> Claim | None:
        """The claim behind `cost` of what was taken, to be spent and forfeited by the caller; None for nothing."""
        cost = min(cost, self.taken)
        if self._claim is None or cost <= 0:
            return None
        self.taken -= cost
        return self._claims.split(self._claim, cost)

    def settle(self, needed: int) -> None:
        """At most `needed` of what was taken will be split off: what overwriting in memory saved is free again."""
        surplus = self.taken - needed
        if surplus <= 0:
            return
        self._left += surplus
        self.taken = needed
        if self._claim is not None and self._left > 2 * self.step_bytes:
            self._claims.forfeit(self._claims.split(self._claim, self._left - self.step_bytes))
            self._left = self.step_bytes

    def let_go(self) -> None:
        """Gives back what nobody has taken: others need it more."""
        if self._claim is not None and self._left > 0:
            self._claims.forfeit(self._claims.split(self._claim, self._left))
            self._left = 0

    def close(self) -> None:
        """Gives everything back."""
        if self._claim is not None:
            self._claims.forfeit(self._claim)
        self._claim = None
        self._left = self.taken = 0
