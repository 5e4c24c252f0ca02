"""Journal flushes as bytes."""

from contextlib import suppress
from dataclasses import replace
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from repository.errors import DamagedError
from repository.format.inode import EMPTY_DIR, DirRef, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.format.journal import (
    PART_BODY_BYTES_MAX,
    Anchor,
    Change,
    ExtentDelta,
    Flush,
    NameChange,
    NodeChange,
    NodeGone,
    change_bytes_max,
    decode_changes,
    decode_part,
    encode_changes,
    encode_flush,
    join_parts,
    referenced_chunks,
    referenced_trees,
)
from repository.ids import FileId, RecordId

ids = st.binary(min_size=32, max_size=32).map(RecordId)
file_ids = st.integers(1, 2**40 - 1).map(FileId)
u32 = st.integers(0, 2**32 - 1)
u63 = st.integers(0, 2**63 - 1)
times = st.integers(-(2**63), 2**63 - 1)
extents = st.builds(Extent, u63, u63, ids, u32)
directories = st.one_of(st.just(EMPTY_DIR), st.builds(DirRef, ids, ids))
inodes = st.builds(
    Inode,
    kind=st.sampled_from(NodeKind),
    file_id=file_ids,
    version=u32,
    mode=st.integers(0, 0o7777),
    uid=u32,
    gid=u32,
    rdev=u32,
    size=u63,
    nlink=u32,
    atime_ns=times,
    mtime_ns=times,
    ctime_ns=times,
    xattrs=st.lists(st.tuples(st.binary(max_size=255), st.binary(max_size=300)), max_size=3).map(tuple),
    target=st.binary(max_size=300),
    allocated_bytes=u63,
    directory=directories,
    totals=st.builds(Totals, u63, u63),
)
deltas = st.lists(st.builds(ExtentDelta, u63, u63, st.lists(extents, max_size=3).map(tuple)), max_size=3).map(tuple)
names = st.binary(min_size=1, max_size=255)


@st.composite
def node_changes(draw: st.DrawFn) -> NodeChange:
    inode = draw(inodes)
    replaces = draw(st.booleans())
    if replaces:
        found = draw(st.one_of(st.lists(extents, max_size=3).map(tuple), st.builds(ExtentsRef, ids, u32)))
        inode = replace(inode, extents=found)
    return NodeChange(inode, draw(deltas), replaces, draw(st.booleans()))


changes = st.one_of(
    node_changes(),
    st.builds(NameChange, file_ids, names, st.one_of(st.none(), st.tuples(file_ids, st.sampled_from(NodeKind)))),
    st.builds(NodeGone, file_ids),
    st.builds(Anchor, file_ids, file_ids, names, st.booleans()),
)
SEQUENCE: Final = 41


def flush(found: tuple[Change, ...], sequence: int = SEQUENCE, previous: int = 77) -> Flush:
    return Flush(sequence, previous, 5, 1_800_000_000, found)


@given(st.lists(changes, max_size=8).map(tuple))
def test_changes_come_back_in_order(found: tuple[Change, ...]) -> None:
    body = encode_changes(found)
    assert tuple(decode_changes(body)) == found
    assert len(body) <= sum(change_bytes_max(change) for change in found)
    payloads, mark = encode_flush(flush(found))
    assert mark.sequence == SEQUENCE
    assert join_parts([decode_part(payload) for payload in payloads]) == flush(found)


def test_a_long_flush_is_cut_and_joined_in_any_order() -> None:
    found = tuple(NameChange(FileId(1), b"%0250d" % number, None) for number in range(20_000))
    payloads, mark = encode_flush(flush(found))
    assert len(payloads) == 6
    assert max(map(len, payloads)) <= PART_BODY_BYTES_MAX + 64
    parts = [decode_part(payload) for payload in payloads]
    assert {part.digest for part in parts} == {mark.digest}
    assert join_parts(parts[::-1]) == flush(found)
    assert join_parts(parts[:-1]) is None
    assert join_parts([*parts[:-1], parts[0]]) is None


def test_a_flush_is_bound_to_the_one_before() -> None:
    found: tuple[Change, ...] = (NodeGone(FileId(3)),)
    first, first_mark = encode_flush(flush(found, previous=1))
    _, second_mark = encode_flush(flush(found, previous=2))
    assert first_mark != second_mark
    part = decode_part(first[0])
    assert join_parts([part._replace(previous=2)]) is None


@given(st.binary(max_size=200))
def test_foreign_bytes_are_damage_and_nothing_else(payload: bytes) -> None:
    with suppress(DamagedError):
        decode_part(payload)
    with suppress(DamagedError):
        list(decode_changes(payload))


@given(st.lists(changes, min_size=1, max_size=4).map(tuple), st.integers(0, 10_000))
def test_a_cut_body_is_damage(found: tuple[Change, ...], at: int) -> None:
    body = encode_changes(found)
    cut = body[: at % len(body)]
    try:
        decoded = tuple(decode_changes(cut))
    except DamagedError:
        return
    assert decoded == found[: len(decoded)], "what still decodes is a prefix"


def test_what_a_flush_needs() -> None:
    chunk, other, content, attrs, head = (RecordId(bytes([number]) * 32) for number in range(1, 6))
    inode = Inode(NodeKind.FILE, FileId(2), extents=(Extent(0, 1, chunk, 0),))
    moved = Inode(NodeKind.DIRECTORY, FileId(3), directory=DirRef(content, attrs))
    long = Inode(NodeKind.FILE, FileId(4), extents=ExtentsRef(head, 900))
    found = flush(
        (
            NodeChange(inode, (ExtentDelta(0, 9, (Extent(0, 9, other, 0),)),), True),
            NodeChange(moved),
            NodeChange(long, (), True),
        )
    )
    assert set(referenced_chunks(found)) == {chunk, other}
    assert set(referenced_trees(found)) == {content, attrs, head}
