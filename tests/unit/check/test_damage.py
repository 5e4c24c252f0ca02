"""Damage as a matrix: what is changed, where, and what a check says about it. It writes nothing, and never gives up."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from repository.bitmaps import store_bitmap
from repository.check import findings
from repository.check.report import Finding, Severity
from repository.errors import DamagedError
from repository.format.catalog import HEAD_SLOT, copy_offset
from repository.format.pack import pack_path
from repository.format.record import RecordKind
from repository.ids import RecordId, pack_of
from repository.locate import locate
from repository.repo import Repository
from repository.units import KIB
from tests.support.repositories import SetClock, make, open_for_reading, open_for_writing, publish
from tests.support.sources import age, store
from tests.support.stores import noise

pytestmark = pytest.mark.slow

FILES: Final = {f"f{number}": noise(number, 50 * KIB) for number in range(4)}


@dataclass(frozen=True, slots=True)
class Spot:
    """A stretch of bytes in a file of the repository."""

    file: str
    offset: int
    length: int


Finder = Callable[[Repository], Spot]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "repository"
    clock = SetClock()
    make(path, clock)
    with open_for_writing(path, clock) as repository:
        publish(repository, FILES, "a")
        publish(repository, FILES | {"g": noise(99, 30 * KIB)}, "b")
        repository.gc()
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged, holes kept."""
    target = tmp_path / "copy"
    for source in sorted(sound.rglob("*")):
        goal = target / source.relative_to(sound)
        if source.is_dir():
            goal.mkdir(parents=True, exist_ok=True)
        else:
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.write_bytes(source.read_bytes())
    return target


def record_of(kind: RecordKind, *, payload: bool) -> Finder:
    """A live record of `kind`: its payload, or its header."""

    def find(repository: Repository) -> Spot:
        kept = repository.publisher.numbers_of(repository.find("a")) | repository.publisher.numbers_of(
            repository.find("b")
        )
        kept.update(slot.bitmap_number for slot in repository.listed())
        for info in repository.store.packs():
            directory = repository.store.directory(info.index)
            for row in np.flatnonzero(directory.kind == kind).tolist():
                if (info.index << 16) + row in kept:
                    offset, stored = int(directory.offset[row]), int(directory.stored[row])
                    where = pack_path(info.index)
                    return Spot(where, offset + 64, stored - 64) if payload else Spot(where, offset, 64)
        raise AssertionError(f"no record of kind {kind!r}")

    return find


def slot_copy(index: int | None, copy: int) -> Finder:
    def find(repository: Repository) -> Spot:
        place = repository.catalog.place(repository.find("a").snapshot_id) if index is None else index
        return Spot("catalog", copy_offset(place, copy), 1024)

    return find


def in_pack(offset: int, length: int) -> Finder:
    def find(repository: Repository) -> Spot:
        size = (repository.path / pack_path(repository.store.packs()[0].index)).stat().st_size
        return Spot(pack_path(repository.store.packs()[0].index), offset % size, length)

    return find


def fixed(file: str) -> Finder:
    return lambda _: Spot(file, 0, 24)


def flip(path: Path, spot: Spot) -> None:
    with (path / spot.file).open("r+b") as file:
        file.seek(spot.offset + spot.length // 2)
        byte = file.read(1)
        file.seek(spot.offset + spot.length // 2)
        file.write(bytes([byte[0] ^ 0x10]))


def zero(path: Path, spot: Spot) -> None:
    with (path / spot.file).open("r+b") as file:
        file.seek(spot.offset)
        file.write(bytes(spot.length))


CASES: Final = [
    # name, where, read_data, expected severity, words of a place
    ("chunk payload", record_of(RecordKind.CHUNK, payload=True), True, Severity.ERROR, "packs/"),
    ("chunk header", record_of(RecordKind.CHUNK, payload=False), False, Severity.ERROR, "packs/"),
    ("content payload", record_of(RecordKind.DIR_CONTENT, payload=True), False, Severity.ERROR, "snapshot '"),
    ("attributes payload", record_of(RecordKind.DIR_ATTRS, payload=True), False, Severity.ERROR, "snapshot '"),
    ("manifest payload", record_of(RecordKind.MANIFEST, payload=True), False, Severity.ERROR, "snapshot '"),
    ("bitmap payload", record_of(RecordKind.BITMAP, payload=True), False, Severity.WARNING, "snapshot '"),
    ("pack header", in_pack(0, 64), False, Severity.WARNING, "byte 0"),
    ("pack trailer", in_pack(-32, 32), False, Severity.WARNING, "end"),
    ("slot copy A", slot_copy(None, 0), False, Severity.WARNING, "catalog, slot"),
    ("slot copy B", slot_copy(None, 1), False, Severity.WARNING, "catalog, slot"),
    ("head copy", slot_copy(HEAD_SLOT, 0), False, Severity.WARNING, "catalog, slot 0"),
    ("intent", fixed("intent"), False, Severity.WARNING, "intent"),
]


@pytest.mark.parametrize("change", [flip, zero])
@pytest.mark.parametrize(
    ("finder", "read_data", "severity", "words"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
@pytest.mark.logs("record.damaged", "pack.directory_damaged", "pack.header_damaged", "pack.damaged", "index.discarded")
def test_damage_is_found_and_named(
    path: Path,
    finder: Finder,
    read_data: bool,
    severity: Severity,
    words: str,
    change: Callable[[Path, Spot], None],
) -> None:
    clock = SetClock()
    with open_for_reading(path, clock) as repository:
        assert repository.check(read_data=True).findings == ()
        spot = finder(repository)
    change(path, spot)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with open_for_reading(path, clock) as repository:
        report = repository.check(read_data=read_data)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert any(finding.severity is severity and words in finding.place for finding in report.findings), report.text()
    assert report.is_sound is (severity is Severity.WARNING), report.text()


def spot_of(repository: Repository, record_id: RecordId) -> Spot:
    """The payload of one record."""
    (place,) = repository.store.copies(record_id)
    return Spot(pack_path(pack_of(place.number)), place.offset + 64, place.stored_length - 64)


@pytest.mark.logs("record.damaged")
def test_the_files_that_lost_something_are_named(tmp_path: Path, memory_folder: Path) -> None:
    """By their paths, in all snapshots that have them; not those of a chunk that is somewhere else too."""
    clock, files, path = SetClock(), tmp_path / "files", memory_folder / "repository"
    make(path, clock)
    (files / "deep").mkdir(parents=True)
    for number, name in enumerate(("deep/one", "deep/two", "other", "gone")):
        (files / name).write_bytes(noise(number, 50 * KIB))
    (files / "deep" / "again").write_bytes(noise(0, 50 * KIB))
    os.link(files / "other", files / "deep" / "linked")
    (files / "large").write_bytes(noise(9, 4000 * KIB))
    age(files)
    with open_for_writing(path, clock) as repository:
        store(repository, files, name="a")
        (files / "gone").unlink()
        store(repository, files, name="b")
        repository.delete(store(repository, files / "deep", name="c")[0].slot)
    at = str(files).encode()
    with open_for_reading(path, clock) as repository:
        large = locate(repository, f"a:{files}/large").inode
        lost = [extent.chunk for extent in repository.reader.extents(large, 0, large.size)][1:3]
        offset = repository.reader.extents(large, 0, large.size)[1].offset
        for name in ("deep/one", "other", "gone"):
            inode = locate(repository, f"a:{files}/{name}").inode
            lost += [extent.chunk for extent in repository.reader.extents(inode, 0, inode.size)]
        spots = [spot_of(repository, one) for one in lost]
        assert repository.check(read_data=True).affected == ()
    for spot in spots:
        flip(path, spot)
    with open_for_reading(path, clock) as repository:
        report = repository.check(read_data=True)
    one = "1 of its chunks cannot be read, the first at byte 0"
    assert {(found.path, found.what, found.snapshots) for found in report.affected} == {
        (at + b"/deep/one", one, ("a", "b", "c (deleted)")),
        (at + b"/deep/again", one, ("a", "b", "c (deleted)")),
        (at + b"/deep/linked", one, ("a", "b", "c (deleted)")),
        (at + b"/other", one, ("a", "b")),
        (at + b"/gone", one, ("a",)),
        (at + b"/large", f"2 of its chunks cannot be read, the first at byte {offset}", ("a", "b")),
    }
    assert f"affected: {files}/gone in a: {one}" in report.text()

    # A later put of the same bytes heals what it brings.
    (files / "deep" / "new").write_bytes(noise(0, 50 * KIB))
    with open_for_writing(path, clock) as repository:
        for record_id in lost:
            with pytest.raises(DamagedError):
                repository.store.read(record_id)
        store(repository, files / "deep" / "new")
        healed = {found.path for found in repository.check(read_data=True).affected}
    assert healed == {at + b"/deep/linked", at + b"/other", at + b"/gone", at + b"/large"}


@pytest.mark.logs("record.damaged")
def test_a_listing_that_cannot_be_read_is_named(tmp_path: Path, memory_folder: Path) -> None:
    clock, files, path = SetClock(), tmp_path / "files", memory_folder / "repository"
    make(path, clock)
    for name in ("damaged\n/a", "sound/b"):
        (files / name).parent.mkdir(parents=True)
        (files / name).write_bytes(name.encode())
    with open_for_writing(path, clock) as repository:
        store(repository, files, name="a")
        content = locate(repository, f"a:{files}/damaged\n").inode.directory.content
        assert content is not None
        spot = spot_of(repository, content)
    flip(path, spot)
    with open_for_reading(path, clock) as repository:
        report = repository.check()
    found = str(files).encode() + b"/damaged\n/"
    assert [(one.path, one.what) for one in report.affected] == [(found, "it cannot be listed to its end")]
    assert f"affected: {files}/damaged\\n/ in a" in report.text()


@pytest.mark.parametrize("name", ["lock", "intent", "events"])
def test_a_missing_or_short_file_is_found(path: Path, name: str) -> None:
    with open_for_reading(path, SetClock()) as repository:
        os.truncate(path / name, 100)
        report = repository.check()
        assert [finding.place for finding in report.findings if finding.severity is Severity.ERROR] == [name]
        (path / name).unlink()
        report = repository.check()
        assert name in [finding.place for finding in report.findings if finding.severity is Severity.ERROR]


@pytest.mark.logs("record.damaged", "pack.directory_damaged")
def test_a_missing_pack_is_found_by_everything_that_needs_it(path: Path) -> None:
    with open_for_reading(path, SetClock()) as repository:
        victims = [pack_path(info.index) for info in repository.store.packs()]
    for victim in victims:
        (path / victim).unlink()
    with open_for_reading(path, SetClock()) as repository:
        report = repository.check()
        assert {"snapshot 'a'", "snapshot 'b'"} <= {finding.place for finding in report.findings}
        assert not report.is_sound


@pytest.mark.logs("pack.directory_damaged")
def test_a_lost_slot_is_an_error(path: Path) -> None:
    with open_for_reading(path, SetClock()) as repository:
        index = repository.catalog.place(repository.find("a").snapshot_id)
    for copy in (0, 1):
        zero(path, Spot("catalog", copy_offset(index, copy), 1024))
    with open_for_reading(path, SetClock()) as repository:
        report = repository.check()
        assert [finding.place for finding in report.findings if finding.severity is Severity.ERROR] == [
            f"catalog, slot {index} (bytes {copy_offset(index, 0)} and {copy_offset(index, 1)})"
        ]


def test_a_bitmap_that_lacks_something_is_an_error(path: Path) -> None:
    """The one fault that would make a collection free what is needed."""
    clock = SetClock()
    with open_for_writing(path, clock) as repository:
        slot = repository.find("b")
        numbers = repository.publisher.numbers_of(slot)
        numbers.discard(min(numbers))
        with repository.store.lease() as lease:
            stored, _ = store_bitmap(repository.store, lease, slot.manifest, numbers, exact=True)
            repository.store.sync()
            repository.catalog.change([replace(slot, bitmap=stored.id, bitmap_number=stored.number)])
        report = repository.check()
        assert [finding.place for finding in report.findings] == ["snapshot 'b'"]
        assert "lacks 1 records" in report.findings[0].what


def test_more_findings_than_are_kept_are_counted_and_as_bad_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "FINDINGS_MAX", 2)
    found = findings.Findings()
    for number in range(4):
        found.warning(f"{number}", "odd")
    assert [(one.severity, one.place) for one in found.all()] == [
        (Severity.WARNING, "0"),
        (Severity.WARNING, "1"),
        (Severity.WARNING, "check"),
    ]
    others = findings.Findings()
    for number in range(3):
        others.error(f"{number}", "gone")
    found.take(others)
    assert found.all()[-1] == Finding(Severity.ERROR, "check", "5 further findings are not listed")
