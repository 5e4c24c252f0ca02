"""`snapshot create` with a crew that looks ahead: the same snapshot as without, whatever changed; and less to do."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from repository import crew as crews
from repository.create import ahead, builder, estimate, looking
from repository.create.ahead import Ahead
from repository.create.skim import PlainLook
from repository.create.source import Directory, SourceError
from repository.crew import Asked, Crew
from repository.errors import DamagedError, InterruptedByUserError
from repository.format.inode import DirRef, Inode
from repository.format.record import Buffer
from repository.repo import Repository
from repository.trees.reader import TreeReader
from tests.support.repositories import SetClock, open_for_writing
from tests.support.sources import Told, age, content_of, listing_of, names_in, store, stored_inode

TOPS, MIDDLES, FILES = 3, 6, 5
DIRECTORIES = TOPS * (1 + MIDDLES)
ALL_FILES = TOPS * MIDDLES * FILES + TOPS
Result = tuple[object, ...]
Change = Callable[[Path], None]
Options = dict[str, object]


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, wherever this runs, for trees of any size, in many small requests."""
    monkeypatch.setattr(crews, "cores", lambda: 2)
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    monkeypatch.setattr(ahead, "FILES_MIN", 1)
    monkeypatch.setattr(ahead, "UNIT_FILES", 2 * FILES)
    monkeypatch.setattr(ahead, "REQUEST_FILES", FILES + 1)


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Crew]]:
    """The crews that looked ahead; at the end all of their processes must be gone."""
    found: list[Crew] = []
    real = crews.hire

    def hire(wanted: int, work: crews.Work) -> Crew | None:
        crew = real(wanted, work)
        if crew is not None:
            found.append(crew)
        return crew

    monkeypatch.setattr(ahead, "hire", hire)
    yield found
    for crew in found:
        for pid in crew.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The directories that this process listed."""
    found: list[bytes] = []
    real = Directory.names

    def names(self: Directory) -> list[bytes]:
        found.append(self.path)
        return real(self)

    monkeypatch.setattr(Directory, "names", names)
    return found


@pytest.fixture
def tree(files: Path) -> Path:
    """Directories of directories, with files of several sorts."""
    for top in range(TOPS):
        for middle in range(MIDDLES):
            directory = files / f"d{top}" / f"e{middle}"
            directory.mkdir(parents=True)
            for one in range(FILES):
                (directory / f"f{one}").write_bytes(b"%d.%d.%d\n" % (top, middle, one) * 30)
        (files / f"d{top}" / "file").write_bytes(b"%d" % top)
    (files / "d0" / "e0" / "f0").unlink()
    (files / "d0" / "e0" / "f0").symlink_to("f1")
    (files / "d0" / "e1" / "f0").unlink()
    os.mkfifo(files / "d0" / "e1" / "f0")
    os.setxattr(files / "d0" / "e2", "user.colour", b"blue")
    age(files)
    return files


def result(path: Path, clock: SetClock, tree: Path, options: Options) -> Result:
    """What a snapshot in the repository at `path` is, with everything that is told about it."""
    with open_for_writing(path, clock) as repo:
        created, told = store(repo, tree, **options)  # type: ignore[arg-type]
        manifest = repo.manifest(created.slot)
        assert manifest is not None
        inode = stored_inode(repo, created.slot, tree)
        listing = listing_of(repo, created.slot, tree)
        return (
            listing, inode, manifest.links, manifest.next_file_id, created.slot.totals, created.counts,
            created.changed_files, created.parent, told.problems, told.notes, told.done_files, told.done_bytes,
        )  # fmt: skip


def settle(tree: Path) -> None:
    """Have the times of reading behind all others, so that no later look moves them."""
    time.sleep(0.02)
    for directory, _, names in os.walk(tree):
        os.listdir(directory)
        for name in names:
            if os.path.islink(os.path.join(directory, name)):
                os.readlink(os.path.join(directory, name))


def both(
    path: Path, clock: SetClock, tree: Path, change: Change, options: Options, hired: list[Crew], listed: list[bytes]
) -> tuple[Result, int]:
    """The snapshot after `change`, which has to be the same in a copy of the repository where nobody looks ahead; and
    how many directories fewer were listed here."""
    with open_for_writing(path, clock) as repo:
        store(repo, tree)
    assert hired == [], "there is nothing to compare with"
    plain = path.parent / "plain"
    shutil.copytree(path, plain)
    change(tree)
    settle(tree)
    now_ns = clock.ns
    listed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "hire", lambda wanted, work: None)
        expected = result(plain, clock, tree, options)
    without = len(listed)
    clock.ns = now_ns
    listed.clear()
    found = result(path, clock, tree, options)
    assert len(hired) == 1
    assert found == expected
    return found, without - len(listed)


def nothing(tree: Path) -> None:
    pass


def contents(tree: Path) -> None:
    (tree / "d0" / "e3" / "f1").write_bytes(b"other")
    (tree / "d2" / "e5" / "f4").write_bytes(b"another")


def one_in_each(tree: Path) -> None:
    for top in range(TOPS):
        for middle in range(MIDDLES):
            (tree / f"d{top}" / f"e{middle}" / "f2").write_bytes(b"new")


def same_size_and_time(tree: Path) -> None:
    file = tree / "d1" / "e1" / "f1"
    there = file.stat()
    file.write_bytes(bytes(there.st_size))
    os.utime(file, ns=(there.st_atime_ns, there.st_mtime_ns))


def names(tree: Path) -> None:
    (tree / "d0" / "e3" / "a new one").write_bytes(b"new")
    (tree / "d0" / "e4" / "f3").unlink()
    (tree / "d0" / "e5" / "f0").rename(tree / "d0" / "e5" / "moved")
    (tree / "d1" / "e0").rename(tree / "d1" / "renamed")
    (tree / "d1" / "e1" / "fresh").mkdir()
    (tree / "d1" / "e1" / "fresh" / "file").write_bytes(b"deep")
    shutil.rmtree(tree / "d2" / "e3")
    for file in (tree / "d2" / "e4").iterdir():
        file.unlink()


def whole_directories(tree: Path) -> None:
    shutil.rmtree(tree / "d1")
    (tree / "d3").mkdir()
    (tree / "d3" / "file").write_bytes(b"3")


def attributes(tree: Path) -> None:
    os.chmod(tree / "d0" / "e2" / "f2", 0o600)
    os.chmod(tree / "d0" / "e4", 0o700)
    os.setxattr(tree / "d1" / "e2" / "f2", "user.colour", b"red")
    os.setxattr(tree / "d1" / "e3", "user.colour", b"green")
    os.removexattr(tree / "d0" / "e2", "user.colour")
    os.utime(tree / "d2" / "e0", ns=(7, 7))
    os.utime(tree / "d2" / "e1" / "f1", ns=(7, 7))


def types(tree: Path) -> None:
    shutil.rmtree(tree / "d0" / "e0")
    (tree / "d0" / "e0").symlink_to("e1")
    shutil.rmtree(tree / "d0" / "e2")
    (tree / "d0" / "e2").write_bytes(b"a file")
    (tree / "d1" / "e1" / "f1").unlink()
    (tree / "d1" / "e1" / "f1").mkdir()
    (tree / "d1" / "e1" / "f1" / "deep").write_bytes(b"x")
    (tree / "d0" / "e1" / "f0").unlink()
    (tree / "d0" / "e1" / "f0").symlink_to("elsewhere")


def hard_links(tree: Path) -> None:
    os.link(tree / "d0" / "e3" / "f1", tree / "d0" / "e3" / "g1")
    os.link(tree / "d0" / "e3" / "f2", tree / "d2" / "e3" / "g2")
    os.link(tree / "d0" / "e0" / "f0", tree / "d1" / "a link")


def tagged(tree: Path) -> None:
    for directory in ("d0/e3", "d1/e1"):
        (tree / directory / "CACHEDIR.TAG").write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55")


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
    hired.clear()  # and once more, against a snapshot that has left it out already
    again, fewer = both_again(path, clock, tree, options, hired, listed)
    assert again[6] == 0, "nothing is new"
    assert fewer >= 2


def both_again(
    path: Path, clock: SetClock, tree: Path, options: Options, hired: list[Crew], listed: list[bytes]
) -> tuple[Result, int]:
    """As `both`, without a change and in another copy."""
    plain = path.parent / "plain2"
    shutil.copytree(path, plain)
    now_ns = clock.ns
    listed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "hire", lambda wanted, work: None)
        expected = result(plain, clock, tree, options)
    without = len(listed)
    clock.ns = now_ns
    listed.clear()
    found = result(path, clock, tree, options)
    assert len(hired) == 1 and found == expected
    return found, without - len(listed)


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


def test_an_unchanged_tree_is_looked_at_by_workers(
    repo: Repository, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(repo, tree)
    listed.clear()
    read: list[object] = []
    real = TreeReader.load_below

    def load_below(self: TreeReader, ref: DirRef) -> None:
        read.append(ref)
        real(self, ref)

    monkeypatch.setattr(TreeReader, "load_below", load_below)
    created, told = store(repo, tree)
    assert created.changed_files == 0 and created.counts.unchanged_files == ALL_FILES == told.done_files
    below = [name for name in listed if os.fsencode(tree) in name]
    assert sorted(below) == [os.fsencode(tree), *(os.fsencode(tree / f"d{top}") for top in range(TOPS))]
    assert len(read) <= len(tree.parents), "listings are read by the workers, too"
    assert len(hired) == 1 and hired[0].workers == 2


def test_what_lies_behind_a_removed_directory_is_looked_at_by_workers(
    repo: Repository, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held all that was asked about at first, and what was asked is waited for in order."""
    monkeypatch.setattr(ahead, "ASKED_AHEAD", 1)
    store(repo, tree)
    shutil.rmtree(tree / "d0")
    listed.clear()
    created, _ = store(repo, tree)
    assert created.counts.unchanged_files == ALL_FILES // TOPS * (TOPS - 1)
    below = [name for name in listed if os.fsencode(tree) in name]
    assert sorted(below) == [os.fsencode(tree), os.fsencode(tree / "d1"), os.fsencode(tree / "d2")]


def test_of_a_directory_with_one_change_the_rest_is_not_looked_at(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(repo, tree)
    one_in_each(tree)
    looked: list[bytes] = []
    real = Directory.lstat

    def lstat(self: Directory, name: bytes) -> os.stat_result:
        looked.append(name)
        return real(self, name)

    monkeypatch.setattr(Directory, "lstat", lstat)
    created, _ = store(repo, tree)
    assert created.changed_files == TOPS * MIDDLES
    assert looked.count(b"f2") == TOPS * MIDDLES
    assert not {b"f0", b"f1", b"f3", b"f4"} & set(looked)


def test_it_is_given_up_where_most_differs(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "GIVE_UP_NAMES", 2 * FILES)
    store(repo, tree)
    for file in tree.rglob("f*"):
        if file.is_file():
            os.chmod(file, 0o640)
    asked: list[int] = []
    real = Crew.begin

    def begin(self: Crew, request: Sequence[Buffer], descriptors: Sequence[int] = ()) -> Asked:
        asked.append(1)
        return real(self, request, descriptors)

    monkeypatch.setattr(Crew, "begin", begin)
    created, _ = store(repo, tree)
    assert created.changed_files >= ALL_FILES - 2 and len(hired) == 1
    assert len(asked) <= 2 * ahead.ASKED_AHEAD + 4 < TOPS * MIDDLES


def test_a_small_tree_takes_no_crew(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "FILES_MIN", ALL_FILES + 1)
    store(repo, tree)
    store(repo, tree)
    assert hired == []


def test_with_one_processor_nobody_looks_ahead(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "cores", lambda: 1)
    store(repo, tree)
    created, _ = store(repo, tree)
    assert hired == [] and created.counts.unchanged_files == ALL_FILES


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


def test_an_old_look_is_not_believed(
    repo: Repository, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "AGE_MAX_S", -1.0)
    store(repo, tree)
    listed.clear()
    created, _ = store(repo, tree)
    assert created.counts.unchanged_files == ALL_FILES
    assert len([name for name in listed if os.fsencode(tree) in name]) == DIRECTORIES + 1


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

    def hire(wanted: int, work: crews.Work) -> Crew | None:
        reading.append(crews.hire(wanted, work))
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


Swap = Callable[[Path], None]


def _to_symlink(directory: Path) -> None:
    directory.rename(directory.with_name("x"))
    directory.symlink_to("x")


def _emptied(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def _to_other(directory: Path) -> None:
    directory.rename(directory.with_name("x"))
    directory.mkdir()
    (directory / "other").write_bytes(b"other")


@pytest.mark.parametrize(
    ("swap", "expected"),
    [(_to_symlink, None), (_emptied, []), (_to_other, ["other"]), (shutil.rmtree, None)],
    ids=["symlink", "emptied", "other", "gone"],
)
def test_what_changes_behind_the_look_is_looked_at_again(
    repo: Repository,
    tree: Path,
    hired: list[Crew],
    monkeypatch: pytest.MonkeyPatch,
    swap: Swap,
    expected: list[str] | None,
) -> None:
    store(repo, tree)
    victim = tree / "d1" / "e3"
    real = Ahead.take
    swapped: list[bytes] = []

    def take(self: Ahead, path: bytes) -> PlainLook | None:
        look = real(self, path)
        if path == os.fsencode(victim):
            assert look is not None and look[4], "it was unchanged when it was looked at"
            swapped.append(path)
            swap(victim)
        return look

    monkeypatch.setattr(Ahead, "take", take)
    created, told = store(repo, tree)
    assert swapped and told.problems == []
    if expected is None:
        assert stored_inode(repo, created.slot, victim) is None
    else:
        assert names_in(repo, created.slot, victim) == expected


def test_a_file_that_changes_behind_the_look_is_found_by_the_next_snapshot(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(repo, tree)
    file = tree / "d1" / "e3" / "f2"
    real = Ahead.take

    def take(self: Ahead, path: bytes) -> PlainLook | None:
        look = real(self, path)
        if path == os.fsencode(file.parent):
            file.write_bytes(b"later")
        return look

    with monkeypatch.context() as patch:
        patch.setattr(Ahead, "take", take)
        store(repo, tree)
    assert file.read_bytes() == b"later"
    third, _ = store(repo, tree)
    inode = stored_inode(repo, third.slot, file)
    assert inode is not None and content_of(repo, inode) == b"later" and third.changed_files == 1


def test_an_interrupted_scan_leaves_no_process(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(repo, tree)

    def interrupt(self: Told, done_bytes: int, done_files: int) -> None:
        raise InterruptedByUserError("Interrupted.")

    monkeypatch.setattr(Told, "advance", interrupt)
    with pytest.raises(InterruptedByUserError):
        store(repo, tree)
    assert len(hired) == 1
