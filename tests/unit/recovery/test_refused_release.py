"""A climb on a volume that refuses to cut the reserve off."""

import errno
import os

import pytest

from repository.errors import NoSpaceError, VolumeError
from repository.policy.rungs import Mode
from repository.repo import Repository
from repository.units import KIB
from tests.support.repositories import publish
from tests.support.tinydisk import TinyDisk
from tests.unit.recovery.test_driver import mode, some_files


def test_a_reserve_that_cannot_be_cut_does_not_end_the_climb(repository: Repository, disk: TinyDisk) -> None:
    """btrfs refuses that for moments under a quota; what else frees does not rest on it."""
    repository.delete(publish(repository, some_files(1, 30), "gone"))
    disk.leave(0)
    refused = 0

    def refuse() -> None:
        nonlocal refused
        if mode(repository) is Mode.EMERGENCY:
            refused += 1
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    disk.before["ftruncate"] = refuse
    repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert refused
    assert mode(repository) is Mode.NORMAL
    assert disk.free_bytes() >= 4 * KIB
    assert repository.space.reserve().whole


@pytest.mark.logs("recovery.broken_off")
def test_a_climb_that_breaks_off_is_told_of(
    repository: Repository, disk: TinyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    repository.delete(publish(repository, some_files(1, 30), "gone"))
    disk.leave(0)

    def refuse() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before["ftruncate"] = refuse
    with pytest.raises(VolumeError):
        repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert "recovery.broken_off" in caplog.text
    disk.before.clear()
    repository.recovery.climb(NoSpaceError("full", 4 * KIB))
    assert mode(repository) is Mode.NORMAL
