"""Journal flushes as bytes: what changed in `live` since the last commit, in the order it happened. Pure.

A flush is an ordered list of changes, cut into JOURNAL records of at most `PART_BODY_BYTES_MAX` payload each.
Every part repeats the flush's head, so that parts find each other without an index. `previous` chains a flush to
the one before: a flush that an earlier crash left behind can never be taken for the successor of a later one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from repository.errors import DamagedError
from repository.format.inode import EMPTY_DIR, DirRef, Extent, ExtentsRef, Inode, NodeKind, Totals
from repository.ids import FileId, RecordId
from repository.units import KIB, MIB

PART_BODY_BYTES_MAX: Final = 1 * MIB - 4 * KIB
"""Bytes of changes in one JOURNAL record: with all that is around it, it is no longer than the longest chunk, so that a
claim is enough for it."""
FORMAT_VERSION: Final = 1

_PART = struct.Struct("<HxxIIxxxxQQQQq")
_NODE = struct.Struct("<BBHIIIIIQQQqqqQQQHHI")
_REF = struct.Struct("<32sQ")
_EXTENT = struct.Struct("<QQ32sI")
_DELTA = struct.Struct("<QQI")
_XATTR = struct.Struct("<BI")
_NAME = struct.Struct("<QQBB")
_COUNT = struct.Struct("<I")
_GONE = struct.Struct("<Q")
_ANCHOR = struct.Struct("<QQBB")

PART_OVERHEAD_BYTES: Final = _PART.size
_TAG_NODE: Final = 1
_TAG_NAME: Final = 2
_TAG_GONE: Final = 3
_TAG_ANCHOR: Final = 4
_HAS_CONTENT: Final = 1
_HAS_ATTRS: Final = 2
_HAS_EXTENTS_REF: Final = 4
_HAS_EXTENTS: Final = 8
_LINKED: Final = 16


class ExtentDelta(NamedTuple):
    """Bytes `start` up to `end` of a file are now what `extents` say; where they say nothing: a hole."""

    start: int
    end: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A file appeared or changed: its whole inode, and for files which ranges got other bytes.

    `inode.extents` may stay empty: the extents are those of the base root (or of earlier changes), cut at
    `inode.size`, with `deltas` laid over them in order. When the base cannot be found by file id any more (the
    name moved), whatever stands in `inode.extents` (a tuple or an ExtentsRef) replaces the base; `replaces` says
    that it does (a new file: with no extents). `linked`: its names are LINK entries, the inode is in the links
    table. `inode.directory` names an unchanged listing of a directory that moved.
    """

    inode: Inode
    deltas: tuple[ExtentDelta, ...] = ()
    replaces: bool = False
    linked: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where the generation below this one knows `file_id`: under `name` in `parent`, or (`linked`) in the links table.

    Stands before the first change of a file in a generation, for all its ancestors too, so that a replay finds the
    file's committed state by following names. To be passed over where the replay has that file already.
    """

    file_id: FileId
    parent: FileId
    name: bytes
    linked: bool


@dataclass(frozen=True, slots=True)
class NameChange:
    """`name` in the directory `parent` is now `child` (file id and type), or is gone when None."""

    parent: FileId
    name: bytes
    child: tuple[FileId, NodeKind] | None


@dataclass(frozen=True, slots=True)
class NodeGone:
    """The last name and the last handle of a file are gone: forget it."""

    file_id: FileId


Change = Anchor | NodeChange | NameChange | NodeGone


class JournalMark(NamedTuple):
    """Up to where the journal is included: a flush's sequence and digest (the chain's link). (0, 0): nothing yet."""

    sequence: int
    digest: int


NO_MARK: Final = JournalMark(0, 0)


@dataclass(frozen=True, slots=True)
class Flush:
    """One atomic step of the journal.

    `sequence` counts up from 1 without gaps, `previous` is the digest of the flush before. `base_serial` is the
    commit serial of the head it is relative to; `time_ns` when it was written.
    """

    sequence: int
    previous: int
    base_serial: int
    time_ns: int
    changes: tuple[Change, ...]


class FlushPart(NamedTuple):
    """One JOURNAL record's payload, taken apart. `digest` is XXH3-64 of the whole body, seeded with `previous`."""

    sequence: int
    digest: int
    previous: int
    base_serial: int
    time_ns: int
    part: int
    parts: int
    body: bytes


# --- writing ---------------------------------------------------------------------------------------------------------


def _encode_extents(extents: Sequence[Extent]) -> bytes:
    pack = _EXTENT.pack
    return b"".join([pack(*extent) for extent in extents])


def _encode_node(change: NodeChange) -> list[bytes]:
    inode = change.inode
    directory = inode.directory
    flags = 0
    tail: list[bytes] = []
    if directory.content is not None:
        flags |= _HAS_CONTENT
        tail.append(directory.content)
    if directory.attrs is not None:
        flags |= _HAS_ATTRS
        tail.append(directory.attrs)
    if change.replaces:
        if isinstance(inode.extents, ExtentsRef):
            flags |= _HAS_EXTENTS_REF
            tail.append(_REF.pack(inode.extents.head, inode.extents.count))
        else:
            flags |= _HAS_EXTENTS
            tail += (_COUNT.pack(len(inode.extents)), _encode_extents(inode.extents))
    for name, value in inode.xattrs:
        tail += (_XATTR.pack(len(name), len(value)), name, value)
    tail.append(inode.target)
    for start, end, extents in change.deltas:
        tail += (_DELTA.pack(start, end, len(extents)), _encode_extents(extents))
    if change.linked:
        flags |= _LINKED
    head = _NODE.pack(
        _TAG_NODE,
        inode.kind,
        inode.mode,
        inode.version,
        inode.uid,
        inode.gid,
        inode.nlink,
        flags,
        inode.file_id,
        inode.rdev,
        inode.size,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.allocated_bytes,
        inode.totals.files,
        inode.totals.content_bytes,
        len(inode.xattrs),
        len(inode.target),
        len(change.deltas),
    )
    return [head, *tail]


def encode_changes(changes: Sequence[Change]) -> bytes:
    """The body of a flush. Also the exact figure for its claim: call it before claiming, or use `change_bytes_max`."""
    pieces: list[bytes] = []
    for change in changes:
        match change:
            case NodeChange():
                pieces += _encode_node(change)
            case NameChange(parent, name, child):
                file_id, kind = (0, 0) if child is None else child
                pieces += (bytes((_TAG_NAME,)), _NAME.pack(parent, file_id, kind, len(name)), name)
            case Anchor(file_id, parent, name, linked):
                pieces += (bytes((_TAG_ANCHOR,)), _ANCHOR.pack(file_id, parent, linked, len(name)), name)
            case NodeGone(file_id):
                pieces += (bytes((_TAG_GONE,)), _GONE.pack(file_id))
    return b"".join(pieces)


def change_bytes_max(change: Change) -> int:
    """Upper bound in bytes of what `change` takes in a flush's body; arithmetic only."""
    match change:
        case NodeChange(inode, deltas, replaces):
            extents = inode.extents if replaces and not isinstance(inode.extents, ExtentsRef) else ()
            count = len(extents) + sum(len(delta.extents) for delta in deltas)
            xattrs = sum(_XATTR.size + len(name) + len(value) for name, value in inode.xattrs)
            fixed = _NODE.size + 64 + _REF.size + _COUNT.size
            return fixed + count * _EXTENT.size + len(deltas) * _DELTA.size + xattrs + len(inode.target)
        case NameChange(_, name, _):
            return 1 + _NAME.size + len(name)
        case Anchor(_, _, name, _):
            return 1 + _ANCHOR.size + len(name)
        case NodeGone():
            return 1 + _GONE.size


def digest_of(body: bytes, previous: int) -> int:
    """The digest of a flush: XXH3-64 of its body, seeded with the digest of the flush before."""
    return xxhash.xxh3_64_intdigest(body, seed=previous)


def encode_flush(flush: Flush, body: bytes | None = None) -> tuple[list[bytes], JournalMark]:
    """The payloads of the JOURNAL records of one flush, in order, and the mark that stands for having it.

    `body` saves encoding the changes again where the caller has done it.
    """
    if body is None:
        body = encode_changes(flush.changes)
    digest = digest_of(body, flush.previous)
    parts = max(1, -(-len(body) // PART_BODY_BYTES_MAX))
    payloads = [
        _PART.pack(
            FORMAT_VERSION, part, parts, flush.sequence, digest, flush.previous, flush.base_serial, flush.time_ns
        )
        + body[part * PART_BODY_BYTES_MAX : (part + 1) * PART_BODY_BYTES_MAX]
        for part in range(parts)
    ]
    return payloads, JournalMark(flush.sequence, digest)


# --- reading ---------------------------------------------------------------------------------------------------------


def decode_part(payload: bytes) -> FlushPart:
    """One JOURNAL record's payload. Raises DamagedError when it is not one, or of a later version."""
    if len(payload) < _PART.size:
        raise DamagedError(f"A journal record has {len(payload)} bytes, fewer than its head.")
    version, part, parts, sequence, digest, previous, base_serial, time_ns = _PART.unpack_from(payload)
    if version != FORMAT_VERSION or part >= parts:
        raise DamagedError(f"A journal record has version {version} and part {part} of {parts}.")
    return FlushPart(sequence, digest, previous, base_serial, time_ns, part, parts, payload[_PART.size :])


def join_parts(parts: Sequence[FlushPart]) -> Flush | None:
    """The flush that `parts` (all of one sequence and digest, in any order) make up; None when one is missing or
    the bodies do not fit together.

    Raises DamagedError when they fit together and still mean nothing.
    """
    by_part = {part.part: part for part in parts}
    if not parts or len(by_part) != parts[0].parts:
        return None
    head = parts[0]
    body = b"".join(by_part[index].body for index in range(head.parts))
    if digest_of(body, head.previous) != head.digest:
        return None
    return Flush(head.sequence, head.previous, head.base_serial, head.time_ns, tuple(decode_changes(body)))


class _Reader:
    """A position in a flush's body."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.position = 0

    def take(self, length: int) -> bytes:
        start = self.position
        self.position = start + length
        if self.position > len(self.body):
            raise DamagedError(f"A journal flush ends in the middle of a change, at byte {start}.")
        return self.body[start : self.position]

    def extents(self, count: int) -> tuple[Extent, ...]:
        rows = _EXTENT.iter_unpack(self.take(count * _EXTENT.size))
        return tuple([Extent(offset, length, RecordId(chunk), start) for offset, length, chunk, start in rows])


def _decode_node(reader: _Reader) -> NodeChange:
    fields = _NODE.unpack(reader.take(_NODE.size))
    _, kind, mode, version, uid, gid, nlink, flags, file_id, rdev, size, atime, mtime, ctime = fields[:14]
    allocated, files, content_bytes, xattr_count, target_length, delta_count = fields[14:]
    content = RecordId(reader.take(32)) if flags & _HAS_CONTENT else None
    attrs = RecordId(reader.take(32)) if flags & _HAS_ATTRS else None
    extents: tuple[Extent, ...] | ExtentsRef = ()
    if flags & _HAS_EXTENTS_REF:
        head, count = _REF.unpack(reader.take(_REF.size))
        extents = ExtentsRef(RecordId(head), count)
    elif flags & _HAS_EXTENTS:
        (count,) = _COUNT.unpack(reader.take(_COUNT.size))
        extents = reader.extents(count)
    xattrs: list[tuple[bytes, bytes]] = []
    for _ in range(xattr_count):
        name_length, value_length = _XATTR.unpack(reader.take(_XATTR.size))
        xattrs.append((reader.take(name_length), reader.take(value_length)))
    target = reader.take(target_length)
    deltas: list[ExtentDelta] = []
    for _ in range(delta_count):
        start, end, count = _DELTA.unpack(reader.take(_DELTA.size))
        deltas.append(ExtentDelta(start, end, reader.extents(count)))
    inode = Inode(
        kind=NodeKind(kind),
        file_id=FileId(file_id),
        version=version,
        mode=mode,
        uid=uid,
        gid=gid,
        rdev=rdev,
        size=size,
        nlink=nlink,
        atime_ns=atime,
        mtime_ns=mtime,
        ctime_ns=ctime,
        xattrs=tuple(xattrs),
        target=target,
        extents=extents,
        allocated_bytes=allocated,
        directory=EMPTY_DIR if content is None and attrs is None else DirRef(content, attrs),
        totals=Totals(files, content_bytes),
    )
    return NodeChange(inode, tuple(deltas), bool(flags & (_HAS_EXTENTS_REF | _HAS_EXTENTS)), bool(flags & _LINKED))


def _decode_name(reader: _Reader) -> NameChange:
    reader.take(1)
    parent, file_id, kind, length = _NAME.unpack(reader.take(_NAME.size))
    name = reader.take(length)
    return NameChange(FileId(parent), name, (FileId(file_id), NodeKind(kind)) if kind else None)


def _decode_anchor(reader: _Reader) -> Anchor:
    reader.take(1)
    file_id, parent, linked, length = _ANCHOR.unpack(reader.take(_ANCHOR.size))
    return Anchor(FileId(file_id), FileId(parent), reader.take(length), bool(linked))


def decode_changes(body: bytes) -> Iterator[Change]:
    """The changes of a flush's body, in order. Raises DamagedError on anything that was not encoded here."""
    reader = _Reader(body)
    try:
        while reader.position < len(body):
            match body[reader.position]:
                case 1:
                    yield _decode_node(reader)
                case 2:
                    yield _decode_name(reader)
                case 3:
                    reader.take(1)
                    yield NodeGone(FileId(_GONE.unpack(reader.take(_GONE.size))[0]))
                case 4:
                    yield _decode_anchor(reader)
                case tag:
                    raise DamagedError(f"A journal flush has an unknown change {tag} at byte {reader.position}.")
    except ValueError as error:
        raise DamagedError(f"A journal flush has an impossible value near byte {reader.position}.") from error


def referenced_chunks(flush: Flush) -> Iterator[RecordId]:
    """Ids of all chunks that the extents of `flush` name (with repetitions)."""
    for change in flush.changes:
        if isinstance(change, NodeChange):
            if not isinstance(change.inode.extents, ExtentsRef):
                for extent in change.inode.extents:
                    yield extent.chunk
            for delta in change.deltas:
                for extent in delta.extents:
                    yield extent.chunk


def referenced_trees(flush: Flush) -> Iterator[RecordId]:
    """Ids of the tree and extent-list records that inodes of `flush` carry (unchanged listings that moved)."""
    for change in flush.changes:
        if isinstance(change, NodeChange):
            if isinstance(change.inode.extents, ExtentsRef):
                yield change.inode.extents.head
            for reference in (change.inode.directory.content, change.inode.directory.attrs):
                if reference is not None:
                    yield reference
