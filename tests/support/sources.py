"""Files to be stored, and what was stored or restored, in a form that can be compared."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from repository.create.command import Created, CreateRequest, create_snapshot
from repository.create.exclude import Excludes
from repository.create.source import SourceFile
from repository.format.catalog import Slot
from repository.format.inode import DirRef, Inode, NodeKind
from repository.ids import RecordId
from repository.repo import Repository

Described = tuple[object, ...]
OLD_NS = 1_600_000_000_000_000_000
"""A time long before any test's clock, so that no file counts as written a moment ago."""


@dataclass(slots=True)
class Told:
    """Notices, written down; and progress, summed."""

    problems: list[tuple[bytes, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done_bytes: int = 0
    done_files: int = 0

    def problem(self, path: bytes, why: str) -> None:
        self.problems.append((path, why))

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def start(self, title: str, total_bytes: int | None) -> None:
        pass

    def advance(self, done_bytes: int, done_files: int) -> None:
        self.done_bytes += done_bytes
        self.done_files += done_files

    def finish(self) -> None:
        pass


def describe(root: Path) -> dict[bytes, Described]:
    """Everything below `root` that a restore must bring back, by relative path. Hard links by their group."""
    found: dict[bytes, Described] = {}
    groups: dict[tuple[int, int], int] = {}
    linked: dict[tuple[int, int], bytes] = {}
    base = os.fsencode(root)

    def read(path: bytes) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def look(path: bytes) -> None:
        here = os.lstat(path)
        kind = stat.S_IFMT(here.st_mode)
        content: bytes = b""
        if kind == stat.S_IFREG:
            content = linked.get((here.st_dev, here.st_ino)) or read(path)
            if here.st_nlink > 1:
                linked[here.st_dev, here.st_ino] = content
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        xattrs = tuple(
            sorted(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in os.listxattr(path, follow_symlinks=False)
            )
        )
        group = (
            groups.setdefault((here.st_dev, here.st_ino), len(groups))
            if here.st_nlink > 1 and kind != stat.S_IFDIR
            else -1
        )
        device = here.st_rdev if kind in (stat.S_IFBLK, stat.S_IFCHR) else 0
        found[os.path.relpath(path, base)] = (
            here.st_mode, here.st_uid, here.st_gid, device, here.st_mtime_ns, content, xattrs, group
        )  # fmt: skip
        if kind == stat.S_IFDIR:
            for name in sorted(os.listdir(path)):
                look(path + b"/" + name)

    look(base)
    return found


def age(root: Path, time_ns: int = OLD_NS) -> None:
    """Give everything below `root` an old modification time (the change time stays the kernel's)."""
    for directory, _, names in os.walk(os.fsencode(root), topdown=False):
        for name in names:
            os.utime(os.path.join(directory, name), ns=(time_ns, time_ns), follow_symlinks=False)
        os.utime(directory, ns=(time_ns, time_ns))


def store(
    repo: Repository,
    *paths: Path,
    name: str | None = None,
    excludes: tuple[bytes, ...] = (),
    exclude_caches: bool = False,
    one_file_system: bool = False,
    mounts: frozenset[bytes] = frozenset(),
) -> tuple[Created, Told]:
    """`snapshot create` with its defaults; what it made, and what it told."""
    told = Told()
    request = CreateRequest(
        [os.fsencode(path) for path in paths], name, Excludes(excludes), exclude_caches, one_file_system, mounts
    )
    return create_snapshot(repo, request, told, told), told


def stored_inode(repo: Repository, slot: Slot, path: Path | str) -> Inode | None:
    """What a snapshot holds under an absolute path, hard links resolved; None for nothing."""
    manifest = repo.manifest(slot)
    assert manifest is not None
    inode: Inode = manifest.root
    for name in os.fsencode(str(path)).strip(b"/").split(b"/"):
        found = repo.reader.lookup(inode.directory, name)
        if found is None:
            return None
        inode = resolved(repo, manifest.links, found)
    return inode


def resolved(repo: Repository, links: RecordId | None, inode: Inode) -> Inode:
    if inode.kind is not NodeKind.LINK:
        return inode
    found = repo.reader.link(links, inode.file_id)
    assert found is not None
    return found


def names_in(repo: Repository, slot: Slot, path: Path | str) -> list[str]:
    """Names that a snapshot holds in a directory."""
    inode = stored_inode(repo, slot, path)
    assert inode is not None
    return [os.fsdecode(entry.name) for entry in repo.reader.scan(inode.directory)]


def listing_of(repo: Repository, slot: Slot, path: Path | str) -> DirRef:
    """The records of a directory in a snapshot."""
    inode = stored_inode(repo, slot, path)
    assert inode is not None
    return inode.directory


def content_of(repo: Repository, inode: Inode) -> bytes:
    """The bytes of a stored file."""
    data = bytearray(inode.size)
    for extent in repo.reader.extents(inode, 0, inode.size):
        payload = repo.store.read(extent.chunk).payload
        data[extent.offset : extent.offset + extent.length] = payload[
            extent.chunk_offset : extent.chunk_offset + extent.length
        ]
    return bytes(data)


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of the files that are opened from here on, to be stored."""
    opened: list[bytes] = []
    begin = SourceFile.__init__

    def note(self: SourceFile, directory: object, name: bytes) -> None:
        opened.append(name)
        begin(self, directory, name)  # type: ignore[arg-type]

    monkeypatch.setattr(SourceFile, "__init__", note)
    return opened
