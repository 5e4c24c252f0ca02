"""What `restore` finds out before it writes anything."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from repository.errors import NoSpaceError
from repository.locate import locate
from repository.repo import Repository
from repository.restore.command import restore
from repository.restore.estimate import require_room
from repository.restore.restore import WhenThere
from repository.units import MIB
from tests.support.sources import Told, age, store


class Figures(NamedTuple):
    """What statvfs says of a volume."""

    f_frsize: int
    f_blocks: int
    f_bavail: int


def with_room(monkeypatch: pytest.MonkeyPatch, available_bytes: int) -> None:
    """The destination's volume says that it has this much, of which nothing has to stay free."""
    figures = Figures(1, 10 * available_bytes, available_bytes)
    monkeypatch.setattr("repository.restore.estimate.os.statvfs", lambda path: figures)
    monkeypatch.setattr("repository.policy.preflight.BUFFER_BYTES", 0)
    monkeypatch.setattr("repository.policy.preflight.LARGE_BYTES", 1)


def put_back(
    repo: Repository, what: str, out: Path, when_there: WhenThere | None = None, *, estimate: bool = True
) -> None:
    told = Told()
    destination = os.fsencode(out)
    restore(repo, locate(repo, what), destination, when_there, notices=told, progress=told, estimate=estimate)
    assert told.problems == []


def test_what_cannot_fit_is_refused_before_anything_is_written(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (files / name).write_bytes(os.urandom(1 * MIB))
    os.link(files / "c", files / "linked")
    age(files)
    created, _ = store(repo, files)
    what, out = f"{created.slot.name}:{files}", tmp_path / "new" / "out"
    with_room(monkeypatch, 2 * MIB)
    with pytest.raises(NoSpaceError, match=r"^Insufficient storage: 2\.1 MB available, need 3\.1 MB\. ") as refused:
        put_back(repo, what, out)
    assert refused.value.needed_bytes == 3 * MIB, "a hard link takes nothing"
    assert not out.parent.exists()
    put_back(repo, f"{what}/a", out)
    # What is there already takes no more room: the same command goes on from there.
    with_room(monkeypatch, 2 * MIB + 1)
    put_back(repo, what, out, WhenThere.KEEP)
    with_room(monkeypatch, 1)
    put_back(repo, what, out, WhenThere.OVERWRITE)
    with pytest.raises(NoSpaceError):
        put_back(repo, what, tmp_path / "again")
    put_back(repo, what, tmp_path / "again", estimate=False)


def test_holes_take_no_room(repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(files / "sparse", "wb") as file:
        file.truncate(50 * MIB)
        file.seek(20 * MIB)
        file.write(os.urandom(1 * MIB))
    created, _ = store(repo, files)
    with_room(monkeypatch, 3 * MIB)
    put_back(repo, f"{created.slot.name}:{files}", tmp_path / "out")
    put_back(repo, f"{created.slot.name}:{files}/sparse", tmp_path / "single")
    assert os.stat(tmp_path / "out" / "sparse").st_size == 50 * MIB


def test_with_room_for_everything_no_listing_is_read(
    repo: Repository, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "a").write_bytes(os.urandom(1 * MIB))
    created, _ = store(repo, files)
    what = locate(repo, created.slot.name)
    with_room(monkeypatch, 1 * MIB)

    def refuse(*_: object) -> None:
        raise AssertionError("a listing was read")

    monkeypatch.setattr(repo.reader, "scan", refuse)
    require_room(repo, what, os.fsencode(tmp_path / "out"), None, Told())
    with_room(monkeypatch, 1 * MIB - 1)
    with pytest.raises(AssertionError):
        require_room(repo, what, os.fsencode(tmp_path / "out"), None, Told())
