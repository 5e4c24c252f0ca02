"""The independent reader's part for the journal: which flushes count, what they say, and the state after them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from xxhash import xxh3_64_intdigest

from tests.format.independent import JOURNAL, NO_ID, Packs, need
from tests.format.independent_files import DIRECTORY, FILE, LINK, Bytes, Extent, Inode, signed
from tests.format.independent_slots import Head
from tests.format.independent_trees import Trees

NODE, NAME, GONE, ANCHOR = 1, 2, 3, 4
HAS_CONTENT, HAS_ATTRS, HAS_LIST, HAS_EXTENTS, IN_LINKS_TABLE = 1, 2, 4, 8, 16
ROOT: Final = 1
"""The file id of the root of `live`."""


@dataclass(frozen=True)
class Flush:
    """A flush of which all parts are there."""

    sequence: int
    digest: int
    previous: int
    number: int
    body: bytes


def flushes(packs: Packs) -> list[Flush]:
    """All whole flushes in the packs, whether or not they count."""
    parts: dict[tuple[int, int, int, int], dict[int, tuple[int, bytes]]] = {}
    for number, record in packs.by_number.items():
        if record.kind != JOURNAL:
            continue
        data = Bytes(record.payload)
        need((data.number(2), data.number(2)) == (1, 0), "a journal part")
        part, count, zero = data.number(4), data.number(4), data.number(4)
        sequence, digest, previous = data.number(8), data.number(8), data.number(8)
        need(zero == 0 and part < count, "a journal part's place")
        parts.setdefault((sequence, digest, previous, count), {})[part] = number, record.payload[56:]
    found: list[Flush] = []
    for (sequence, digest, previous, count), pieces in parts.items():
        body = b"".join(pieces[part][1] for part in sorted(pieces))
        if len(pieces) == count and xxh3_64_intdigest(body, previous) == digest:
            number = max(number for number, _ in pieces.values())
            found.append(Flush(sequence, digest, previous, number, body))
    return found


def chain(packs: Packs, head: Head) -> list[Flush]:
    """The flushes behind the head, in order. Whether all that they name is there, replaying them shows."""
    everything = flushes(packs)
    found: list[Flush] = []
    sequence, digest = head.journal_sequence, head.journal_digest
    while True:
        fitting = [flush for flush in everything if (flush.sequence, flush.previous) == (sequence + 1, digest)]
        if not fitting:
            return found
        found.append(max(fitting, key=lambda flush: flush.number))
        need(found[-1].number >> 16 >= head.journal_floor, "no later flush lies below the floor")
        sequence, digest = found[-1].sequence, found[-1].digest


@dataclass
class State:
    """`live`: inodes by file id; names by directory. `counts`: how many changes of each tag were replayed."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: dict[int, dict[bytes, int]] = field(default_factory=dict)
    linked: set[int] = field(default_factory=set)
    counts: dict[int, int] = field(default_factory=dict)


def load(trees: Trees, root: Inode, links: dict[int, Inode]) -> State:
    """The state of the last commit, all of it."""
    state = State()
    state.inodes.update(links)
    state.linked.update(links)

    def enter(directory: Inode) -> None:
        state.inodes[directory.file_id] = directory
        names = state.names.setdefault(directory.file_id, {})
        for name, inode in trees.listing(directory.content, directory.attrs):
            names[name] = inode.file_id
            if inode.type == DIRECTORY:
                enter(inode)
            elif inode.type != LINK:
                state.inodes[inode.file_id] = inode

    enter(root)
    return state


def replay(trees: Trees, state: State, flush: Flush) -> None:
    """Carries out the changes of one flush."""
    data = Bytes(flush.body)
    while data.more:
        tag = data.number(1)
        state.counts[tag] = state.counts.get(tag, 0) + 1
        if tag == NODE:
            _node(trees, state, data)
        elif tag == NAME:
            directory, child, kind = data.number(8), data.number(8), data.number(1)
            name = data.take(data.number(1))
            if child:
                need(state.inodes[child].type == kind, "the type of a name's inode")
                state.names[directory][name] = child
            else:
                state.names[directory].pop(name, None)
        elif tag == GONE:
            gone = data.number(8)
            state.inodes.pop(gone, None)
            state.names.pop(gone, None)
            state.linked.discard(gone)
        else:
            need(tag == ANCHOR, "a change's tag")
            file_id, directory, linked = data.number(8), data.number(8), data.number(1)
            name = data.take(data.number(1))
            need(file_id == ROOT or linked == 1 or state.names[directory].get(name) == file_id, "where an anchor is")


def _node(trees: Trees, state: State, data: Bytes) -> None:
    kind, mode, version = data.number(1), data.number(2), data.number(4)
    uid, gid, nlink, flags = data.number(4), data.number(4), data.number(4), data.number(4)
    file_id, rdev, size = data.number(8), data.number(8), data.number(8)
    times = [signed(data.number(8)) for _ in range(3)]
    _allocated, _names_below, _bytes_below = data.number(8), data.number(8), data.number(8)
    xattr_count, target_length, deltas = data.number(2), data.number(2), data.number(4)
    content = data.take(32) if flags & HAS_CONTENT else NO_ID
    attrs = data.take(32) if flags & HAS_ATTRS else NO_ID
    before = state.inodes.get(file_id)
    extents = () if before is None else before.extents
    if flags & HAS_LIST:
        head, count = data.take(32), data.number(8)
        extents = trees.extent_list(head, count, None)
    elif flags & HAS_EXTENTS:
        extents = _extents(data, data.number(4))
    xattrs: list[tuple[bytes, bytes]] = []
    for _ in range(xattr_count):
        lengths = data.number(1), data.number(4)
        xattrs.append((data.take(lengths[0]), data.take(lengths[1])))
    target = data.take(target_length)
    for _ in range(deltas):
        start, end = data.number(8), data.number(8)
        extents = _replaced(extents, start, end, _extents(data, data.number(4)))
    need(kind != FILE or all(run.offset + run.length <= size for run in extents), "extents within the file")
    inode = Inode(
        kind, file_id, version, mode, uid, gid, rdev, size, nlink,
        times[0], times[1], times[2], tuple(xattrs), target, extents,
    )  # fmt: skip
    if kind == DIRECTORY and file_id not in state.names:
        listed = trees.listing(content, attrs)
        state.names[file_id] = {name: child.file_id for name, child in listed}
    state.inodes[file_id] = inode
    if flags & IN_LINKS_TABLE:
        state.linked.add(file_id)


def _extents(data: Bytes, count: int) -> tuple[Extent, ...]:
    found: list[Extent] = []
    for _ in range(count):
        offset, length = data.number(8), data.number(8)
        chunk = data.take(32)
        found.append(Extent(offset, length, chunk, data.number(4)))
    return tuple(found)


def _replaced(extents: Sequence[Extent], start: int, end: int, new: tuple[Extent, ...]) -> tuple[Extent, ...]:
    """`extents`, with those from `start` to `end` replaced by `new`."""
    kept: list[Extent] = []
    for run in extents:
        run_end = run.offset + run.length
        if run.offset < start:
            kept.append(run._replace(length=min(run_end, start) - run.offset))
        if run_end > end:
            skip = max(0, end - run.offset)
            kept.append(Extent(run.offset + skip, run.length - skip, run.chunk, run.start + skip))
    return tuple(sorted((*kept, *new)))
