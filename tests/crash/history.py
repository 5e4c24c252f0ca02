"""What had been promised at each moment of a recorded session."""

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from repository.format.catalog import SlotState
from repository.ids import SnapshotId
from tests.support.world import Picture

T = TypeVar("T")


class _Change(NamedTuple, Generic[T]):
    """Begun after `start` operations of the log, acknowledged after `end` (None: never)."""

    start: int
    end: int | None
    value: T


class Register(Generic[T]):
    """Something durable that is overwritten: after a crash it shows the last acknowledged value or a later one."""

    def __init__(self, value: T) -> None:
        self._changes: list[_Change[T]] = [_Change(0, 0, value)]

    def begin(self, at: int, value: T) -> None:
        """A change to `value` begins."""
        self._changes.append(_Change(at, None, value))

    def acknowledge(self, at: int) -> None:
        """The change begun last is durable."""
        start, _, value = self._changes[-1]
        self._changes[-1] = _Change(start, at, value)

    def allowed(self, cut: int) -> list[T]:
        """What a crash after `cut` operations may show, the oldest first."""
        last = max(index for index, (_, end, _) in enumerate(self._changes) if end is not None and end <= cut)
        return [change.value for change in self._changes[last:] if change.start <= cut]


class SnapshotState(NamedTuple):
    """What the catalog says of a snapshot; None stands for one that is not there."""

    state: SlotState
    name: str
    pinned: bool


@dataclass(slots=True)
class History:
    """All that a session promised. Moments are lengths of the log of operations."""

    live: Register[Picture] = field(default_factory=lambda: Register({}))
    snapshots: dict[SnapshotId, Register[SnapshotState | None]] = field(default_factory=dict)
    contents: dict[SnapshotId, Picture] = field(default_factory=dict)
