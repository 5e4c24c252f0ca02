"""A change decodes and encodes nothing of what it leaves alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.format.inode import Entry, Inode, NodeKind
from repository.format.record import RecordKind
from repository.ids import FileId
from repository.trees import reader
from tests.support.inodes import directories, inodes
from tests.unit.trees.test_directories import Bench, numbered, small_file

LONG = ((b"user.long", b"x" * 60_000),)


def test_entries_beside_a_change_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    entries = numbered(3000)
    entries[700] = Entry(entries[700].name, replace(entries[700].inode, xattrs=LONG))
    ref, _ = bench.writer.write_directory(entries)
    assert bench.store.puts[RecordKind.XATTRS] == 1
    new = small_file(9_999, size=7)
    changed = [Entry(name, new if row in (3, 699, 2_000) else inode) for row, (name, inode) in enumerate(entries)]
    changes = {entries[row].name: new for row in (3, 699, 2_000)}

    def decoded(*_: object) -> None:
        raise AssertionError("an entry was decoded")

    with monkeypatch.context() as watched:
        watched.setattr(reader, "inode_at", decoded)
        rewritten = bench.writer.rewrite_directory(ref, changes)
    assert bench.store.puts[RecordKind.XATTRS] == 1, "its record stays what it is"
    assert rewritten == bench.writer.write_directory(changed)


@given(directories(most=40), st.data())
def test_rows_of_every_type_are_copied_whole(entries: list[Entry], data: st.DataObject) -> None:
    """Entries go and come between kept ones, so that these are copied in several runs."""
    bench = Bench()
    ref, _ = bench.writer.write_directory(entries)
    rows = data.draw(st.sets(st.integers(0, max(len(entries) - 1, 0)), max_size=4)) if entries else set()
    changes = {entries[row].name: data.draw(st.one_of(st.none(), inodes())) for row in rows}
    changes[b"a new one"] = Inode(NodeKind.SYMLINK, FileId(1), target=b"t" * 900)
    after = dict(entries) | changes
    merged = [Entry(name, inode) for name, inode in sorted(after.items()) if inode is not None]
    assert bench.writer.rewrite_directory(ref, changes) == bench.writer.write_directory(merged)
