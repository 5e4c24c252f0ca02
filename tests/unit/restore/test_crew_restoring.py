"""`restore` with a crew: the same files as without, whatever happens to the workers, the packs or the destination."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from repository import crew as crews
from repository.crew import Crew
from repository.errors import InterruptedByUserError, NoSpaceError
from repository.locate import Located, locate
from repository.repo import Repository
from repository.restore import command, hands, sending
from repository.restore import files as writing
from repository.restore import restore as walking
from repository.restore.command import restore
from repository.restore.sending import RestoreCounts
from repository.restore.target import TEMPORARY_PREFIX, WhenThere
from repository.units import KIB, MIB
from tests.support.repositories import SetClock, make, open_for_reading, open_for_writing
from tests.support.sources import Told, age, describe, resolved, store
from tests.unit.restore.test_restore import fill, still_open

SMALL = 300
WINDOW = 1 * MIB


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crew wherever this runs, small jobs, and large files that are small."""
    monkeypatch.setattr(crews, "cores", lambda: 2)
    monkeypatch.setattr(command, "cores", lambda: 2)
    monkeypatch.setattr(command, "CREW_FILES_MIN", 1)
    monkeypatch.setattr(sending, "JOB_FILES", 16)
    monkeypatch.setattr(writing, "WINDOW_BYTES", WINDOW)
    monkeypatch.setattr(walking, "WINDOW_BYTES", WINDOW)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Crew]]:
    """The crews that were hired; at the end all of their processes must be gone."""
    hired: list[Crew] = []

    def hire(wanted: int, work: crews.Work) -> Crew | None:
        found = crews.hire(wanted, work)
        assert found is not None
        hired.append(found)
        return found

    monkeypatch.setattr(command, "hire", hire)
    yield hired
    for one in hired:
        for pid in one.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, there is one processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crews, "cores", lambda: 1)
        patch.setattr(command, "hire", crews.hire)
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything, and many small files; large ones with holes and second names. Not to be changed."""
    files = tmp_path_factory.mktemp("tree")
    fill(files)
    for number in range(SMALL):
        directory = files / f"d{number % 9}" / f"e{number % 4}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number:03}").write_bytes(b"%d\n" % (number % 250) * (number * 17))
    for number in range(20):
        os.link(files / "d1" / "e1" / "f001", files / "d2" / f"linked{number}")
        os.link(files / "large", files / f"d{number % 5}" / f"a-large{number}")
    (files / "holes").write_bytes(os.urandom(300 * KIB))
    with open(files / "holes", "r+b") as file:
        file.seek(3 * MIB)
        file.write(os.urandom(2 * MIB + 1))
        file.truncate(9 * MIB)
    with open(files / "d3" / "hole", "wb") as file:
        file.truncate(20 * MIB)
    age(files)
    return files


def make_with(tree: Path, path: Path) -> str:
    """A repository at `path` with the tree in a snapshot; how to name it there."""
    clock = SetClock()
    make(path, clock)
    with open_for_writing(path, clock) as opened:
        created, told = store(opened, tree)
    assert told.problems == []
    return f"{created.slot.name}:{tree}"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> tuple[Path, str]:
    """The tree in a repository, made once: restoring only reads."""
    path = tmp_path_factory.mktemp("stored") / "repo"
    return path, make_with(tree, path)


@pytest.fixture
def what(stored: tuple[Path, str]) -> str:
    """The tree in its snapshot."""
    return stored[1]


@pytest.fixture
def repo(stored: tuple[Path, str]) -> Iterator[Repository]:
    with open_for_reading(stored[0], SetClock()) as opened:
        yield opened


@pytest.fixture
def own(tmp_path: Path, tree: Path) -> Iterator[tuple[Repository, str]]:
    """For a test that damages it: its own repository, and how the tree is named there."""
    what = make_with(tree, tmp_path / "repo")
    with open_for_reading(tmp_path / "repo", SetClock()) as opened:
        yield opened, what


def put_back(repo: Repository, what: str, out: Path, when: WhenThere | None = None) -> tuple[RestoreCounts, Told]:
    told = Told()
    counts = restore(repo, locate(repo, what), os.fsencode(out), when, notices=told, progress=told)
    assert left_over(out) == []
    return counts, told


def without_times(out: Path) -> dict[bytes, tuple[object, ...]]:
    """Directories that were there keep the time at which something was last put into them."""
    return {
        path: one[:4] + one[5:] if os.path.isdir(os.path.join(os.fsencode(out), path)) else one
        for path, one in describe(out).items()
    }


def left_over(out: Path) -> list[bytes]:
    """Temporary names, anywhere below."""
    found = [name for _, below, names in os.walk(os.fsencode(out)) for name in below + names]
    return [name for name in found if name.startswith(TEMPORARY_PREFIX)]


def test_a_crew_restores_the_same(repo: Repository, what: str, tree: Path, tmp_path: Path, crew: list[Crew]) -> None:
    counts, told = put_back(repo, what, tmp_path / "out")
    assert len(crew) == 1 and crew[0].workers == 2
    with alone():
        others, other = put_back(repo, what, tmp_path / "other")
    assert len(crew) == 1, "that was alone"
    assert describe(tmp_path / "out") == describe(tmp_path / "other") == describe(tree)
    assert told.problems == other.problems == []
    assert counts == others
    assert told.done_files == other.done_files and told.done_bytes == other.done_bytes
    assert os.stat(tmp_path / "out" / "holes").st_blocks * 512 < 4 * MIB
    assert os.stat(tmp_path / "out" / "d3" / "hole").st_blocks == 0
    assert still_open(tmp_path / "out") == []


@pytest.mark.parametrize(
    "when", [pytest.param(when, marks=() if when is WhenThere.OVERWRITE else pytest.mark.slow) for when in WhenThere]
)
def test_what_is_there_is_kept_or_replaced_as_without(
    repo: Repository, what: str, tmp_path: Path, crew: list[Crew], when: WhenThere
) -> None:
    found = []
    for name in ("out", "other"):
        out = tmp_path / name
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (out / "d4" / "e0" / "f004").mkdir(parents=True)
        (out / "d1").mkdir()
        (out / "d2").symlink_to(tmp_path / "elsewhere")
        (out / "d1" / "e1").mkdir()
        (out / "d1" / "e1" / "f001").write_bytes(b"mine")
        (out / "d1" / "e1" / "mine").write_bytes(b"mine")
        (out / "large").write_bytes(b"mine")
        age(out)
        if name == "out":
            counts, told = put_back(repo, what, out, when)
        else:
            with alone():
                counts, told = put_back(repo, what, out, when)
        again, told_again = put_back(repo, what, out, when)
        found.append((counts, sorted(told.problems), again, sorted(told_again.problems), without_times(out)))
    assert found[0] == found[1]
    assert len(crew) == 3
    assert os.listdir(tmp_path / "elsewhere") == []
    assert found[0][1], "something was in the way"


@pytest.mark.logs("restore.worker_lost")
@pytest.mark.parametrize("victims", [1, 2])
def test_what_a_killed_worker_had_is_done_again(
    repo: Repository, what: str, tree: Path, tmp_path: Path, crew: list[Crew], victims: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They die with a file half made, which is swept away."""
    parent, left = os.getpid(), [12]
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if os.getpid() != parent and (victims == 2 or os.getpid() == crew_pid()):
            left[0] -= 1
            if left[0] == 0:
                real(fd, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data, offset)

    first = tmp_path / "first"

    def crew_pid() -> int:
        """The first worker that asks is the victim."""
        with suppress(FileExistsError):
            os.symlink(str(os.getpid()), first)
        return int(os.readlink(first))

    monkeypatch.setattr("repository.restore.target.os.pwrite", pwrite)
    lost = []
    monkeypatch.setattr(hands._log, "warning", lambda event, extra: lost.append(event))
    counts, told = put_back(repo, what, tmp_path / "out")
    assert lost and set(lost) == {"restore.worker_lost"}
    assert told.problems == []
    assert describe(tmp_path / "out") == describe(tree)
    assert counts.files == sum(len(names) for _, _, names in os.walk(tree))


@pytest.mark.logs("record.damaged")
def test_a_damaged_pack_costs_the_same_files_and_the_same_words(
    own: tuple[Repository, str], tmp_path: Path, crew: list[Crew]
) -> None:
    repo, what = own
    for path in ("d5/e1/f005", "holes", "d1/e1/f001"):
        located: Located = locate(repo, f"{what}/{path}")
        inode = resolved(repo, located.links, located.inode)
        chunk = repo.reader.extents(inode, 0, inode.size)[0].chunk
        place = repo.store.locate([chunk])[0]
        assert place is not None
        pack = next((tmp_path / "repo" / "packs").rglob(f"*{place.number >> 16:08x}*"))
        with open(pack, "r+b") as file:
            file.seek(place.offset + place.stored_length - 1)
            last = file.read(1)[0]
            file.seek(place.offset + place.stored_length - 1)
            file.write(bytes([last ^ 0xFF]))
    _, told = put_back(repo, what, tmp_path / "out")
    with alone():
        _, other = put_back(repo, what, tmp_path / "other")
    assert sorted(told.problems) == sorted(other.problems)
    assert {b"d5/e1/f005", b"holes", b"d1/e1/f001"} <= {path for path, _ in told.problems}
    assert all("the checksum" in why for _, why in told.problems)
    assert describe(tmp_path / "out") == describe(tmp_path / "other")


@pytest.mark.parametrize("writes", [3, 150])
def test_a_full_destination_ends_it(
    repo: Repository, what: str, tmp_path: Path, crew: list[Crew], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [writes]
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr("repository.restore.target.os.pwrite", full)
    with pytest.raises(NoSpaceError, match=r"^The destination is full; what was restored so far is complete"):
        put_back(repo, what, tmp_path / "out")
    assert left_over(tmp_path / "out") == []
    assert still_open(tmp_path / "out") == []


@pytest.mark.parametrize("after", [0, 3, 10])
def test_an_interruption_leaves_whole_files_and_nobody_at_work(
    repo: Repository, what: str, tree: Path, tmp_path: Path, crew: list[Crew], after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    left = [after]

    def advance(self: Told, done_bytes: int, done_files: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedByUserError("Interrupted.")

    monkeypatch.setattr(Told, "advance", advance)
    with pytest.raises(InterruptedByUserError):
        put_back(repo, what, tmp_path / "out")
    assert left_over(tmp_path / "out") == []
    assert still_open(tmp_path / "out") == []
    for directory, _, names in os.walk(tmp_path / "out"):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                assert path.read_bytes() == (tree / path.relative_to(tmp_path / "out")).read_bytes()


def test_a_single_large_file_is_shared_out(repo: Repository, what: str, tree: Path, tmp_path: Path, crew: list[Crew],
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    asked = []
    real = Crew.ask

    def ask(self: Crew, request: list[bytes], descriptors: list[int]) -> memoryview:
        asked.append(len(descriptors))
        return real(self, request, descriptors)

    monkeypatch.setattr(Crew, "ask", ask)
    put_back(repo, f"{what}/holes", tmp_path / "out")
    assert (tmp_path / "out" / "holes").read_bytes() == (tree / "holes").read_bytes()
    assert os.stat(tmp_path / "out" / "holes").st_mtime_ns == (tree / "holes").stat().st_mtime_ns
    assert set(asked) == {1} and 3 <= len(asked) <= 5, "one for each stretch with bytes in it"


def test_few_files_hire_nobody(repo: Repository, what: str, tmp_path: Path, crew: list[Crew],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(command, "CREW_FILES_MIN", 10_000)
    put_back(repo, what, tmp_path / "out")
    assert crew == []


def test_the_parent_makes_no_small_file_and_asks_once_for_many(
    repo: Repository, what: str, tree: Path, tmp_path: Path, crew: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"rename": 0, "pwrite": 0, "ask": 0}
    rename, pwrite, ask = os.rename, os.pwrite, Crew.ask

    def renaming(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        counts["rename"] += 1
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def writing_at(fd: int, data: bytes, offset: int) -> int:
        counts["pwrite"] += 1
        return pwrite(fd, data, offset)

    def asking(self: Crew, request: list[bytes], descriptors: list[int]) -> memoryview:
        counts["ask"] += 1
        return ask(self, request, descriptors)

    monkeypatch.setattr("repository.restore.target.os.rename", renaming)
    monkeypatch.setattr("repository.restore.target.os.pwrite", writing_at)
    monkeypatch.setattr(Crew, "ask", asking)
    put_back(repo, what, tmp_path / "out")
    everything = list(tree.rglob("*"))
    large = sum(path.is_file() and path.stat().st_size > WINDOW for path in everything)
    others = sum(not path.is_dir() and (path.is_symlink() or not path.is_file()) for path in everything)
    links = sum(path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1 for path in everything)
    assert counts["pwrite"] == 0, "that was in the parent"
    assert counts["rename"] <= large + others + links + sum(path.is_dir() for path in everything)
    inodes = {path.stat().st_ino: path.stat() for path in everything if path.is_file() and not path.is_symlink()}
    stretches = sum(-(-one.st_blocks * 512 // WINDOW) + 2 for one in inodes.values() if one.st_size > WINDOW)
    assert counts["ask"] <= SMALL // 16 + stretches + len(inodes) // 16 + 4
