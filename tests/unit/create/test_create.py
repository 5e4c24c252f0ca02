"""`snapshot create` on real files: what is stored, what is read again, and what it goes on from."""

import os
import resource
import shutil
import socket
from pathlib import Path

import pytest

from repository.create import builder, ingest
from repository.create.command import absolute, source_of
from repository.create.source import SourceFile
from repository.errors import DamagedError, InterruptedByUserError, NameTakenError
from repository.format.catalog import SnapshotKind
from repository.format.inode import ExtentsRef, NodeKind
from repository.repo import Repository
from repository.units import KIB, MIB
from tests.support.repositories import SetClock
from tests.support.sources import age, content_of, listing_of, names_in, opened_files, store, stored_inode


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on opening a file is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(SourceFile, "__init__", refuse)


def test_paths_are_absolute_in_the_snapshot(repo: Repository, files: Path) -> None:
    (files / "a").write_bytes(b"one")
    created, told = store(repo, files)
    inode = stored_inode(repo, created.slot, files / "a")
    assert inode is not None and content_of(repo, inode) == b"one"
    assert created.slot.source == f"{socket.gethostname()}:{files}"
    assert created.slot.kind is SnapshotKind.IMPLICIT
    assert created.slot.totals == (1, 3)
    assert (told.problems, told.notes, told.done_files, told.done_bytes) == ([], [], 1, 3)
    # Of the directories that lead there only the named child is in the snapshot, with their own attributes.
    parent = stored_inode(repo, created.slot, files.parent)
    assert parent is not None and parent.mode == files.parent.stat().st_mode & 0o7777
    assert names_in(repo, created.slot, files.parent) == ["files"]


def test_a_name_makes_a_named_snapshot_and_is_taken_once(repo: Repository, files: Path) -> None:
    created, _ = store(repo, files, name="before")
    assert (created.slot.name, created.slot.kind) == ("before", SnapshotKind.NAMED)
    with pytest.raises(NameTakenError):
        store(repo, files, name="before")


def test_unchanged_files_cost_no_reading_and_no_record(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (files / f"f{number}").write_bytes(b"x" * number)
    os.link(files / "f1", files / "g1")
    (files / "s").symlink_to("f1")
    first, _ = store(repo, files)
    no_reading(monkeypatch)
    second, told = store(repo, files)
    assert listing_of(repo, second.slot, files.parent) == listing_of(repo, first.slot, files.parent)
    assert (second.parent, second.changed_files, second.stored_bytes) == (first.slot.name, 0, 0)
    assert second.counts.unchanged_files == 51  # a linked file is counted once
    assert told.problems == []


def test_only_what_changed_is_read_and_gets_another_identity(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "same").write_bytes(b"same")
    (files / "other").write_bytes(b"old")
    first, _ = store(repo, files)
    (files / "other").write_bytes(b"new")
    (files / "added").write_bytes(b"added")
    opened = opened_files(monkeypatch)
    second, _ = store(repo, files)
    assert sorted(opened) == [b"added", b"other"]
    before = {name: stored_inode(repo, first.slot, files / name) for name in ("same", "other")}
    after = {name: stored_inode(repo, second.slot, files / name) for name in ("same", "other")}
    assert before["same"] == after["same"]
    assert before["other"] is not None and after["other"] is not None
    assert before["other"].file_id != after["other"].file_id
    assert content_of(repo, after["other"]) == b"new"
    assert content_of(repo, before["other"]) == b"old"


def test_file_ids_are_never_used_again_even_after_a_deletion(repo: Repository, files: Path) -> None:
    (files / "a").write_bytes(b"1")
    first, _ = store(repo, files)
    one = stored_inode(repo, first.slot, files / "a")
    repo.delete(first.slot)
    second, _ = store(repo, files)
    other = stored_inode(repo, second.slot, files / "a")
    assert second.parent is None
    assert one is not None and other is not None and other.file_id > one.file_id


def test_a_file_written_within_two_seconds_is_read_again(
    repo: Repository, files: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "fresh").write_bytes(b"x")
    clock.ns = os.stat(files / "fresh").st_ctime_ns + 1_500_000_000
    store(repo, files)
    clock.ns += 10_000_000_000
    opened = opened_files(monkeypatch)
    second, told = store(repo, files)
    assert opened == [b"fresh"]
    assert (second.changed_files, second.counts.unchanged_files, told.done_files) == (0, 1, 1)
    assert second.stored_bytes == 0, "it is the same file still, with its identity"
    store(repo, files)
    assert opened == [b"fresh"], "the second reading was long enough after the writing"


def test_what_vanished_or_changed_its_type_does_so_in_the_snapshot(repo: Repository, files: Path) -> None:
    for name in ("gone", "becomes-directory", "becomes-link"):
        (files / name).write_bytes(name.encode())
    (files / "becomes-file").mkdir()
    (files / "becomes-file" / "in").write_bytes(b"x")
    (files / "gone-directory").mkdir()
    store(repo, files)
    (files / "gone").unlink()
    (files / "gone-directory").rmdir()
    (files / "becomes-directory").unlink()
    (files / "becomes-directory").mkdir()
    (files / "becomes-directory" / "new").write_bytes(b"new")
    (files / "becomes-link").unlink()
    (files / "becomes-link").symlink_to("anywhere")
    (files / "becomes-file" / "in").unlink()
    (files / "becomes-file").rmdir()
    (files / "becomes-file").write_bytes(b"file")
    created, told = store(repo, files)
    assert told.problems == []
    assert names_in(repo, created.slot, files) == ["becomes-directory", "becomes-file", "becomes-link"]
    inode = stored_inode(repo, created.slot, files / "becomes-directory" / "new")
    assert inode is not None and content_of(repo, inode) == b"new"
    link = stored_inode(repo, created.slot, files / "becomes-link")
    assert link is not None and (link.kind, link.target, link.size) == (NodeKind.SYMLINK, b"anywhere", 8)


def test_hard_links_come_and_go(repo: Repository, files: Path) -> None:
    (files / "a").write_bytes(b"data")
    os.link(files / "a", files / "b")
    first, _ = store(repo, files)
    a, b = stored_inode(repo, first.slot, files / "a"), stored_inode(repo, first.slot, files / "b")
    assert a is not None and a == b and a.nlink == 2
    assert first.slot.totals == (2, 4), "the bytes of a hard-linked file count once"
    (files / "b").unlink()
    second, _ = store(repo, files)
    manifest = repo.manifest(second.slot)
    assert manifest is not None and manifest.links is None
    alone = stored_inode(repo, second.slot, files / "a")
    assert alone is not None and alone.kind is NodeKind.FILE and content_of(repo, alone) == b"data"


def test_a_file_that_changes_once_while_it_is_read_is_tried_again(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "busy").write_bytes(b"first")
    read_all = SourceFile.read_all
    times: list[int] = []

    def read_and_change(self: SourceFile, size: int) -> bytes:
        data = read_all(self, size)
        if not times:
            (files / "busy").write_bytes(b"second!")
        times.append(1)
        return data

    monkeypatch.setattr(SourceFile, "read_all", read_and_change)
    created, told = store(repo, files)
    assert told.problems == [] and len(times) == 2
    inode = stored_inode(repo, created.slot, files / "busy")
    assert inode is not None and content_of(repo, inode) == b"second!"


@pytest.mark.parametrize("size", [5, 5 * MIB])
def test_a_file_that_keeps_changing_is_stored_and_reported(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (files / "busy").write_bytes(b"x" * size)
    unchanged = SourceFile.unchanged

    def change(self: SourceFile) -> bool:
        with open(files / "busy", "ab") as file:
            file.write(b"more")
        return unchanged(self)

    monkeypatch.setattr(SourceFile, "unchanged", change)
    created, told = store(repo, files)
    assert told.problems == [(os.fsencode(files / "busy"), ingest.CHANGED)]
    inode = stored_inode(repo, created.slot, files / "busy")
    assert inode is not None and inode.size >= size
    monkeypatch.undo()
    again, told = store(repo, files)
    inode = stored_inode(repo, again.slot, files / "busy")
    assert inode is not None and content_of(repo, inode) == (files / "busy").read_bytes()


def test_large_files_stream_and_are_cut_as_everywhere_else(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BUFFER_BYTES", 2 * MIB)
    data = os.urandom(9 * MIB + 12345)
    (files / "large").write_bytes(data)
    created, _ = store(repo, files)
    inode = stored_inode(repo, created.slot, files / "large")
    assert inode is not None and inode.size == inode.allocated_bytes == len(data)
    assert content_of(repo, inode) == data
    with repo.store.lease() as lease:
        refs, _ = repo.store.put_bytes(data, final=True, lease=lease)
    assert [extent.chunk for extent in repo.reader.extents(inode, 0, len(data))] == [ref.id for ref in refs]


@pytest.mark.slow
def test_long_extent_lists_go_into_records_of_their_own(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BUFFER_BYTES", 1 * MIB)
    monkeypatch.setattr(ingest, "EXTENTS_AT_ONCE", 70)
    data = os.urandom(40 * MIB)
    (files / "long").write_bytes(data)
    created, _ = store(repo, files)
    inode = stored_inode(repo, created.slot, files / "long")
    assert inode is not None and isinstance(inode.extents, ExtentsRef)
    assert content_of(repo, inode) == data


def test_holes_are_not_stored(repo: Repository, files: Path) -> None:
    with open(files / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(20 * MIB)
        file.write(b"middle")
        file.truncate(50 * MIB)
    with open(files / "hole", "wb") as file:
        file.truncate(3 * MIB)
    (files / "zeros").write_bytes(bytes(100 * KIB))
    created, _ = store(repo, files)
    for name in ("sparse", "hole", "zeros"):
        inode = stored_inode(repo, created.slot, files / name)
        assert inode is not None and content_of(repo, inode) == (files / name).read_bytes()
        assert inode.allocated_bytes <= (2 * MIB if name == "sparse" else 0)
    assert created.stored_bytes < 100 * KIB


def test_several_paths_share_their_ancestors(repo: Repository, files: Path) -> None:
    for name in ("a", "b", "c"):
        (files / name).mkdir()
        (files / name / "in").write_bytes(name.encode())
    created, _ = store(repo, files / "c", files / "a", files / "a" / "in")
    assert names_in(repo, created.slot, files) == ["a", "c"]
    assert created.slot.source == source_of([os.fsencode(files / name) for name in ("a", "a/in", "c")])
    # Given in another order they are the same source.
    again, _ = store(repo, files / "a" / "in", files / "a", files / "c")
    assert again.parent == created.slot.name


def test_symlinks_on_the_way_are_followed_and_at_the_end_stored(repo: Repository, files: Path) -> None:
    (files / "real").mkdir()
    (files / "real" / "in").write_bytes(b"x")
    (files / "way").symlink_to("real")
    created, _ = store(repo, files / "way" / "in")
    inode = stored_inode(repo, created.slot, files / "way" / "in")
    assert inode is not None and content_of(repo, inode) == b"x"
    created, _ = store(repo, files / "way")
    inode = stored_inode(repo, created.slot, files / "way")
    assert inode is not None and inode.kind is NodeKind.SYMLINK


def test_relative_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "way").symlink_to("real/sub")
    monkeypatch.chdir(tmp_path)
    base = os.fsencode(tmp_path)
    assert absolute(b"x/") == base + b"/x"
    assert absolute(b"./x//y/.") == base + b"/x/y"
    assert absolute(b"way/../x") == base + b"/real/x"
    assert absolute(b"..") == os.path.dirname(base)
    assert absolute(b"/") == b"/" == absolute(b"//")


def test_an_interrupted_one_publishes_nothing_and_the_next_goes_on(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "BATCH_FILES", 4)
    for number in range(40):
        (files / f"f{number:02}").write_bytes(os.urandom(2000))
    finish = builder.Builder._finish

    def interrupt(self: builder.Builder, frame: object) -> None:
        raise InterruptedByUserError("Interrupted.")

    monkeypatch.setattr(builder.Builder, "_finish", interrupt)
    with pytest.raises(InterruptedByUserError):
        store(repo, files)
    assert repo.listed() == []
    monkeypatch.setattr(builder.Builder, "_finish", finish)
    created, _ = store(repo, files)
    assert created.changed_files == 40
    assert created.stored_bytes < 40 * 2000, "chunks stored by the first attempt were found again"


def test_a_parent_that_cannot_be_read_is_done_without(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "a").write_bytes(b"x")
    first, _ = store(repo, files)
    scan = repo.reader.scan_segments

    def damaged(ref: object) -> object:
        raise DamagedError("record 17 is damaged")

    monkeypatch.setattr(repo.reader, "scan_segments", damaged)
    created, told = store(repo, files)
    monkeypatch.setattr(repo.reader, "scan_segments", scan)
    assert created.parent is None and created.changed_files == 1
    assert told.notes == [
        (
            f"The snapshot before this one ('{first.slot.name}') cannot be read (record 17 is damaged): "
            "every file is read again."
        )
    ]


@pytest.mark.slow
def test_dividing_a_directory_gives_the_same_records(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3000):
        (files / f"{number * 7919 % 3001:05}").touch()
    age(files)
    whole, _ = store(repo, files)
    repo.delete(whole.slot)
    monkeypatch.setattr(builder, "FLUSH_CHANGES", 100)
    divided, _ = store(repo, files)
    assert listing_of(repo, divided.slot, files).content == listing_of(repo, whole.slot, files).content


def test_an_empty_directory_and_empty_files(repo: Repository, files: Path) -> None:
    (files / "empty").touch()
    (files / "nothing").mkdir()
    created, _ = store(repo, files)
    inode = stored_inode(repo, created.slot, files / "empty")
    assert inode is not None and (inode.size, inode.extents) == (0, ())
    assert names_in(repo, created.slot, files / "nothing") == []


def test_a_deep_tree(repo: Repository, files: Path, tmp_path: Path) -> None:
    """Deeper than a path may be long, and than Python calls may be nested."""
    at = os.open(files, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("a-directory", dir_fd=at)
        below = os.open("a-directory", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    created, told = store(repo, files)
    assert told.problems == [] and created.counts.directories == 600 + len(files.parts)
    again, _ = store(repo, files)
    assert again.stored_bytes == 0
    shutil.rmtree(files)


def test_a_path_named_inside_another_leaves_nothing_out(repo: Repository, files: Path) -> None:
    """Only the named child of `b` was stored once, as if all of `a` had not been named."""
    (files / "a" / "b" / "d").mkdir(parents=True)
    for name in ("x", "b/c", "b/other", "b/d/deep"):
        (files / "a" / name).write_bytes(name.encode())
    (files / "a" / "link").symlink_to(files / "elsewhere")
    (files / "elsewhere").mkdir()
    for name in ("named", "not named"):
        (files / "elsewhere" / name).write_bytes(b"x")
    created, told = store(
        repo, files / "a", files / "a" / "b" / "c", files / "a" / "b" / "d" / "deep", files / "a" / "link" / "named"
    )
    assert told.problems == [] and created.counts.files == 5
    assert names_in(repo, created.slot, files / "a") == ["b", "link", "x"]
    assert names_in(repo, created.slot, files / "a" / "b") == ["c", "d", "other"]
    assert names_in(repo, created.slot, files / "a" / "link") == ["named"], "a symlink is followed where it was named"


def test_the_root_directory_can_be_named(repo: Repository, files: Path) -> None:
    """It was opened as one that merely leads somewhere, and could not be listed."""
    (files / "a").write_bytes(b"x")
    excludes = [b"/*"]
    for directory in (*reversed(files.parents), files):
        if directory != Path("/"):
            excludes += [b"!%s" % os.fsencode(directory), b"%s/*" % os.fsencode(directory)]
    excludes[-1] = b"!%s/a" % os.fsencode(files)
    for _ in range(2):
        created, told = store(repo, Path("/"), excludes=tuple(excludes))
        assert told.problems == [] and created.counts.files == 1
        assert names_in(repo, created.slot, files) == ["a"]
