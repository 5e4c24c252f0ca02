"""What differs between snapshots."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from repository.diff import ChangeKind, Comparison, Side
from repository.format.inode import DirRef, Entry, Inode, NodeKind
from repository.ids import FileId
from repository.locate import locate
from repository.repo import Repository
from repository.trees.writer import TreeWriter
from tests.support.sources import OLD_NS, age, store


def lines(repo: Repository, before: str, after: str) -> list[str]:
    one, other = locate(repo, before), locate(repo, after)
    comparison = Comparison(repo.reader, Side(one.inode, one.links), Side(other.inode, other.links))
    found: list[str] = []
    for change in comparison.changes():
        letter = {ChangeKind.ADDED: "A", ChangeKind.DELETED: "D", ChangeKind.MODIFIED: "M", ChangeKind.RENAMED: "R"}
        what = letter[change.kind]
        if change.kind is ChangeKind.MODIFIED and not change.content:
            what = "m"
        elif change.kind is ChangeKind.RENAMED and (change.content or change.attributes):
            what = "RM" if change.content else "Rm"
        source = "" if change.old_path is None else f"{os.fsdecode(change.old_path)} -> "
        found.append(f"{what} {source}{os.fsdecode(change.path)}")
    return found


def test_renames_are_named_once(repo: Repository, files: Path) -> None:
    """Files by their content and time, for `snapshot create` gives a renamed file a new id; directories with all in
    them."""
    for name in ("deep/old/one", "deep/old/sub/two", "deep/old/sub/three", "moved", "edited", "empty", "stays"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(b"" if name == "empty" else name.encode())
    (files / "link").symlink_to("stays")
    os.link(files / "moved", files / "moved-too")
    (files / "twin-1").write_bytes(b"twin")
    (files / "twin-2").write_bytes(b"twin")
    age(files)
    first, _ = store(repo, files)
    (files / "deep" / "old").rename(files / "new")
    (files / "new" / "sub" / "three").rename(files / "three")
    (files / "new" / "sub" / "two").write_bytes(b"changed")
    (files / "moved").rename(files / "deep" / "elsewhere")
    (files / "edited").rename(files / "edited-2")
    (files / "edited-2").write_bytes(b"otherwise")
    (files / "empty").rename(files / "empty-2")
    (files / "link").rename(files / "deep" / "link")
    (files / "deep" / "twin").mkdir()
    (files / "twin-1").rename(files / "deep" / "twin" / "twin-2")
    (files / "twin-2").rename(files / "deep" / "twin" / "twin-1")
    os.utime(files / "new", ns=(OLD_NS, OLD_NS))
    second, _ = store(repo, files)
    before, after = f"{first.slot.name}:{files}", f"{second.slot.name}:{files}"
    # `old` lost `three`, so that its content is not what it was: without an id that lasts it is not recognised.
    assert lines(repo, before, after) == [
        "R moved -> deep/elsewhere", "R link -> deep/link", "D deep/old", "D deep/old/sub", "D deep/old/sub/two",
        "A deep/twin", "R twin-1 -> deep/twin/twin-1", "R twin-2 -> deep/twin/twin-2", "D edited", "A edited-2",
        "D empty", "A empty-2", "A new", "R deep/old/one -> new/one", "A new/sub", "A new/sub/two",
        "R deep/old/sub/three -> three",
    ]  # fmt: skip


def test_a_renamed_directory_is_one_line_and_what_changed_in_it_follows(repo: Repository, files: Path) -> None:
    for name in ("old/sub/a", "old/sub/b", "old/c"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(name.encode())
    age(files)
    first, _ = store(repo, files)
    (files / "old").rename(files / "new")
    second, _ = store(repo, files)
    before, after = f"{first.slot.name}:{files}", f"{second.slot.name}:{files}"
    assert lines(repo, before, after) == ["R old -> new"]
    assert lines(repo, after, before) == ["R new -> old"]


def live_tree(repo: Repository, entries: dict[str, dict[str, tuple[int, bytes]]], ids: dict[str, int]) -> Side:
    """A tree of directories with files (file id, target), whose ids last as in `live`."""
    with repo.store.lease() as lease:
        writer = TreeWriter(repo.store, repo.reader, lease)
        top: list[Entry] = []
        for directory, names in sorted(entries.items()):
            inodes = [
                Entry(name.encode(), Inode(NodeKind.SYMLINK, FileId(number), target=target, mtime_ns=number))
                for name, (number, target) in sorted(names.items())
            ]
            ref, totals = writer.write_directory(inodes)
            inode = Inode(NodeKind.DIRECTORY, FileId(ids[directory]), directory=ref, totals=totals)
            top.append(Entry(directory.encode(), inode))
        ref, totals = writer.write_directory(top)
    return Side(Inode(NodeKind.DIRECTORY, FileId(1), directory=ref, totals=totals), None)


def test_ids_that_last_tell_renames_also_of_what_changed(repo: Repository) -> None:
    before = live_tree(
        repo,
        {"old": {"a": (11, b"1"), "b": (12, b"2"), "out": (13, b"3")}, "z": {"in": (14, b"4"), "x": (15, b"5")}},
        {"old": 2, "z": 3},
    )
    after = live_tree(
        repo,
        {"new": {"a": (11, b"1"), "b": (12, b"changed"), "in": (14, b"4")}, "z": {"moved": (13, b"other")}},
        {"new": 2, "z": 3},
    )
    changes = list(Comparison(repo.reader, before, after).changes())
    told = [(one.kind.value, one.old_path, one.path, one.content) for one in changes]
    assert told == [
        ("renamed", b"old", b"new", False),
        ("modified", None, b"new/b", True),
        ("renamed", b"z/in", b"new/in", False),
        ("renamed", b"old/out", b"z/moved", True),
        ("deleted", None, b"z/x", True),
    ]


def test_too_many_differences_name_no_renames(repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        (files / f"a{number}").write_bytes(b"%d" % number)
    first, _ = store(repo, files)
    for number in range(8):
        (files / f"a{number}").rename(files / f"b{number}")
    second, _ = store(repo, files)
    before, after = f"{first.slot.name}:{files}", f"{second.slot.name}:{files}"
    monkeypatch.setattr("repository.diff.BUFFERED_MAX", 3)
    assert lines(repo, before, after) == [f"R a{number} -> b{number}" for number in range(8)]
    monkeypatch.setattr("repository.diff.RENAMES_MAX", 7)
    expected = [*(f"D a{number}" for number in range(8)), *(f"A b{number}" for number in range(8))]
    assert lines(repo, before, after) == expected


def test_everything_that_can_differ(repo: Repository, files: Path) -> None:
    for name in ("same", "data", "mode", "gone", "type"):
        (files / name).write_bytes(name.encode())
    (files / "sub").mkdir()
    (files / "sub" / "gone-too").write_bytes(b"x")
    (files / "link").symlink_to("one")
    os.link(files / "same", files / "same-linked")
    age(files)
    first, _ = store(repo, files)
    (files / "data").write_bytes(b"DATA")
    os.chmod(files / "mode", 0o600)
    (files / "gone").unlink()
    (files / "sub" / "gone-too").unlink()
    (files / "sub").rmdir()
    (files / "type").unlink()
    (files / "type").mkdir()
    (files / "type" / "new").write_bytes(b"new")
    (files / "link").unlink()
    (files / "link").symlink_to("two")
    second, _ = store(repo, files)
    before, after = f"{first.slot.name}:{files}", f"{second.slot.name}:{files}"
    assert lines(repo, before, after) == [
        "M data", "D gone", "M link", "m mode", "D sub", "D sub/gone-too", "M type", "A type/new",
    ]  # fmt: skip
    assert lines(repo, after, before) == [
        "M data", "A gone", "M link", "m mode", "A sub", "A sub/gone-too", "M type", "D type/new",
    ]  # fmt: skip
    assert lines(repo, before, before) == []
    assert lines(repo, before + "/data", after + "/data") == ["M "]


def test_a_change_of_a_hard_linked_file_shows_at_all_its_names(repo: Repository, files: Path) -> None:
    (files / "a").write_bytes(b"1")
    os.link(files / "a", files / "b")
    first, _ = store(repo, files)
    (files / "a").write_bytes(b"2")
    second, _ = store(repo, files)
    assert lines(repo, f"{first.slot.name}:{files}", f"{second.slot.name}:{files}") == ["M a", "M b"]


def test_directories_with_the_same_records_are_not_read(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("same", "other"):
        (files / name).mkdir()
        (files / name / "in").write_bytes(b"1")
    first, _ = store(repo, files)
    (files / "other" / "in").write_bytes(b"2")
    second, _ = store(repo, files)
    scanned: list[DirRef] = []
    scan = repo.reader.scan

    def note(ref: DirRef, after: bytes | None = None) -> object:
        scanned.append(ref)
        return scan(ref, after)

    monkeypatch.setattr(repo.reader, "scan", note)
    assert lines(repo, f"{first.slot.name}:{files}", f"{second.slot.name}:{files}") == ["M other/in"]
    assert len(scanned) == 4, "the two directories on both sides"


def test_an_inode_in_the_links_table_may_change_under_the_same_id(repo: Repository, files: Path) -> None:
    """`live` keeps a file's id when it changes; the directory's records then stay the same."""
    (files / "a").write_bytes(b"1")
    os.link(files / "a", files / "b")
    first, _ = store(repo, files)
    located = locate(repo, first.slot.name)
    inode = next(iter(repo.reader.scan_links(located.links)))
    with repo.store.lease() as lease:
        changed = replace(inode, size=inode.size + 1)
        links = TreeWriter(repo.store, repo.reader, lease).rewrite_links(located.links, {inode.file_id: changed})
    comparison = Comparison(repo.reader, Side(located.inode, located.links), Side(located.inode, links))
    assert [os.path.basename(change.path) for change in comparison.changes()] == [b"a", b"b"]
