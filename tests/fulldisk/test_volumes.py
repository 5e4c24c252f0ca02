"""The file systems that cannot do everything, for real: a repository's whole life on each, and each one full."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from repository.errors import NoSpaceError
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.storage.calls import SystemClock
from repository.storage.probe import probe_volume
from repository.storage.reserving import allocate_reserve
from repository.storage.volume import Volume
from repository.units import KIB, MB, MIB
from tests.crash.workload import found
from tests.support.fulldisk.disks import Disk, new_disk
from tests.support.fulldisk.fillers import Filler
from tests.support.fulldisk.stage import Stage
from tests.support.mounting import mounting
from tests.support.repositories import SetClock, publish, read_files

pytestmark = pytest.mark.mount

CLASSES: Final = {"ntfs": "BC", "exfat": "BC", "ext2": "C"}
DISK_BYTES: Final = 160 * MIB
RESERVE_BYTES: Final = 20 * MB
PRIVATE: Final = ("ext2",)
"""Those that keep permission bits as they are mounted here."""


@contextmanager
def disk_of(folder: Path, kind: str) -> Iterator[Disk]:
    with new_disk(Stage(folder, folder, folder, folder), kind, DISK_BYTES) as disk:
        if kind == "ext2":  # else root, whom these tests run as, has room when nobody else has
            device = next(
                line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(disk.path) in line
            )
            subprocess.run(["tune2fs", "-m", "0", device], check=True, capture_output=True)
        yield disk


@pytest.fixture(params=CLASSES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    with disk_of(tmp_path, request.param) as one:
        yield one


def contents(seed: int, count: int, length: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"{seed}-{number:03d}": rng.randbytes(length) for number in range(count)}


def fill(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def same(folder: Path, files: dict[str, bytes]) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


# --- a whole life --------------------------------------------------------------------------------------------------


def test_a_whole_life(disk: Disk, tmp_path: Path) -> None:
    """init, create, mount, cp, snapshots, deletion, collection, check: as on any other volume."""
    base = tmp_path / "base"
    base.mkdir()
    repository = disk.path / "repository"
    home, more = contents(1, 30, 300 * KIB), contents(2, 20, 200 * KIB)
    fill(base / "home", home)
    fill(base / "more", more)
    with mounting(base) as one:
        said = one.ballast("init", repository, "--reserve", str(RESERVE_BYTES), "--headspace", "0")
        assert said.count("This volume lacks") == 1
        assert ("permission bits" in said) == (disk.kind not in PRIVATE)
        assert ("whole packs" in said) == ("B" in CLASSES[disk.kind])
        status = json.loads(one.ballast("status", repository, "--json"))
        assert status["volume_class"] == CLASSES[disk.kind]
        assert status["reserve"]["whole"]
        one.ballast("snapshot", "create", repository, base / "home", "--name", "first")

        one.ballast("mount", repository, one.mountpoint, "--settle", "0.2s", "--interval", "0.2s")
        subprocess.run(["cp", "-r", base / "more", one.live / "copy"], check=True)
        same(one.live / "copy", more)
        (one.snapshots / "second").mkdir()
        same(one.snapshots / "second" / "copy", more)
        same(one.snapshots / "first" / str(base / "home")[1:], home)
        (one.live / "copy" / "2-003").write_bytes(b"other")
        subprocess.run(["rm", "-r", one.live / "copy"], check=True)
        one.umount()

        held = disk.available_bytes()
        one.ballast("snapshot", "delete", repository, "first")
        one.ballast("gc", repository, "--safety", "none")
        assert disk.available_bytes() > held + 30 * 300 * KIB - MIB
        assert "no errors" in one.ballast("check", repository, "--read-data")
        one.ballast("mount", repository, one.mountpoint)
        same(one.snapshots / "second" / "copy", more)
        one.umount()
        assert " ERROR " not in one.log(), one.log()


# --- room ------------------------------------------------------------------------------------------------------------


def test_what_the_probe_finds(disk: Disk) -> None:
    volume = Volume(disk.path)
    assert probe_volume(volume).volume_class == CLASSES[disk.kind]
    assert not list(disk.path.iterdir())
    volume.create("lock").close()
    assert volume.punches("lock") == ("B" not in CLASSES[disk.kind])


def test_allocated_room_is_there_whatever_happens(disk: Disk) -> None:
    """What was allocated can be written, and made durable, with 0 bytes free; what didn't fit leaves nothing behind."""
    volume = Volume(disk.path)
    filler = Filler(disk)
    try:
        with volume.create("pack") as pack, volume.create("reserve") as reserve, volume.create("slot") as slot:
            slot.pwrite(bytes(64 * KIB), 0)
            slot.fsync()
            before = disk.available_bytes()
            allocate_reserve(reserve, 8 * MIB)
            assert 8 * MIB <= before - disk.available_bytes() < 9 * MIB
            pack.allocate(0, 4 * MIB)
            filler.leave(2 * MIB)
            left = disk.available_bytes()
            with pytest.raises(NoSpaceError):
                pack.allocate(4 * MIB, 64 * MIB)
            assert pack.size() == 4 * MIB
            assert disk.available_bytes() >= left - 64 * KIB
            with pytest.raises(NoSpaceError):
                allocate_reserve(reserve, 64 * MIB)
            assert reserve.size() == 8 * MIB

            filler.leave(0)
            with pytest.raises(NoSpaceError):
                pack.allocate(4 * MIB, 64 * KIB)
            noise = os.urandom(4 * MIB)
            for offset in range(0, 4 * MIB, 100_000):
                pack.pwrite(noise[offset : offset + 100_000], offset)
            pack.fdatasync()
            assert pack.pread(4 * MIB, 0) == noise
            slot.pwrite(b"x" * 1024, 3 * 1024)
            slot.fdatasync()

            free = disk.available_bytes()
            reserve.truncate(3 * MIB)
            assert disk.available_bytes() >= free + 5 * MIB - 64 * KIB, "what was lent did not come free at once"
            allocate_reserve(reserve, 8 * MIB)
    finally:
        filler.close()


def test_what_was_lent_comes_back_where_only_that_fits(tmp_path: Path) -> None:
    """xfs wants free blocks for all of a range that is allocated, for what has its blocks too."""
    with new_disk(Stage(tmp_path, tmp_path, tmp_path, tmp_path), "xfs", 400 * MIB) as disk:
        filler = Filler(disk)
        try:
            with Volume(disk.path).create("reserve") as reserve:
                allocate_reserve(reserve, 100 * MIB)
                reserve.truncate(90 * MIB)
                filler.leave(40 * MIB)
                allocate_reserve(reserve, 100 * MIB)
                assert reserve.stat().st_blocks * 512 >= 100 * MIB
        finally:
            filler.close()


def publish_interleaved(repository: Repository) -> dict[str, bytes]:
    """Two snapshots whose records lie mixed in the same packs; the one that is to stay needs a tenth of them."""
    files = contents(3, 100, 200 * KIB)
    few = dict(list(files.items())[::10])
    publish(repository, files, "all")
    publish(repository, few, "few")
    repository.store.seal_open()
    return few


def test_room_comes_back_on_a_full_disk(disk: Disk) -> None:
    """0 bytes free, and the packs hold a bit of everything. The reserve is lent; parts of packs come back by punching,
    or by moving what is needed out of them; the reserve is whole again, and writing goes on."""
    path = disk.path / "repository"
    filler = Filler(disk)
    Repository.init(path, reserve_bytes=RESERVE_BYTES, headspace_bytes=0)
    try:
        with Repository.open(path, writable=True) as repository:
            few = publish_interleaved(repository)
        filler.leave(0)
        with Repository.open(path, writable=True) as repository:
            repository.delete(repository.find("all"))
            repository.space.release(RESERVE_BYTES)
            before = disk.available_bytes()
            report = repository.collector.collect(Safety.NONE, exactness=False)
            assert report.freed_bytes > 10 * MIB
            assert disk.available_bytes() - before > 10 * MIB
            assert repository.space.restore().whole
            assert read_files(repository, repository.find("few")) == few
            more = contents(4, 10, 200 * KIB)
            publish(repository, more, "more")
            assert read_files(repository, repository.find("more")) == more
        with Repository.open(path, writable=False) as repository:
            checked = repository.check(read_data=True)
            assert not checked.findings, checked.text()
    finally:
        filler.close()


def test_a_catalog_grows_where_nothing_is_allocated(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repository.catalog.SLOTS_GROWN", 8)
    path = disk.path / "repository"
    found(path, SetClock(), slots=8)
    before = (path / "catalog").stat().st_size
    with Repository.open(path, writable=True, clock=SystemClock()) as repository:
        for number in range(20):
            publish(repository, {"file": b"%d" % number}, f"s{number}")
    with Repository.open(path, writable=False) as repository:
        assert len(repository.listed()) == 20
        assert (path / "catalog").stat().st_size > before
        assert not repository.check().findings


# --- volumes that compress -------------------------------------------------------------------------------------------


def test_btrfs_that_compresses_keeps_what_is_allocated(tmp_path: Path) -> None:
    """Zeros and text are stored in a fraction there, but not in files without copy-on-write: so allocated room is room,
    also in a directory that asks for compression."""
    with disk_of(tmp_path, "btrfs") as disk:
        subprocess.run(["mount", "-o", "remount,compress-force=zstd", disk.path], check=True)
        folder = disk.path / "compressed"
        folder.mkdir()
        subprocess.run(["chattr", "+c", folder], check=True)
        for root in (disk.path, folder):
            volume = Volume(root)
            before = disk.available_bytes()
            with volume.create("pack") as pack:
                pack.allocate(0, 16 * MIB)
                assert before - disk.available_bytes() >= 16 * MIB
                taken = disk.available_bytes()
                for _ in range(2):
                    pack.pwrite(b"the same again " * (MIB // 15), 0)
                    pack.pwrite(os.urandom(MIB), 5 * MIB)
                    pack.fdatasync()
                assert abs(disk.available_bytes() - taken) < MIB, "overwriting took or gave room"
            volume.unlink("pack")
        repository = folder / "repository"
        Repository.init(repository, reserve_bytes=RESERVE_BYTES, headspace_bytes=0)
        with Repository.open(repository, writable=True) as opened:
            assert opened.config.volume_class == "A"
            assert opened.space.reserve().whole


def test_on_btrfs_what_is_punched_or_cut_off_in_part_really_comes_free(tmp_path: Path) -> None:
    """It gives an extent back only when nothing of it is left, and an allocation is one: st_blocks says otherwise."""
    with disk_of(tmp_path, "btrfs") as disk:
        volume = Volume(disk.path)
        with volume.create("pack") as pack, volume.create("reserve") as reserve:
            for segment in range(0, 32 * MIB, 2 * MIB):
                pack.allocate(segment, 2 * MIB)
            for at in range(0, 32 * MIB, MIB):
                pack.pwrite(os.urandom(MIB), at)
            pack.fsync()
            allocate_reserve(reserve, 32 * MIB)
            free = disk.available_bytes()
            for at in range(0, 32 * MIB, 2 * MIB):
                pack.punch(at, MIB)
            pack.fsync()
            punched = disk.available_bytes()
            assert punched - free >= 16 * MIB
            pack.truncate(31 * MIB)
            pack.fsync()
            assert disk.available_bytes() - punched >= MIB, "the end of a pack that is sealed"
            cut = disk.available_bytes()
            reserve.truncate(24 * MIB)
            assert disk.available_bytes() - cut >= 8 * MIB, "a slice of the reserve"
