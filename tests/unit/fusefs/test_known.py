"""Which inodes of `live` the kernel knows: counted, and bounded."""

from pathlib import Path

import pytest
import trio

from fusefs import known
from fusefs.inodes import live_number
from fusefs.known import KnownInodes
from repository.ids import ROOT_FILE_ID
from tests.support.sessions import served, write_file


async def test_the_tree_remembers_what_the_kernel_knows_or_somebody_has_open(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with served(tmp_path, nursery) as (session, _):
        node = await write_file(session, b"file", b"x")
        places, table = session.tree.places, KnownInodes(session.tree)
        for _ in range(3):
            table.told(ROOT_FILE_ID, b"file", node, linked=False)
        table.forget([(live_number(node.file_id), 2)])
        assert node.file_id in places
        table.opened(node.file_id)
        table.opened(node.file_id)
        table.forget([(live_number(node.file_id), 1)])
        assert node.file_id in places, "it is open"
        assert not table.closed(node.file_id)
        assert table.closed(node.file_id)
        table.drop_unused(node.file_id)
        assert node.file_id not in places


async def test_beyond_the_bound_the_oldest_names_go_and_age_anew(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "KNOWN_MAX", 3)
    monkeypatch.setattr(known, "EVICTED_AT_ONCE", 2)
    async with served(tmp_path, nursery) as (session, _):
        table = KnownInodes(session.tree)
        for name in (b"a", b"b", b"c"):
            table.told(ROOT_FILE_ID, name, await write_file(session, name, b""), linked=False)
        assert table.overdue() == []
        table.told(ROOT_FILE_ID, b"d", await write_file(session, b"d", b""), linked=False)
        assert [name for _, name in table.overdue()] == [b"a", b"b"]
        assert [name for _, name in table.overdue()] == [b"c", b"d"]
        assert [name for _, name in table.overdue()] == [b"a", b"b"]
        root = session.tree.resolve(ROOT_FILE_ID)
        table.told(ROOT_FILE_ID, b"directory", root, linked=False)
        assert b"directory" not in [name for _, name in (*table.overdue(), *table.overdue())]


async def test_a_name_of_a_linked_file_is_taken_away_too(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree remembers no place of those; and what was looked up once costs one entry of one table."""
    monkeypatch.setattr(known, "KNOWN_MAX", 0)
    async with served(tmp_path, nursery) as (session, _):
        table = KnownInodes(session.tree)
        node = await write_file(session, b"a", b"")
        number = live_number(node.file_id)
        table.told(ROOT_FILE_ID, b"a", node, linked=False)
        table.told(ROOT_FILE_ID, b"b", node, linked=True)
        assert table.overdue() == [(live_number(ROOT_FILE_ID), b"b")]
        table.forget([(number, 1)])
        assert [name for _, name in table.overdue()] == [b"b"]
        table.forget([(number, 1)])
        assert table.overdue() == [] and node.file_id not in session.tree.places
