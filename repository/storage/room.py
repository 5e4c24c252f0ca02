"""What the volume says about its room: the one `SpaceProbe` that is not scripted."""

import os
from typing import Final

from repository.errors import VolumeError
from repository.storage.volume import Volume

KEPT_FROM_ALL_BLOCKS: Final = 4_096
"""ext4 counts as free what it keeps for the ends of its own operations: 2 % of the volume, at most so many blocks; but
nothing where it has no extents (ext2), and so no `fallocate` either."""


class RoomProbe:
    """Asks the volume that holds a repository. Raises VolumeError where it does not answer."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._privileged = os.geteuid() == 0
        self._kept_blocks = 0
        """What the volume keeps for root, once that was seen: where nothing is available it cannot be told."""

    def capacity_bytes(self) -> int:
        """All blocks of the volume."""
        import psutil  # late: it costs 10 ms that most commands need not wait for

        try:
            return int(psutil.disk_usage(str(self._volume.root)).total)
        except OSError as error:
            raise VolumeError(f"Could not examine the volume of '{self._volume.root}'.", error.errno or 0) from error

    def available_bytes(self) -> int:
        """What an ordinary user can still take (f_bavail), for root too."""
        figures = self._volume.statvfs()
        return figures.f_bavail * figures.f_frsize

    def growth_bytes(self) -> int:
        """What growth may take: as available; below zero where root has taken of what is kept for it, as far as that
        can be told. So much has to come free before anything is available again."""
        figures = self._volume.statvfs()
        if figures.f_bavail:
            self._kept_blocks = max(0, figures.f_bfree - figures.f_bavail)
            return figures.f_bavail * figures.f_frsize
        if self._volume.frees_late:
            return 0
        return min(0, figures.f_bfree - self._kept_blocks) * figures.f_frsize

    def allocatable_bytes(self) -> int:
        """What this process could take: root also has what is kept for root, but not what ext4 gives to nobody.

        btrfs keeps nothing for root, and counts room for its own bookkeeping as free.
        """
        figures = self._volume.statvfs()
        blocks = figures.f_bavail
        if self._privileged and not self._volume.frees_late:
            kept = KEPT_FROM_ALL_BLOCKS if self._volume.allocates else 0
            blocks = max(blocks, figures.f_bfree - kept)
        return blocks * figures.f_frsize

    def available_inodes(self) -> int:
        """Inodes an ordinary user can still take; 0 where the volume has no bound (see `capacity_inodes`)."""
        return self._volume.statvfs().f_favail

    def capacity_inodes(self) -> int:
        """All inodes; 0 where the volume makes them as it goes."""
        return self._volume.statvfs().f_files
