"""What storing and restoring may cost, counted: a slow-down fails here, without a stopwatch."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from repository.codec import Codec
from repository.create import estimate
from repository.create.command import CreateRequest, create_snapshot
from repository.create.exclude import Excludes
from repository.create.scan import Scanner
from repository.create.source import Directory
from repository.format.record import Buffer
from repository.index.index import Index
from repository.ledger import Ledger
from repository.locate import locate
from repository.packs.openpack import OpenPack
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.restore.command import restore
from repository.storage.calls import Calls
from repository.units import MIB, NS_PER_S
from tests.support.repositories import SetClock, make
from tests.support.sources import Told, age, names_in, store

DIRECTORIES = 40
FILES = 15
"""In each directory."""
ENTRIES = DIRECTORIES * (FILES + 1)


class CountingCalls(Calls):
    """Counts the calls to the repository's volume, from any thread."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def _note(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._note("pread")
        return super().pread(fd, length, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._note("pwritev")
        return super().pwritev(fd, buffers, offset)


@pytest.fixture
def calls() -> CountingCalls:
    return CountingCalls()


@pytest.fixture
def repo(tmp_path: Path, clock: SetClock, calls: CountingCalls) -> Iterator[Repository]:
    clock.ns = 4_000_000_000 * NS_PER_S  # later than any file of this test, so that none is read again
    make(tmp_path / "repo", clock)
    with Repository.open(tmp_path / "repo", writable=True, clock=clock, calls=calls) as opened:
        yield opened


@pytest.fixture
def tree(files: Path) -> Path:
    """Small files, all different, in directories of directories."""
    for number in range(DIRECTORIES):
        directory = files / f"d{number // 8}" / f"e{number}"
        directory.mkdir(parents=True)
        for one in range(FILES):
            (directory / f"f{one:02}").write_bytes(b"%d.%d\n" % (number, one) * 60)
    age(files)
    return files


Counted = Callable[[object, str], Counter[str]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """`counted(owner, name)` counts the calls of that function from now on."""
    found: Counter[str] = Counter()
    lock = threading.Lock()

    def count(owner: object, name: str) -> Counter[str]:
        real: object = getattr(owner, name)
        assert callable(real)

        def counting(*args: object, **named: object) -> object:
            with lock:
                found[name] += 1
            return real(*args, **named)

        monkeypatch.setattr(owner, name, counting)
        return found

    return count


def test_many_small_files_travel_together(repo: Repository, tree: Path, calls: CountingCalls, counted: Counted) -> None:
    counts = counted(ThreadPoolExecutor, "submit")
    counted(Index, "find")
    counted(Codec, "compress")
    counted(Codec, "compress_many")
    calls.counts.clear()
    created, _ = store(repo, tree)
    assert created.changed_files == DIRECTORIES * FILES
    assert counts["submit"] <= 4, "256 files a hand-off"
    assert counts["find"] <= counts["submit"] + 2 * (DIRECTORIES + 30), "one look-up a batch, two a directory"
    assert counts["compress"] <= 2 * (DIRECTORIES + 30), "files are compressed in batches, trees alone"
    assert calls.counts["pwritev"] <= counts["find"] + 40


def test_what_is_found_and_what_was_read_is_told_together(repo: Repository, files: Path, counted: Counted) -> None:
    """In one directory: not a step of the scanner, and a word on the progress, for each file."""
    for number in range(DIRECTORIES * FILES):
        (files / f"f{number}").write_bytes(b"%d" % number)
    age(files)
    counts = counted(Scanner, "step")
    counted(Told, "advance")
    created, told = store(repo, files)
    assert created.changed_files == told.done_files == DIRECTORIES * FILES
    assert counts["step"] <= DIRECTORIES * FILES // 32 + 8 * len(files.parents)
    assert counts["advance"] <= DIRECTORIES * FILES // 16 + 8 * len(files.parents)


def test_an_unchanged_tree_costs_one_look_at_each_file(
    repo: Repository, tree: Path, calls: CountingCalls, counted: Counted
) -> None:
    store(repo, tree)
    repo.reader.cache.clear()
    calls.counts.clear()
    counts = counted(os, "stat")
    counted(os, "open")
    counted(os, "listxattr")
    told = Told()
    request = CreateRequest([os.fsencode(tree)], None, Excludes(()), estimate=False)
    again = create_snapshot(repo, request, told, told)
    assert again.changed_files == 0 and again.counts.unchanged_files == DIRECTORIES * FILES
    assert counts["stat"] <= 1.2 * ENTRIES + 60
    assert counts["open"] <= DIRECTORIES + 60, "directories and the repository's own, no file"
    assert counts["listxattr"] <= DIRECTORIES + 30
    assert calls.counts["pread"] <= 40, "the parent's listings come in together, not one by one"


def test_doubting_the_room_costs_an_unchanged_tree_no_second_look(
    repo: Repository, tree: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan that storing goes on with tells what is new. A mount elsewhere costs no look at each path either."""
    store(repo, tree)
    monkeypatch.setattr(estimate, "held_bytes", lambda paths, below: 1 << 60)
    counts = counted(os, "stat")
    counted(os, "listdir")
    counted(os, "scandir")
    counted(Directory, "path_of")
    counted(estimate, "_count_ahead")
    again, _ = store(repo, tree, mounts=frozenset([b"/elsewhere/mnt"]))
    assert again.changed_files == 0 and again.counts.unchanged_files == DIRECTORIES * FILES
    assert counts["_count_ahead"] == 1 and counts["scandir"] == 0
    assert counts["stat"] <= 1.2 * ENTRIES + 60
    assert counts["listdir"] <= DIRECTORIES + 30
    assert counts["path_of"] <= DIRECTORIES + 30


def test_doubting_the_room_costs_a_new_tree_no_second_scan(
    repo: Repository, tree: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sizes alone say that all of it fits."""
    monkeypatch.setattr(estimate, "held_bytes", lambda paths, below: 1 << 60)
    monkeypatch.setattr(estimate, "AHEAD_DIRECTORIES", 4)
    counts = counted(os, "stat")
    counted(os, "listdir")
    counted(os, "scandir")
    created, _ = store(repo, tree)
    assert created.changed_files == DIRECTORIES * FILES
    assert counts["stat"] <= 1.2 * ENTRIES + 60
    assert counts["listdir"] <= DIRECTORIES + 30
    assert counts["scandir"] <= DIRECTORIES + 30


def test_places_are_given_without_asking_the_pack_each_time(repo: Repository, tree: Path, counted: Counted) -> None:
    counts = counted(OpenPack, "room")
    counted(Ledger, "spend")
    store(repo, tree)
    assert counts["room"] <= 8 * (DIRECTORIES + 40), "a few times a put, whatever it holds"
    assert counts["spend"] <= 3 * (DIRECTORIES + 40)


def test_collecting_asks_for_copies_of_many_records_at_once(repo: Repository, tree: Path, counted: Counted) -> None:
    first, _ = store(repo, tree / "d0")
    second, _ = store(repo, tree / "d1")
    repo.store.seal_open()
    repo.store.tend()
    repo.delete(second.slot)
    counts = counted(Index, "copied")
    counted(Index, "candidates")
    report = repo.gc(safety=Safety.NONE)
    assert report.plan.condemned or report.freed_bytes
    assert 0 < counts["copied"] <= 8, "once a pack"
    assert counts["candidates"] == 0, "no record lies in two places"
    assert names_in(repo, first.slot, tree) == ["d0"]


def test_restoring_reads_neighbours_in_one_call(
    repo: Repository, tree: Path, tmp_path: Path, calls: CountingCalls, counted: Counted
) -> None:
    created, _ = store(repo, tree)
    repo.reader.cache.clear()
    calls.counts.clear()
    counts = counted(os, "rename")
    counted(os, "fsync")
    counted(os, "open")
    counted(Index, "find")
    counted(Index, "candidates")
    told = Told()
    what = locate(repo, f"{created.slot.name}:{tree}")
    restore(repo, what, os.fsencode(tmp_path / "out"), None, notices=told, progress=told)
    assert told.done_files == DIRECTORIES * FILES
    assert counts["rename"] == DIRECTORIES, "each file has its name at once, in a directory that is renamed"
    assert counts["open"] <= ENTRIES + 30
    assert counts["fsync"] == 0 and counts["candidates"] <= 2, "no sync, no look-up for each file"
    assert calls.counts["pread"] <= 40 and counts["find"] <= 40


def test_a_large_file_goes_in_large_pieces(
    repo: Repository, files: Path, calls: CountingCalls, counted: Counted
) -> None:
    size_mib = 48
    (files / "large").write_bytes(random.Random(5).randbytes(size_mib * MIB))
    age(files)
    calls.counts.clear()
    counts = counted(ThreadPoolExecutor, "submit")
    counted(os, "preadv")
    counted(Codec, "compress")
    store(repo, files)
    assert counts["submit"] <= size_mib // 2 + 4, "a buffer holds 1 MiB, and what a chunk may be long"
    assert counts["preadv"] <= size_mib // 2 + 4
    assert counts["compress"] <= 40, "eight chunks are compressed in one call"
    assert calls.counts["pwritev"] <= 2 * size_mib + 40
