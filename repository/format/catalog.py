"""Slots of the catalog as bytes. Pure.

The catalog is a flat file of slots, each in two copies of `COPY_BYTES` on different pages. A copy stands by
itself: magic, sequence, slot index and an XXH3-64 over all of it, seeded with the repository's seed, so that a copy
from elsewhere is never taken for this one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import xxhash

from repository.errors import DamagedError, UsageError
from repository.format.inode import Totals
from repository.format.journal import NO_MARK, JournalMark
from repository.ids import NO_ID, ROOT_FILE_ID, FileId, PackIndex, RecordId, RecordNumber, SnapshotId

COPY_BYTES: Final = 1024
"""Two sectors of 512: room for a name of 255 bytes and a source of 480 beside the fixed columns."""
PAGE_BYTES: Final = 4096
SLOTS_PER_GROUP: Final = PAGE_BYTES // COPY_BYTES
GROUP_BYTES: Final = 2 * PAGE_BYTES
"""Four slots: a page of their A copies, then a page of their B copies; a torn page costs no slot both."""
HEAD_SLOT: Final = 0
FIRST_SLOT: Final = SLOTS_PER_GROUP
"""Snapshots start in the second group: the head, the slot written most often, shares its pages with nobody."""
NAME_BYTES_MAX: Final = 255
SOURCE_BYTES_MAX: Final = 480
"""A longer source is cut here (at a character); the manifest has all of it."""
NO_NUMBER: Final = RecordNumber((1 << 64) - 1)

_MAGIC: Final = b"BSLT"
_PREFIX = struct.Struct("<4sBBBBQIHH")
_SNAPSHOT = struct.Struct("<QqqQQQ32sQ32sQ")
_HEAD = struct.Struct("<32sQ32sQQQQIIQqqq")
_CHECKSUM = struct.Struct("<Q")
_CHECKED_BYTES: Final = COPY_BYTES - _CHECKSUM.size
_WORD: Final = np.dtype("<u8")
_INDEX_WORD: Final = 2
"""Of a copy's 64-bit words, the one with the slot's index (and the lengths of name and source above it)."""
_FLAG_PINNED: Final = 1
_FLAG_EXACT: Final = 2
_FLAG_CLEAN: Final = 4


class SlotState(IntEnum):
    """What a slot holds."""

    FREE = 0
    LIVE = 1
    TRASH = 2
    HEAD = 3


class SnapshotKind(IntEnum):
    """Why a snapshot exists. A provisional one is not listed, and is replaced by the next of `live`."""

    IMPLICIT = 0
    PROVISIONAL = 1
    NAMED = 2


@dataclass(frozen=True, slots=True)
class Slot:
    """What the catalog knows about one snapshot.

    `time_ns`, `deleted_ns`: nanoseconds since 1970; `deleted_ns` 0 while it is not in the trash. `manifest` and
    `bitmap` are record ids with their numbers (places); `bitmap` NO_ID: the snapshot has to be walked. `exact`: the
    bitmap holds nothing but what is reachable. In a FREE slot only `snapshot_id` means something: ids are never used
    again.
    """

    snapshot_id: SnapshotId
    state: SlotState
    name: str
    time_ns: int
    source: str
    kind: SnapshotKind
    manifest: RecordId
    manifest_number: RecordNumber
    bitmap: RecordId = NO_ID
    bitmap_number: RecordNumber = NO_NUMBER
    exact: bool = False
    totals: Totals = Totals(0, 0)
    next_file_id: FileId = ROOT_FILE_ID
    pinned: bool = False
    deleted_ns: int = 0


FREE_SLOT: Final = Slot(SnapshotId(0), SlotState.FREE, "", 0, "", SnapshotKind.IMPLICIT, NO_ID, NO_NUMBER)


@dataclass(frozen=True, slots=True)
class Head:
    """The last committed root of `live`, and where the journal goes on from it.

    `manifest` NO_ID: nothing was committed yet, `live` is empty. `journal`: the last flush that is included.
    `journal_floor`: no later flush lies in a pack below. `clean` is false while a mount may be writing;
    `mounted_ns` says since when, `unmounted_ns` when the last one ended well. `slots`: how many the catalog has.
    """

    manifest: RecordId = NO_ID
    manifest_number: RecordNumber = NO_NUMBER
    bitmap: RecordId = NO_ID
    bitmap_number: RecordNumber = NO_NUMBER
    exact: bool = False
    commit_serial: int = 0
    journal: JournalMark = NO_MARK
    journal_floor: PackIndex = PackIndex(0)
    next_file_id: FileId = FileId(ROOT_FILE_ID + 1)
    clean: bool = True
    mounted_ns: int = 0
    unmounted_ns: int = 0
    committed_ns: int = 0
    slots: int = 0

    @property
    def journal_seq(self) -> int:
        """Sequence of the last flush that the root includes."""
        return self.journal.sequence


class SlotCopy(NamedTuple):
    """One copy as read: its sequence, and what it holds."""

    sequence: int
    content: Slot | Head


def copy_offset(slot: int, copy: int) -> int:
    """Byte offset in the catalog of copy 0 (A) or 1 (B) of `slot`."""
    group, within = divmod(slot, SLOTS_PER_GROUP)
    return group * GROUP_BYTES + copy * PAGE_BYTES + within * COPY_BYTES


def first_copy(sequence: int) -> int:
    """Which copy is written first under `sequence`: A (0) when it is odd, B (1) when even; the other follows."""
    return 0 if sequence % 2 == 1 else 1


def catalog_bytes(slots: int) -> int:
    """Size in bytes of a catalog of `slots` slots (a multiple of SLOTS_PER_GROUP)."""
    return -(-slots // SLOTS_PER_GROUP) * GROUP_BYTES


def check_name(name: str) -> None:
    """Raises UsageError unless `name` can be a snapshot's."""
    if name in ("", ".", "..", "latest"):
        raise UsageError(f"'{name}' cannot be the name of a snapshot.")
    if "/" in name or "\0" in name:
        raise UsageError("The name of a snapshot holds no '/' and no NUL.")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise UsageError("The name of a snapshot must be valid UTF-8.") from None
    if len(encoded) > NAME_BYTES_MAX:
        raise UsageError(f"The name of a snapshot has at most {NAME_BYTES_MAX} bytes; this one has {len(encoded)}.")


def cut_source(source: str) -> bytes:
    """`source` as stored: at most SOURCE_BYTES_MAX bytes, cut at a character. Lone surrogates become bytes again."""
    encoded = source.encode(errors="surrogateescape")
    if len(encoded) <= SOURCE_BYTES_MAX:
        return encoded
    end = SOURCE_BYTES_MAX
    while end and encoded[end] & 0xC0 == 0x80:
        end -= 1
    return encoded[:end]


def encode_copy(index: int, sequence: int, content: Slot | Head, seed: int) -> bytes:
    """The 1,024 bytes of a copy of slot `index`."""
    match content:
        case Head() as head:
            flags = (_FLAG_EXACT if head.exact else 0) | (_FLAG_CLEAN if head.clean else 0)
            prefix = _PREFIX.pack(_MAGIC, SlotState.HEAD, 0, flags, 0, sequence, index, 0, 0)
            body = _HEAD.pack(
                head.manifest,
                head.manifest_number,
                head.bitmap,
                head.bitmap_number,
                head.commit_serial,
                head.journal.sequence,
                head.journal.digest,
                head.journal_floor,
                head.slots,
                head.next_file_id,
                head.mounted_ns,
                head.unmounted_ns,
                head.committed_ns,
            )
        case Slot() as slot:
            name = slot.name.encode()
            source = cut_source(slot.source)
            if len(name) > NAME_BYTES_MAX:
                raise UsageError(f"The name of a snapshot has at most {NAME_BYTES_MAX} bytes.")
            flags = (_FLAG_PINNED if slot.pinned else 0) | (_FLAG_EXACT if slot.exact else 0)
            prefix = _PREFIX.pack(_MAGIC, slot.state, slot.kind, flags, 0, sequence, index, len(name), len(source))
            body = (
                _SNAPSHOT.pack(
                    slot.snapshot_id,
                    slot.time_ns,
                    slot.deleted_ns,
                    slot.totals.files,
                    slot.totals.content_bytes,
                    slot.next_file_id,
                    slot.manifest,
                    slot.manifest_number,
                    slot.bitmap,
                    slot.bitmap_number,
                )
                + name
                + source
            )
    checked = (prefix + body).ljust(_CHECKED_BYTES, b"\0")
    return checked + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(checked, seed=seed))


def verify_copy(data: bytes | memoryview, index: int, seed: int) -> int | None:
    """The sequence of a copy of slot `index` that is whole; None for a torn, foreign or misplaced one."""
    if len(data) < COPY_BYTES:
        return None
    (stored,) = _CHECKSUM.unpack_from(data, _CHECKED_BYTES)
    if xxhash.xxh3_64_intdigest(data[:_CHECKED_BYTES], seed=seed) != stored:
        return None
    magic, _, _, _, _, sequence, place, _, _ = _PREFIX.unpack_from(data)
    return int(sequence) if magic == _MAGIC and place == index else None


def untouched_slots(data: bytes | memoryview, seed: int) -> list[int]:
    """Slots of the catalog `data` that are as they were made, never used, in both copies: most of them, told fast."""
    words = np.frombuffer(data, _WORD, len(data) // GROUP_BYTES * GROUP_BYTES // _WORD.itemsize)
    copies = words.reshape(-1, GROUP_BYTES // PAGE_BYTES, SLOTS_PER_GROUP, COPY_BYTES // _WORD.itemsize)
    made = np.frombuffer(encode_copy(0, 0, FREE_SLOT, seed), _WORD)
    zeros = int(np.flatnonzero(made[:-1])[-1]) + 1  # from there to the checksum: or-ed together, which copies nothing
    alike = np.bitwise_or.reduce(copies[..., zeros:-1], axis=3) == 0
    alike &= (copies[..., :_INDEX_WORD] == made[:_INDEX_WORD]).all(axis=3)
    slots = np.arange(len(copies) * SLOTS_PER_GROUP, dtype=np.uint64).reshape(-1, 1, SLOTS_PER_GROUP)
    alike &= copies[..., _INDEX_WORD] == slots
    alike &= (copies[..., _INDEX_WORD + 1 : zeros] == made[_INDEX_WORD + 1 : zeros]).all(axis=3)
    found = alike.all(axis=1) & (copies[:, 0, :, -1] == copies[:, 1, :, -1])
    groups, within = np.nonzero(found)
    checksums: list[int] = copies[groups, 0, within, -1].tolist()
    indexes: list[int] = (groups * SLOTS_PER_GROUP + within).tolist()
    starts: list[int] = (groups * GROUP_BYTES + within * COPY_BYTES).tolist()
    view, digest = memoryview(data), xxhash.xxh3_64_intdigest
    return [
        index
        for index, at, checksum in zip(indexes, starts, checksums, strict=True)
        if digest(view[at : at + _CHECKED_BYTES], seed) == checksum
    ]


def decode_copy(data: bytes | memoryview) -> SlotCopy:
    """What a copy that was verified holds. Raises DamagedError for values that this version does not know."""
    _, state, kind, flags, _, sequence, index, name_length, source_length = _PREFIX.unpack_from(data)
    try:
        if state == SlotState.HEAD:
            return SlotCopy(sequence, _decode_head(data, flags))
        fields = _SNAPSHOT.unpack_from(data, _PREFIX.size)
        snapshot_id, time_ns, deleted_ns, files, content_bytes, next_file_id = fields[:6]
        manifest, manifest_number, bitmap, bitmap_number = fields[6:]
        start = _PREFIX.size + _SNAPSHOT.size
        name = bytes(data[start : start + name_length]).decode()
        source = bytes(data[start + name_length : start + name_length + source_length])
        slot = Slot(
            SnapshotId(snapshot_id),
            SlotState(state),
            name,
            time_ns,
            source.decode(errors="surrogateescape"),
            SnapshotKind(kind),
            RecordId(manifest),
            RecordNumber(manifest_number),
            RecordId(bitmap),
            RecordNumber(bitmap_number),
            bool(flags & _FLAG_EXACT),
            Totals(files, content_bytes),
            FileId(next_file_id),
            bool(flags & _FLAG_PINNED),
            deleted_ns,
        )
    except ValueError as error:
        raise DamagedError(f"Slot {index} of the catalog holds a value that this version does not know.") from error
    return SlotCopy(sequence, slot)


def _decode_head(data: bytes | memoryview, flags: int) -> Head:
    manifest, manifest_number, bitmap, bitmap_number, serial, journal_seq, digest, floor, slots, *rest = (
        _HEAD.unpack_from(data, _PREFIX.size)
    )
    next_file_id, mounted_ns, unmounted_ns, committed_ns = rest
    return Head(
        manifest=RecordId(manifest),
        manifest_number=RecordNumber(manifest_number),
        bitmap=RecordId(bitmap),
        bitmap_number=RecordNumber(bitmap_number),
        exact=bool(flags & _FLAG_EXACT),
        commit_serial=serial,
        journal=JournalMark(journal_seq, digest),
        journal_floor=PackIndex(floor),
        next_file_id=FileId(next_file_id),
        clean=bool(flags & _FLAG_CLEAN),
        mounted_ns=mounted_ns,
        unmounted_ns=unmounted_ns,
        committed_ns=committed_ns,
        slots=slots,
    )
