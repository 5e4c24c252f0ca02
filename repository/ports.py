"""What the repository asks of the world outside, as small protocols."""

from typing import Protocol


class Clock(Protocol):
    """Wall-clock time; passed in so that tests can set it."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970, UTC."""
        ...


class Progress(Protocol):
    """Where long work reports how far it is. Called often: must be cheap."""

    def start(self, title: str, total_bytes: int | None) -> None:
        """A phase begins; `total_bytes` None where the end is unknown."""
        ...

    def advance(self, done_bytes: int, done_files: int) -> None:
        """This much more is done. May raise InterruptedByUserError: call it where it is safe to end."""
        ...

    def finish(self) -> None:
        """The phase is over."""
        ...


class SpaceProbe(Protocol):
    """What the volume says about its room. Every method raises VolumeError where it does not answer."""

    def capacity_bytes(self) -> int: ...

    def available_bytes(self) -> int:
        """As an ordinary user sees it (f_bavail), for root too: how full the volume is."""
        ...

    def growth_bytes(self) -> int:
        """What growth may take: as available, for root too; below zero where root has taken of what is kept for it."""
        ...

    def allocatable_bytes(self) -> int:
        """What this process could take: root also has the part that is kept for root."""
        ...

    def capacity_inodes(self) -> int:
        """All inodes; 0 where the volume makes them as it goes."""
        ...

    def available_inodes(self) -> int: ...
