"""Files in each other's place, unreadable ones, and a configuration that is nearly right."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from repository.errors import BallastError, NoRepositoryError
from repository.format.config import CONFIG_NAME
from repository.format.pack import PACK_HEADER_BYTES, pack_path
from repository.format.record import HEADER_BYTES
from repository.ids import PackIndex
from repository.policy.collect import Safety
from repository.repo import Repository
from tests.damage.specimen import LOST, Specimen, build, read_rows
from tests.support.calls import Fault, FaultyCalls
from tests.support.sync_live import SyncLive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.logs(
        "pack.header_damaged",
        "pack.directory_damaged",
        "pack.foreign",
        "pack.unreadable",
        "record.damaged",
        "index.segment_discarded",
        "store.failed",
    ),
]


@pytest.fixture
def specimen(memory_folder: Path) -> Specimen:
    return build(memory_folder / "repo")


def _use(path: Path, calls: FaultyCalls | None = None) -> None:
    """A mount, and a collection in it that keeps nothing back, as far as they get."""
    try:
        live = SyncLive(path, calls=calls)
    except BallastError as error:
        assert str(error)
        return
    try:
        live.repository.gc(safety=Safety.NONE)
    except BallastError as error:
        assert str(error)
    live.kill()


def _exchange(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("pair", [(0, 2), (4, 5), (1, 4)])
def test_packs_that_changed_places_are_told_and_left_alone(
    specimen: Specimen, pair: tuple[int, int], index: bool
) -> None:
    """The next mount took a pack without a record of its own for an empty one, and removed it."""
    if not index:
        shutil.rmtree(specimen.path / "index")
    files = [specimen.path / pack_path(PackIndex(pack)) for pack in pair]
    before = [file.read_bytes() for file in files]
    _exchange(*files)
    with Repository.open(specimen.path, writable=False) as repository:
        told = repository.check(read_data=True).text()
    assert all(f"error: {pack_path(PackIndex(pack))}" in told for pack in pair), told
    _use(specimen.path)
    _exchange(*files)
    assert [file.read_bytes() for file in files] == before
    _all_is_there(specimen)


def _all_is_there(specimen: Specimen) -> None:
    """But for the deleted snapshot, which may have been collected."""
    with Repository.open(specimen.path, writable=False) as repository:
        found = read_rows(repository, specimen.rows)
    for row, value in found.items():
        assert value == specimen.rows[row] or (row.snapshot == "gone" and value == LOST), row


def test_a_pack_of_another_repository_is_left_alone(specimen: Specimen, memory_folder: Path) -> None:
    Repository.init(memory_folder / "other", reserve_bytes=0)
    other = SyncLive(memory_folder / "other")
    other.store.put_bytes(b"theirs" * 1000, final=True, lease=other.leases[0])
    other.store.sync()
    other.kill()
    theirs = specimen.path / pack_path(PackIndex(7))
    shutil.copy(memory_folder / "other" / pack_path(PackIndex(0)), theirs)
    before = theirs.read_bytes()
    with Repository.open(specimen.path, writable=False) as repository:
        assert pack_path(PackIndex(7)) in repository.check().text()
    live = SyncLive(specimen.path)
    live.store.put_bytes(b"ours" * 10_000, final=True, lease=live.leases[0])
    live.kill()
    assert theirs.read_bytes() == before
    _all_is_there(specimen)


def test_a_pack_that_cannot_be_read_today_is_there_tomorrow(specimen: Specimen) -> None:
    shutil.rmtree(specimen.path / "index")
    for pack in (0, 4):
        path = specimen.path / pack_path(PackIndex(pack))
        before = path.read_bytes()
        calls = FaultyCalls([Fault("pread", errno.EIO, times=1 << 30, path=f"{pack:08x}.pack")])
        _use(specimen.path, calls)
        calls.check()
        assert path.read_bytes() == before
    _all_is_there(specimen)


@pytest.mark.parametrize("nth", [2, 3])
def test_a_sealed_pack_whose_end_cannot_be_read_for_a_moment_is_not_sealed_anew(specimen: Specimen, nth: int) -> None:
    """It was: and of what rots in it, nothing told any more. The reads: its header, its trailer, its directory."""
    shutil.rmtree(specimen.path / "index")
    path = specimen.path / pack_path(PackIndex(0))
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(PACK_HEADER_BYTES + HEADER_BYTES)
        file.write(bytes([before[PACK_HEADER_BYTES + HEADER_BYTES] ^ 1]))
    rotten = path.read_bytes()
    calls = FaultyCalls([Fault("pread", errno.EIO, nth, path="00000000.pack")])
    _use(specimen.path, calls)
    calls.check()
    assert path.read_bytes() == rotten


def test_a_second_copy_of_a_pack_harms_nobody(specimen: Specimen) -> None:
    copied = specimen.path / pack_path(PackIndex(9))
    shutil.copy(specimen.path / pack_path(PackIndex(2)), copied)
    with Repository.open(specimen.path, writable=False) as repository:
        told = repository.check(read_data=True).text()
    assert pack_path(PackIndex(9)) in told
    _use(specimen.path)
    _all_is_there(specimen)


@pytest.mark.parametrize("key", ["id_key", "repository_id", "pack_bytes", "created_ns", "avg"])
def test_one_other_digit_in_the_configuration_is_told(specimen: Specimen, key: str) -> None:
    """With another key every record looked damaged; with another id all packs were foreign, and taken for empty."""
    path = specimen.path / CONFIG_NAME
    text = path.read_text()
    changed = re.sub(rf'("{key}": "?)(\d)', lambda found: found[1] + str((int(found[2]) + 1) % 10), text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(NoRepositoryError, match=CONFIG_NAME):
        Repository.open(specimen.path, writable=True)


@pytest.mark.parametrize("name", ["catalog", "intent", "events", "lock", "repository.json"])
def test_a_missing_file_is_named(specimen: Specimen, name: str) -> None:
    os.unlink(specimen.path / name)
    for writable in (False, True):
        try:
            with Repository.open(specimen.path, writable=writable) as repository:
                told = repository.check().text()
        except BallastError as error:
            told = str(error)
        assert name in told or "no repository" in told, told
