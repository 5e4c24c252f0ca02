"""What a crew that looks ahead saves, when there is none, and what changes behind its back."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from repository import crew as crews
from repository.create import ahead
from repository.create.ahead import Ahead
from repository.create.skim import PlainLook
from repository.create.source import Directory
from repository.crew import Asked, Crew
from repository.errors import InterruptedByUserError
from repository.format.inode import DirRef
from repository.format.record import Buffer
from repository.repo import Repository
from repository.trees.reader import TreeReader
from tests.support.looking_ahead import ALL_FILES, DIRECTORIES, FILES, MIDDLES, TOPS, one_in_each
from tests.support.sources import Told, content_of, names_in, store, stored_inode

pytestmark = pytest.mark.slow


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


def test_the_crew_goes_home_when_nothing_is_left_to_ask(
    repo: Repository, tree: Path, hired: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory counts while new directories behind those of the parent snapshot are stored."""
    store(repo, tree)
    (tree / "z").mkdir()
    (tree / "z" / "new").write_bytes(b"new")
    gone: list[bool] = []
    real = Directory.names

    def names(self: Directory) -> list[bytes]:
        if self.path.endswith(b"/z"):
            gone.extend(not Path(f"/proc/{pid}").exists() for pid in hired[0].pids())
        return real(self)

    monkeypatch.setattr(Directory, "names", names)
    created, _ = store(repo, tree)
    assert created.changed_files == 1
    assert gone == [True, True]


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


def test_an_old_look_is_not_believed(
    repo: Repository, tree: Path, hired: list[Crew], listed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "AGE_MAX_S", -1.0)
    store(repo, tree)
    listed.clear()
    created, _ = store(repo, tree)
    assert created.counts.unchanged_files == ALL_FILES
    assert len([name for name in listed if os.fsencode(tree) in name]) == DIRECTORIES + 1


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
