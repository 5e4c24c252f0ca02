"""`snapshot create` on real files: what is left out or refused, and how that is told."""

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from repository.create.source import SourceError, SourceFile
from repository.errors import UsageError
from repository.repo import Repository
from tests.support.sources import names_in, store, stored_inode


def test_an_unreadable_file_is_left_out_and_told(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        (files / name).write_bytes(name.encode())
    os.link(files / "bad", files / "bad-too")
    store(repo, files)
    for name in ("bad", "good"):
        (files / name).write_bytes(name.encode() * 2)
    begin = SourceFile.__init__

    def fail(self: SourceFile, directory: object, name: bytes) -> None:
        if name.startswith(b"bad"):
            raise SourceError(OSError(errno.EIO, "Input/output error"))
        begin(self, directory, name)  # type: ignore[arg-type]

    monkeypatch.setattr(SourceFile, "__init__", fail)
    created, told = store(repo, files)
    assert told.problems == [(os.fsencode(files / "bad"), "Input/output error")]
    assert names_in(repo, created.slot, files) == ["good"]


def test_an_unreadable_directory_is_stored_empty_and_told(
    repo: Repository, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "closed").mkdir()
    (files / "closed" / "in").write_bytes(b"x")
    real = os.open

    def fail(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr("repository.create.source.os.open", fail)
    created, told = store(repo, files)
    assert told.problems == [(os.fsencode(files / "closed"), "Permission denied")]
    assert names_in(repo, created.slot, files / "closed") == []


def test_caches_are_left_out_but_their_tag(repo: Repository, files: Path) -> None:
    for name, tag in (("real", b"Signature: 8a477f597d28d172789f06886806bc55\n"), ("false", b"Signature: 0")):
        (files / name).mkdir()
        (files / name / "CACHEDIR.TAG").write_bytes(tag)
        (files / name / "data").write_bytes(b"x")
    created, _ = store(repo, files, exclude_caches=True)
    assert names_in(repo, created.slot, files / "real") == ["CACHEDIR.TAG"]
    assert names_in(repo, created.slot, files / "false") == ["CACHEDIR.TAG", "data"]


def test_excludes_leave_out_and_what_was_stored_before_goes(repo: Repository, files: Path) -> None:
    (files / "keep").write_bytes(b"x")
    (files / "drop.o").write_bytes(b"x")
    (files / "sub").mkdir()
    (files / "sub" / "x").write_bytes(b"x")
    store(repo, files)
    created, _ = store(repo, files, excludes=(b"*.o", b"sub/"))
    assert names_in(repo, created.slot, files) == ["keep"]


def test_a_path_that_was_named_is_never_left_out(repo: Repository, files: Path) -> None:
    (files / "a.o").write_bytes(b"x")
    created, _ = store(repo, files / "a.o", excludes=(b"*.o", b"files"))
    assert names_in(repo, created.slot, files) == ["a.o"]


def test_the_repository_and_mounts_are_left_out_and_it_says_so(repo: Repository, files: Path, tmp_path: Path) -> None:
    (files / "mnt").mkdir()
    created, told = store(repo, tmp_path, mounts=frozenset([os.fsencode(files / "mnt")]))
    assert names_in(repo, created.slot, tmp_path) == ["files"]
    assert names_in(repo, created.slot, files) == []
    assert sorted(told.notes) == [
        f"'{files / 'mnt'}' is a Ballast mount and is left out.",
        f"'{tmp_path / 'repo'}' is the repository itself and is left out.",
    ]


def test_a_missing_path_is_told_and_only_missing_paths_fail(repo: Repository, files: Path) -> None:
    created, told = store(repo, files, files / "missing")
    assert told.problems == [(os.fsencode(files / "missing"), "No such file or directory")]
    assert created.slot.source.endswith(f":{files}")
    with pytest.raises(UsageError, match="cannot be stored"):
        store(repo, files / "missing")
    assert len(repo.listed()) == 1


@pytest.mark.mount
def test_other_file_systems_are_empty_directories_unless_named(repo: Repository, files: Path) -> None:
    (files / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(files / "other")], check=True)
    try:
        (files / "other" / "in").write_bytes(b"x")
        os.chmod(files / "other", 0o711)
        created, _ = store(repo, files, one_file_system=True)
        inode = stored_inode(repo, created.slot, files / "other")
        assert inode is not None and inode.mode == 0o711 and names_in(repo, created.slot, files / "other") == []
        created, _ = store(repo, files, files / "other", one_file_system=True)
        assert names_in(repo, created.slot, files / "other") == ["in"]
        created, _ = store(repo, files)
        assert names_in(repo, created.slot, files / "other") == ["in"]
    finally:
        subprocess.run(["umount", str(files / "other")], check=True)


@pytest.mark.mount
def test_a_file_with_too_many_attributes_is_unreadable_and_a_directory_keeps_its_content(
    repo: Repository, xfs: Path
) -> None:
    files = xfs / "files"
    (files / "directory").mkdir(parents=True)
    for name in ("file", "other", "directory/in"):
        (files / name).write_bytes(b"x")
    for number in range(17):
        for name in ("file", "directory"):
            os.setxattr(files / name, f"user.{number}", bytes(65_536))
    for _ in range(2):
        created, told = store(repo, files)
        assert {path for path, why in told.problems if "extended attributes take more than 1 MiB" in why} == {
            os.fsencode(files / "file"),
            os.fsencode(files / "directory"),
        }
        assert names_in(repo, created.slot, files) == ["directory", "other"]
        assert names_in(repo, created.slot, files / "directory") == ["in"]


def test_a_named_path_that_is_left_out_makes_no_snapshot(repo: Repository, files: Path) -> None:
    """An empty snapshot would look like a success."""
    (files / "a").write_bytes(b"x")
    inside = repo.path / "packs"
    for paths in ([repo.path], [inside], [inside / "00"]):
        with pytest.raises(UsageError, match="it lies in the repository itself"):
            store(repo, *paths)
    with pytest.raises(UsageError, match="a Ballast mount"):
        store(repo, files, mounts=frozenset((os.fsencode(files.parent),)))
    assert repo.snapshots.present() == []
    created, told = store(repo, files, inside)
    assert told.problems == [(os.fsencode(inside), "it lies in the repository itself")]
    assert stored_inode(repo, created.slot, files / "a") is not None
    assert created.slot.source == f"{socket.gethostname()}:{files}"


def test_a_symlink_to_the_repository_is_stored_as_what_it_is(repo: Repository, files: Path) -> None:
    (files / "to-repo").symlink_to(repo.path)
    created, told = store(repo, files / "to-repo")
    inode = stored_inode(repo, created.slot, files / "to-repo")
    assert inode is not None and inode.target == os.fsencode(repo.path) and told.problems == []
    with pytest.raises(UsageError, match="it lies in the repository itself"):
        store(repo, files / "to-repo" / "packs")
