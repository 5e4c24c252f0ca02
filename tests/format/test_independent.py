"""repository/FORMAT.md is complete: a reader written from it alone finds in the golden repository what was put in."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.format import independent as reader
from tests.format.conftest import Members
from tests.format.golden import KINDS, Expected, Row, differences, digest, stored_intents, text_of, xattr_rows
from tests.format.independent import JOURNAL, NO_ID, Packs
from tests.format.independent_files import DIRECTORY, FILE, LINK, Inode
from tests.format.independent_index import read_segment
from tests.format.independent_journal import State, chain, flushes, load, replay
from tests.format.independent_slots import LIVE, Head, Snapshot, read_catalog, read_events, read_intent
from tests.format.independent_trees import Trees

CHANGES = {1: "NodeChange", 2: "NameChange", 3: "NodeGone", 4: "Anchor"}


@pytest.fixture(scope="module")
def packs(golden_path: Path) -> Packs:
    return Packs(golden_path)


@pytest.fixture(scope="module")
def catalog(golden_path: Path, packs: Packs) -> tuple[Head, list[Snapshot]]:
    return read_catalog(packs.config, golden_path)


def row(trees: Trees, path: bytes, inode: Inode) -> Row:
    return Row(
        text_of(path), KINDS[inode.type], inode.file_id, inode.version, inode.mode, inode.uid, inode.gid, inode.rdev,
        inode.size, inode.nlink, inode.atime_ns, inode.mtime_ns, inode.ctime_ns, xattr_rows(inode.xattrs),
        text_of(inode.target), digest(trees.content(inode)) if inode.type == FILE else "",
    )  # fmt: skip


def rows_of(trees: Trees, links: Mapping[int, Inode], path: bytes, entry: Inode) -> Iterator[Row]:
    inode = links[entry.file_id] if entry.type == LINK else entry
    yield row(trees, path, inode)
    if inode.type == DIRECTORY:
        for name, child in trees.listing(inode.content, inode.attrs):
            yield from rows_of(trees, links, path + b"/" + name, child)


def live_rows(trees: Trees, state: State, path: bytes, file_id: int) -> Iterator[Row]:
    inode = state.inodes[file_id]
    yield row(trees, path, inode)
    for name, child in sorted(state.names.get(file_id, {}).items()):
        yield from live_rows(trees, state, path + b"/" + name, child)


def test_every_record_of_every_pack(packs: Packs) -> None:
    """Packs are of all sorts: sealed and not, of each stream, punched and whole, with gaps in their indices."""
    assert {pack.sealed for pack in packs.packs.values()} == {True, False}
    assert {pack.punched for pack in packs.packs.values()} == {True, False}
    assert {pack.stream for pack in packs.packs.values()} == {1, 2, 3}
    kinds = Counter(record.kind for record in packs.by_number.values())
    assert set(kinds) == set(range(reader.CHUNK, reader.PACK_DIRECTORY)), kinds
    assert {record.flags for record in packs.by_number.values()} == {0, reader.ZSTD_FLAG}


def test_the_catalog(catalog: tuple[Head, list[Snapshot]], packs: Packs, expected: Expected) -> None:
    head, snapshots = catalog
    assert not head.clean
    assert packs.by_number[head.manifest_number].id == head.manifest
    told = [
        {
            "id": one.snapshot_id, "name": one.name, "source": one.source,
            "state": "live" if one.state == LIVE else "trash", "kind": one.kind, "pinned": one.pinned,
            "time_ns": one.time_ns, "deleted_ns": one.deleted_ns, "files": one.files,
            "content_bytes": one.content_bytes, "next_file_id": one.next_file_id,
        }
        for one in snapshots
    ]  # fmt: skip
    assert told == [{key: value for key, value in one.items() if key != "rows"} for one in expected["snapshots"]]


def test_every_snapshot_its_totals_and_its_bitmap(
    catalog: tuple[Head, list[Snapshot]], packs: Packs, expected: Expected
) -> None:
    depths: set[int] = set()
    for one, wanted in zip(catalog[1], expected["snapshots"], strict=True):
        trees = Trees(packs)
        assert packs.by_number[one.manifest_number].id == one.manifest
        manifest = trees.manifest(one.manifest)
        links = trees.links(manifest.links)
        found = list(rows_of(trees, links, b"", manifest.root))
        assert not differences(found, wanted["rows"]), one.name
        assert manifest.totals == (one.files, one.content_bytes)
        linked_bytes = sum(inode.size for inode in links.values() if inode.type == FILE)
        assert manifest.root.totals[1] + linked_bytes == one.content_bytes
        assert (manifest.time_ns, manifest.next_file_id) == (one.time_ns, one.next_file_id)
        assert one.bitmap != NO_ID
        assert packs.by_number[one.bitmap_number].id == one.bitmap
        numbers, exact, depth = Trees(packs).bitmap(one.bitmap, one.manifest)
        depths.add(depth)
        reached = {packs.by_number[number].id for number in numbers if number in packs.by_number}
        assert trees.seen <= reached
        assert exact == one.exact
        assert not exact or trees.seen == reached
    assert {0, 1} < depths


def test_the_journal_replayed(catalog: tuple[Head, list[Snapshot]], packs: Packs, expected: Expected) -> None:
    head, _ = catalog
    trees = Trees(packs)
    manifest = trees.manifest(head.manifest)
    state = load(trees, manifest.root, trees.links(manifest.links))
    pending = chain(packs, head)
    for flush in pending:
        replay(trees, state, flush)
    assert len(pending) == expected["flushes"]
    assert {CHANGES[tag]: count for tag, count in state.counts.items()} == expected["changes"]
    found = list(live_rows(trees, state, b"", manifest.root.file_id))
    assert not differences(found, expected["live"])
    parts = sum(record.kind == JOURNAL for record in packs.by_number.values())
    assert parts > len(flushes(packs)) > len(pending)  # one flush has several parts, some are of earlier mounts


def test_the_index_names_what_is_there(golden_path: Path, packs: Packs) -> None:
    segments = sorted(golden_path.glob("index/*.seg"))
    covered = [pack for path in segments for pack in read_segment(packs, path)]
    assert segments and set(covered) & set(packs.packs)


def test_events(golden_path: Path, packs: Packs, expected: Expected) -> None:
    assert [name for _, _, name in read_events(packs.config, golden_path)] == expected["events"] != []


def test_the_intent_at_rest_and_under_way(
    golden_path: Path, packs: Packs, members: Members, expected: Expected
) -> None:
    assert read_intent(packs.config, (golden_path / "intent").read_bytes()) == ([], [])
    rounds = [read_intent(packs.config, data) for data in stored_intents(members)]
    unlinked = [index for indices, _ in rounds for index in indices]
    punched = [one for _, ranges in rounds for one in ranges]
    assert sorted(unlinked) == expected["unlinked"] != []
    assert sorted(punched) == [tuple(one) for one in expected["punched"]] != []
    for index, offset, length in punched:
        data = (golden_path / f"packs/{index & 0xFF:02x}/{index:08x}.pack").read_bytes()
        assert not any(data[offset : offset + length])


def test_the_lock_and_the_reserve(golden_path: Path, packs: Packs) -> None:
    assert len((golden_path / "lock").read_bytes()) == 4096
    assert (golden_path / "ballast.reserve").stat().st_size == packs.config.reserve_bytes
