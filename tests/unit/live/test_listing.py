"""Listing a live directory: what a batch told stays right while things change, and costs little while nothing does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from repository.format.inode import NodeKind
from repository.ids import ROOT_FILE_ID
from repository.live import attributes, names, writing
from repository.live.attributes import Wanted
from repository.live.listing import Listing, Seen
from repository.repo import Repository
from tests.support.counting import python_calls
from tests.support.sync_live import SyncLive, told_of

FILES: Final = 600
"""More than one segment."""
LISTED_CALLS: Final = 7.5
"""Calls of Python functions an entry, half of them for its attributes."""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[SyncLive]:
    """FILES committed files."""
    Repository.init(tmp_path / "repo", reserve_bytes=0)
    live = SyncLive(tmp_path / "repo")
    try:
        for number in range(FILES):
            make(live, file(number))
        live.commit()
        yield live
    finally:
        live.kill()


def file(number: int) -> bytes:
    return b"file-%04d" % number


def make(live: SyncLive, name: bytes) -> None:
    names.create(live.tree, ROOT_FILE_ID, name, names.Wish(NodeKind.FILE, 0o644, 0, 0))


def write(live: SyncLive, name: bytes, data: bytes) -> None:
    writing.write(live.tree, live.resolve((name,)), 0, data)


def unlink(live: SyncLive, name: bytes) -> None:
    live.resolve((name,))
    names.unlink(live.tree, ROOT_FILE_ID, name)


def rename(live: SyncLive, old: bytes, new: bytes) -> None:
    names.rename(live.tree, (ROOT_FILE_ID, old), (ROOT_FILE_ID, new), 0)


def link(live: SyncLive, old: bytes, new: bytes) -> None:
    names.link(live.tree, live.resolve((old,)), ROOT_FILE_ID, new)


def present(batch: list[Seen | None]) -> list[Seen]:
    return [seen for seen in batch if seen is not None]


def all_of(live: SyncLive) -> list[Seen]:
    listing = Listing(live.tree, ROOT_FILE_ID)
    found: list[Seen] = []
    while batch := listing.batch():
        found += present(batch)
    return found


def test_what_is_committed_is_told_without_looking_it_up(live: SyncLive) -> None:
    assert [seen.name for seen in all_of(live)] == [file(number) for number in range(FILES)]
    with python_calls() as calls:
        listing = Listing(live.tree, ROOT_FILE_ID)
        while batch := listing.batch():
            assert all(listing.holds() for _ in batch)
    assert calls.total() / FILES <= LISTED_CALLS, calls.most_common()
    assert not {"LiveTree.find", "TreeReader.lookup", "inode_at"} & set(calls), calls.most_common()


@pytest.mark.parametrize("commit_after", [False, True], ids=["in memory", "committed in between"])
def test_an_entry_that_changed_since_is_told_as_it_is(live: SyncLive, commit_after: bool) -> None:
    write(live, file(1), b"not committed when the listing begins")
    listing = Listing(live.tree, ROOT_FILE_ID)
    batch = {seen.name: seen for seen in present(listing.batch())}
    assert all(file(number) in batch for number in range(12))

    unlink(live, file(0))
    write(live, file(1), b"more")
    rename(live, file(2), b"other")
    rename(live, file(3), file(4))
    unlink(live, file(5))
    make(live, file(5))
    attributes.set_attributes(live.tree, live.resolve((file(6),)), Wanted(mode=0o400))
    link(live, file(7), b"second of 7")
    link(live, file(8), b"second of 8")
    unlink(live, file(8))
    write(live, file(9), b"and removed")
    unlink(live, file(9))
    if commit_after:
        live.commit()
    assert not listing.holds()
    for name, seen in batch.items():
        now = listing.current(seen)
        found = live.tree.find(ROOT_FILE_ID, name)
        if found is None:
            assert now is None, name
        else:
            assert now is not None, name
            assert (now.name, now.linked, told_of(now.view)) == (name, found[1], told_of(found[0]))
    gone = [name for name, seen in batch.items() if listing.current(seen) is None]
    assert gone == [file(number) for number in (0, 2, 3, 8, 9)]


def test_a_directory_that_is_gone_has_no_entries(live: SyncLive) -> None:
    names.create(live.tree, ROOT_FILE_ID, b"sub", names.Wish(NodeKind.DIRECTORY, 0o755, 0, 0))
    sub = live.resolve((b"sub",))
    names.create(live.tree, sub, b"inside", names.Wish(NodeKind.FILE, 0o644, 0, 0))
    live.commit()
    listing = Listing(live.tree, sub)
    (seen,) = present(listing.batch())
    live.resolve((b"sub", b"inside"))
    names.unlink(live.tree, sub, b"inside")
    names.rmdir(live.tree, ROOT_FILE_ID, b"sub")
    assert listing.current(seen) is None
    assert not Listing(live.tree, sub).batch()


def test_entries_keep_their_numbers_whatever_is_committed_or_goes_later(live: SyncLive) -> None:
    for number in range(5):
        make(live, b"new-%d" % number)
        make(live, b"file-0100-%d" % number)
    unlink(live, b"file-0100-2")
    unlink(live, file(200))
    first = Listing(live.tree, ROOT_FILE_ID)
    expected = numbered(first)
    live.commit()
    make(live, b"file-0100-9")
    unlink(live, b"file-0100-9")
    second = Listing(live.tree, ROOT_FILE_ID)
    unlink(live, b"file-0100-1")
    unlink(live, file(300))
    make(live, b"a name in front")
    gone = {b"file-0100-1", file(300)}
    assert numbered(second) == {number: name for number, name in expected.items() if name not in gone}
    live.commit()
    second.rewind()
    assert numbered(second) == {number: name for number, name in expected.items() if name not in gone}


def numbered(listing: Listing) -> dict[int, bytes]:
    """The names that are there, each with its number."""
    found: list[Seen | None] = []
    while batch := listing.batch():
        found += [seen and listing.current(seen) for seen in batch]
    return {number: seen.name for number, seen in enumerate(found) if seen is not None}
