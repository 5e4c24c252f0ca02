"""What differs between snapshots."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from repository.diff import ChangeKind, Comparison, Side
from repository.format.inode import DirRef
from repository.locate import locate
from repository.repo import Repository
from repository.trees.writer import TreeWriter
from tests.support.sources import age, store


def lines(repo: Repository, before: str, after: str) -> list[str]:
    one, other = locate(repo, before), locate(repo, after)
    comparison = Comparison(repo.reader, Side(one.inode, one.links), Side(other.inode, other.links))
    found: list[str] = []
    for change in comparison.changes():
        letter = {ChangeKind.ADDED: "A", ChangeKind.DELETED: "D", ChangeKind.MODIFIED: "M"}[change.kind]
        found.append(f"{letter if change.content or letter != 'M' else 'm'} {os.fsdecode(change.path)}")
    return found


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
