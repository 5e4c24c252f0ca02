"""Each structure damaged in each way: it is told clearly and by its place, or mended; and nothing else suffers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from repository.errors import BallastError, DamagedError
from repository.format.catalog import COPY_BYTES, HEAD_SLOT, copy_offset
from repository.format.pack import pack_path
from repository.ids import RecordId
from repository.policy.collect import Safety
from repository.repo import Repository
from tests.crash.images import bytes_of
from tests.crash.workload import CATALOG_SLOTS
from tests.damage.places import ACTIONS, Structure, damage, structures
from tests.damage.specimen import LOST, Row, Specimen, build, read_rows
from tests.support.repositories import SetClock
from tests.support.sync_live import SyncLive

pytestmark = [
    pytest.mark.logs(
        "record.damaged",
        "pack.directory_damaged",
        "pack.header_damaged",
        "pack.foreign",
        "index.segment_discarded",
        "journal.refused",
    ),
    pytest.mark.slow,
]
NAMES: Final = (
    *("events", "lock", "reserve", "intent", "config"),
    *("catalog head, copy A", "catalog head, copy B", "catalog head, both copies"),
    *("catalog slot, copy A", "catalog slot, copy B", "catalog slot, both copies"),
    *("header of a sealed pack", "header of a open pack", "directory of a pack", "trailer of a pack"),
    *(
        f"{kind} record, {part}"
        for kind in (
            *("CHUNK", "DIR_CONTENT", "DIR_ATTRS", "DIR_LIST", "EXTENT_LIST", "EXTENT_SEGMENT", "LINKS_SEGMENT"),
            *("XATTRS", "MANIFEST", "BITMAP", "JOURNAL"),
        )
        for part in ("header", "payload")
    ),
    *(f"index segment, {part}" for part in ("header", "keys", "rows", "filter", "packs")),
)
"""All structures of a specimen; a test sees to it that none is forgotten."""
QUICK: Final = ("truncate", "flip")
"""What `scripts/test --fast` does to each."""


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return build(tmp_path_factory.mktemp("specimen") / "repo")


@pytest.fixture(scope="module")
def known(specimen: Specimen) -> dict[str, Structure]:
    return {structure.name: structure for structure in structures(specimen.path)}


@pytest.fixture
def patient(specimen: Specimen, memory_folder: Path) -> Path:
    """A copy of the specimen, with its holes and times."""
    target = memory_folder / "repo"
    shutil.copytree(specimen.path, target)
    return target


def test_no_structure_is_forgotten(known: dict[str, Structure]) -> None:
    assert set(known) == set(NAMES)


@pytest.mark.parametrize(
    "action", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in ACTIONS]
)
@pytest.mark.parametrize("name", NAMES)
def test_damage(patient: Path, specimen: Specimen, known: dict[str, Structure], name: str, action: str) -> None:
    structure = known[name]
    changed = damage(patient, structure, action)
    assert changed or (name, action) == ("reserve", "zero")
    before = bytes_of(patient)
    told = _check(patient)
    assert bytes_of(patient) == before, "check wrote something"
    if structure.named is not None and action not in structure.quiet:
        assert structure.named in told, f"{structure.named} is not named in:\n{told}"
    if name == "config" or HEAD_SLOT in _spoiled_slots(patient, specimen):
        assert told.startswith("error: "), told
        with pytest.raises(BallastError):
            SyncLive(patient)
        return
    may_be_lost = set(_may_be_lost(patient, specimen))
    first = _intact(patient, specimen, may_be_lost)
    if len(first) < len(specimen.rows):
        assert "error: " in told, f"{len(specimen.rows) - len(first)} rows are lost, and nobody tells:\n{told}"
    _use(patient, specimen)
    collected = {row for row in specimen.rows if row.snapshot == "gone"}
    then = _intact(patient, specimen, may_be_lost | collected)
    assert first - collected <= then, "using the repository made it worse"


def _check(path: Path) -> str:
    """What `ballast check --read-data` says."""
    try:
        with Repository.open(path, writable=False) as repository:
            return repository.check(read_data=True).text()
    except BallastError as error:
        return f"error: {error}"


def _may_be_lost(path: Path, specimen: Specimen) -> Iterator[Row]:
    """Rows that need a damaged record, or whose snapshot's slot is damaged in both copies."""
    spoiled = _spoiled_records(path, specimen)
    slots = _spoiled_slots(path, specimen)
    with Repository.open(specimen.path, writable=False) as repository:
        catalog = repository.catalog
        forgotten = {slot.name for slot in catalog.slots() if catalog.place(slot.snapshot_id) in slots}
    for row, needs in specimen.needs.items():
        if needs & spoiled or row.snapshot in forgotten:
            yield row


def _spoiled_records(path: Path, specimen: Specimen) -> set[RecordId]:
    spoiled: set[RecordId] = set()
    with Repository.open(specimen.path, writable=False) as repository:
        for info in repository.store.packs():
            directory = repository.store.directory(info.index)
            healthy = (specimen.path / pack_path(info.index)).read_bytes()
            found = (path / pack_path(info.index)).read_bytes()
            for row in range(len(directory)):
                start, stored = int(directory.offset[row]), int(directory.stored[row])
                if healthy[start : start + stored] != found[start : start + stored]:
                    spoiled.add(directory.id_at(row))
    return spoiled


def _spoiled_slots(path: Path, specimen: Specimen) -> set[int]:
    """Slots whose copies are both damaged."""
    healthy, found = ((root / "catalog").read_bytes() for root in (specimen.path, path))
    return {
        slot
        for slot in range(CATALOG_SLOTS)
        if all(
            healthy[at : at + COPY_BYTES] != found[at : at + COPY_BYTES]
            for at in (copy_offset(slot, 0), copy_offset(slot, 1))
        )
    }


def _intact(path: Path, specimen: Specimen, may_be_lost: set[Row]) -> set[Row]:
    """The rows that read as they should; others must be among those that may be lost, and never read wrong."""
    with Repository.open(path, writable=False) as repository:
        found = read_rows(repository, specimen.rows)
    wrong = [row for row, value in found.items() if value not in (specimen.rows[row], LOST)]
    assert not wrong, f"read without an error, and wrong: {wrong[:3]}"
    lost = {row for row, value in found.items() if value == LOST}
    assert lost <= may_be_lost, f"lost without need: {sorted(lost - may_be_lost)[:3]}"
    return set(specimen.rows) - lost


def _use(path: Path, specimen: Specimen) -> None:
    """A mount, and a collection in it: whatever they do, they end well or with an error of ours."""
    clock = SetClock()
    clock.pass_days(1)
    try:
        live = SyncLive(path, clock=clock)
    except DamagedError:
        return
    try:
        picture = live.picture()
    except DamagedError:
        picture = {}
    for name, row in picture.items():
        assert row == specimen.live[name], name
    try:
        live.repository.gc(safety=Safety.NONE)
    except DamagedError as error:
        assert str(error)
    live.kill()
