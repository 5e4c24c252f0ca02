"""A snapshot with and without a crew that looks ahead: both have to be the same."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from repository.create import ahead
from repository.crew import Crew
from tests.support.repositories import SetClock, open_for_writing
from tests.support.sources import listing_of, store, stored_inode

TOPS: Final = 3
MIDDLES: Final = 6
FILES: Final = 5
DIRECTORIES: Final = TOPS * (1 + MIDDLES)
ALL_FILES: Final = TOPS * MIDDLES * FILES + TOPS
Result = tuple[object, ...]
Change = Callable[[Path], None]
Options = dict[str, object]


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
    return compared(path, plain, clock, tree, options, hired, listed)


def both_again(
    path: Path, clock: SetClock, tree: Path, options: Options, hired: list[Crew], listed: list[bytes]
) -> tuple[Result, int]:
    """As `both`, without a change, against what that left."""
    hired.clear()
    plain = path.parent / "plain again"
    shutil.copytree(path, plain)
    return compared(path, plain, clock, tree, options, hired, listed)


def compared(
    path: Path, plain: Path, clock: SetClock, tree: Path, options: Options, hired: list[Crew], listed: list[bytes]
) -> tuple[Result, int]:
    """The snapshot in `path`, and how many directories fewer it listed than the same in `plain` without a crew."""
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


# --- changes ---


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
