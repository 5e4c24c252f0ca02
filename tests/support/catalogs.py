"""What a mount's listings need of a catalog, where a test hands them their snapshots itself."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from repository.errors import BallastError
from repository.format.catalog import Slot
from repository.format.manifest import Manifest
from repository.ids import SnapshotId


class NoCatalog:
    """A source of snapshots that has none."""

    def generation(self) -> int:
        return 0

    def slots(self) -> Sequence[Slot]:
        return ()

    def manifests(self, slots: Sequence[Slot]) -> Sequence[Manifest | BallastError]:
        return ()

    def stale(self) -> bool:
        return False

    def refresh(self) -> None:
        """Nothing to do."""

    def hold(self, snapshot: SnapshotId) -> AbstractContextManager[None]:
        return nullcontext()
