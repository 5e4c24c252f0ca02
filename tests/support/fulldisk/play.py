"""What a drill is given: its stage, a kind of disk, how large, and where to report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from repository.units import MB, MIB
from tests.support.fulldisk.disks import Disk, new_disk
from tests.support.fulldisk.figures import Report
from tests.support.fulldisk.fillers import Filler
from tests.support.fulldisk.stage import Stage
from tests.support.fulldisk.user import User

MARGIN_PART: Final = 20
"""Recovery frees beyond what was asked for: a 20th of the volume, at most 1 GB (DESIGN, "Enough")."""
MARGIN_MAX_BYTES: Final = 1000 * MB
SEGMENT_MAX_BYTES: Final = 16 * MIB
META_TWICE: Final = ("btrfs",)
"""Kinds that keep so much for themselves that their disks are made half as large again."""


@dataclass(frozen=True, slots=True)
class Play:
    """One drill on one kind of disk."""

    stage: Stage
    kind: str
    report: Report
    short: bool
    seed: int

    def pick(self, short: int, full: int) -> int:
        """A size or count, by the scale of the drill."""
        return short if self.short else full

    @contextmanager
    def user(
        self, disk_bytes: int, reserve_bytes: int, *options: str, inodes: int | None = None
    ) -> Iterator[tuple[User, Filler]]:
        """Somebody with a new repository on a new disk, and another program on it."""
        room = disk_bytes * 3 // 2 if self.kind in META_TWICE else disk_bytes
        with new_disk(self.stage, self.kind, room) as disk:
            user = User(self.stage, disk, self.report)
            user.ballast("init", user.repository, "--reserve", str(reserve_bytes), *options)
            filler = Filler(disk)
            try:
                yield user, filler
            finally:
                filler.close()
                self._unmount(user)

    def _unmount(self, user: User) -> None:
        if user.is_mounted():
            user.run("umount", "-l", user.mountpoint)


def margin_bytes(disk: Disk) -> int:
    """What recovery frees beyond what was asked for."""
    return min(MARGIN_MAX_BYTES, disk.capacity_bytes() // MARGIN_PART)
