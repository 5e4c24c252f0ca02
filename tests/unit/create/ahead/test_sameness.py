"""`snapshot create` with a crew that looks ahead: the same snapshot as without, whatever changed."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from repository import crew as crews
from repository.create import ahead, builder, estimate, looking
from repository.create.ahead import Ahead
from repository.create.skim import PlainLook
from repository.create.source import Directory, SourceError
from repository.crew import Crew
from repository.errors import DamagedError
from repository.format.inode import Inode
from tests.support.looking_ahead import (
    TOPS,
    Change,
    Options,
    attributes,
    both,
    both_again,
    contents,
    hard_links,
    names,
    nothing,
    one_in_each,
    same_size_and_time,
    settle,
    tagged,
    types,
    whole_directories,
)
from tests.support.repositories import SetClock, open_for_writing
from tests.support.sources import listing_of, store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "change",
    [nothing, contents, one_in_each, same_size_and_time, names, whole_directories, attributes, types, hard_links,
     tagged],
)  # fmt: skip
def test_the_snapshot_is_the_same_with_and_without(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes], change: Change
) -> None:
    _, fewer = both(path, clock, tree, change, {}, hired, listed)
    assert fewer >= 2


@pytest.mark.parametrize("change", [nothing, contents, names, tagged])
@pytest.mark.parametrize(
    "options",
    [{"excludes": (b"f3",)}, {"excludes": (b"e1/", b"!e1/", b"e4/")}, {"exclude_caches": True},
     {"one_file_system": True}],
    ids=["files", "directories", "caches", "one-file-system"],
)  # fmt: skip
def test_what_is_left_out_is_left_out(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes], change: Change, options: Options
) -> None:
    both(path, clock, tree, change, options, hired, listed)
    # And once more, against a snapshot that has left it out already:
    again, fewer = both_again(path, clock, tree, options, hired, listed)
    assert again[6] == 0, "nothing is new"
    assert fewer >= 2


def test_linked_files_that_are_unchanged_are_told_as_without(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes]
) -> None:
    hard_links(tree)
    found, _ = both(path, clock, tree, nothing, {}, hired, listed)
    assert found[6] == 0 and found[2] is not None


def test_a_mount_of_ballast_is_left_out(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes]
) -> None:
    mounts = frozenset([os.fsencode(tree / "d1" / "e2"), os.fsencode(tree / "d0" / "e0" / "new")])
    found, _ = both(path, clock, tree, contents, {"mounts": mounts}, hired, listed)
    assert found[9] == [f"'{tree / 'd1' / 'e2'}' is a Ballast mount and is left out."]


def test_what_cannot_be_read_is_told_once(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Directory.open_directory

    def locked(self: Directory, name: bytes) -> Directory:
        if name == b"e2":
            raise SourceError(OSError(errno.EACCES, "Permission denied"))
        return real(self, name)

    def lock(tree: Path) -> None:
        monkeypatch.setattr(Directory, "open_directory", locked)

    found, _ = both(path, clock, tree, lock, {}, hired, listed)
    expected = [(os.fsencode(tree / f"d{top}" / "e2"), "Permission denied") for top in range(TOPS)]
    assert found[8] == expected


def test_files_of_a_moment_ago_are_read_again(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes]
) -> None:
    clock.ns = time.time_ns()
    found, _ = both(path, clock, tree, nothing, {}, hired, listed)
    assert found[6] == 2, "a symlink and a FIFO are taken anew, but no file has changed"
    regular = [file for file in tree.rglob("*") if file.is_file() and not file.is_symlink()]
    assert found[11] == sum(file.stat().st_size for file in regular), "all of them were read"


def test_paths_named_inside_each_other(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes]
) -> None:
    """What was named itself has rules of its own, so the scanner looks at it."""
    paths = (tree / "d0", tree / "d0" / "e1" / "f1", tree / "d1", tree / "d2" / "file")

    def take(path: Path) -> object:
        with open_for_writing(path, clock) as repo:
            created, told = store(repo, *paths, excludes=(b"f1",))
            return listing_of(repo, created.slot, tree), created.counts, told.done_files

    take(path)
    shutil.copytree(path, path.parent / "plain")
    contents(tree)
    settle(tree)
    now_ns = clock.ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "hire", lambda wanted, work: None)
        expected = take(path.parent / "plain")
    clock.ns = now_ns
    assert take(path) == expected and len(hired) == 1


@pytest.mark.logs("ahead.lost")
@pytest.mark.parametrize("victims", [1, 2])
def test_a_killed_worker_loses_nothing(
    path: Path,
    clock: SetClock,
    tree: Path,
    hired: list[Crew],
    listed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    victims: int,
) -> None:
    real = Ahead.take
    taken: list[bytes] = []

    def take(self: Ahead, path: bytes) -> PlainLook | None:
        taken.append(path)
        if len(taken) == 6:
            for pid in hired[-1].pids()[:victims]:
                os.kill(pid, signal.SIGKILL)
        return real(self, path)

    monkeypatch.setattr(Ahead, "take", take)
    both(path, clock, tree, names, {}, hired, listed)
    assert len(taken) >= 6


@pytest.mark.parametrize("error", [DamagedError("record 17 is damaged"), looking.TooMuchError()])
def test_where_a_worker_is_unsure_the_scanner_looks(
    path: Path,
    clock: SetClock,
    tree: Path,
    hired: list[Crew],
    listed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    real = looking.Looker.look

    def unsure(self: looking.Looker, directory: Directory, base: Inode) -> PlainLook | None:
        if base.mtime_ns % 2:
            raise error
        return real(self, directory, base)

    monkeypatch.setattr(looking.Looker, "look", unsure)
    os.utime(tree / "d1" / "e3", ns=(5, 5))
    both(path, clock, tree, contents, {}, hired, listed)


@pytest.mark.parametrize("bound", ["NAMES_MAX", "DIRECTORIES_MAX"])
def test_what_has_grown_out_of_bounds_is_for_the_scanner(
    path: Path,
    clock: SetClock,
    tree: Path,
    hired: list[Crew],
    listed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
) -> None:
    monkeypatch.setattr(looking, bound, 0)
    both(path, clock, tree, names, {}, hired, listed)


def test_a_doubt_about_the_room_changes_nothing(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "held_bytes", lambda paths, below: 1 << 60)
    _, fewer = both(path, clock, tree, names, {}, hired, listed)
    assert fewer >= 2


def test_both_crews_work_at_once(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one looks ahead while the other reads what has changed."""
    reading: list[Crew | None] = []

    def hire(wanted: int, work: crews.Work, *, trays: int, tray_bytes: int) -> Crew | None:
        reading.append(crews.hire(wanted, work, trays=trays, tray_bytes=tray_bytes))
        return reading[-1]

    monkeypatch.setattr("repository.create.readers.cores", lambda: 3)
    monkeypatch.setattr("repository.create.readers.hire", hire)
    monkeypatch.setattr(builder, "BATCH_FILES", 4)
    both(path, clock, tree, one_in_each, {}, hired, listed)
    assert None not in reading and len(reading) == 3, "at first; then alone, and beside the one that looks ahead"


def test_long_answers_hold_nobody_up(
    path: Path, clock: SetClock, tree: Path, hired: list[Crew], listed: list[bytes]
) -> None:
    """Each takes more than a socket holds, and several are under way."""

    def many(tree: Path) -> None:
        for top in range(TOPS):
            for number in range(1500):
                (tree / f"d{top}" / "e1" / f"{number:0250}").touch()

    both(path, clock, tree, many, {}, hired, listed)
