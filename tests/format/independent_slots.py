"""The independent reader's part for the files that are overwritten in place: catalog, intent, events."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xxhash import xxh3_64_intdigest

from tests.format.independent import Config, need

FREE, LIVE, TRASH, HEAD = 0, 1, 2, 3
KIND_NAMES: Final = ("implicit", "provisional", "named")


@dataclass(frozen=True)
class Snapshot:
    """A slot of the catalog that holds a snapshot, in the trash or not."""

    snapshot_id: int
    name: str
    source: str
    state: int
    kind: str
    pinned: bool
    exact: bool
    time_ns: int
    deleted_ns: int
    files: int
    content_bytes: int
    next_file_id: int
    manifest: bytes
    manifest_number: int
    bitmap: bytes
    bitmap_number: int


@dataclass(frozen=True)
class Head:
    """Slot 0."""

    manifest: bytes
    manifest_number: int
    bitmap: bytes
    bitmap_number: int
    serial: int
    journal_sequence: int
    journal_digest: int
    journal_floor: int
    slots: int
    next_file_id: int
    mounted_ns: int
    clean: bool


def read_slot(config: Config, data: bytes, index: int) -> bytes:
    """The whole copy of a slot with the higher sequence."""
    whole: list[tuple[int, bytes]] = []
    for copy in (0, 1):
        start = index // 4 * 8192 + copy * 4096 + index % 4 * 1024
        one = data[start : start + 1024]
        need(len(one) == 1024, "the catalog is short")
        sequence, number = struct.unpack_from("<QI", one, 8)
        (checksum,) = struct.unpack_from("<Q", one, 1016)
        if one[:4] == b"BSLT" and number == index and checksum == xxh3_64_intdigest(one[:1016], config.seed):
            whole.append((sequence, one))
    need(bool(whole), f"slot {index} is lost")
    return max(whole)[1]


def read_catalog(config: Config, root: Path) -> tuple[Head, list[Snapshot]]:
    """The head, and all snapshots by id."""
    data = (root / "catalog").read_bytes()
    slot = read_slot(config, data, 0)
    need(slot[4] == HEAD, "slot 0 is the head")
    manifest, manifest_number, bitmap, bitmap_number = struct.unpack_from("<32sQ32sQ", slot, 24)
    serial, sequence, digest, floor, slots, next_file_id, mounted = struct.unpack_from("<QQQIIQq", slot, 104)
    head = Head(
        manifest, manifest_number, bitmap, bitmap_number,
        serial, sequence, digest, floor, slots, next_file_id, mounted, slot[6] & 4 != 0,
    )  # fmt: skip
    snapshots: list[Snapshot] = []
    for index in range(4, head.slots):
        slot = read_slot(config, data, index)
        state, kind, flags = slot[4:7]
        if state == FREE:
            continue
        need(state in (LIVE, TRASH), "state of a slot")
        name_bytes, source_bytes = struct.unpack_from("<HH", slot, 20)
        numbers = struct.unpack_from("<QqqQQQ", slot, 24)
        snapshot_id, time_ns, deleted_ns, files, content_bytes, next_file_id = numbers
        manifest, manifest_number, bitmap, bitmap_number = struct.unpack_from("<32sQ32sQ", slot, 72)
        name = slot[152 : 152 + name_bytes].decode()
        source = slot[152 + name_bytes : 152 + name_bytes + source_bytes].decode("utf-8", "surrogateescape")
        snapshot = Snapshot(
            snapshot_id, name, source, state, KIND_NAMES[kind], flags & 1 != 0, flags & 2 != 0,
            time_ns, deleted_ns, files, content_bytes, next_file_id,
            manifest, manifest_number, bitmap, bitmap_number,
        )  # fmt: skip
        snapshots.append(snapshot)
    return head, sorted(snapshots, key=lambda snapshot: snapshot.snapshot_id)


def read_intent(config: Config, data: bytes) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Packs to unlink, and ranges (pack, offset, length) to punch."""
    magic, version, zero, _serial, unlinks, punches = struct.unpack_from("<4sHHQII", data, 0)
    need((magic, version, zero) == (b"BINT", 1, 0) and len(data) == 131_072, "intent")
    end = 24 + 4 * unlinks + 12 * punches
    need(struct.unpack_from("<Q", data, end)[0] == xxh3_64_intdigest(data[:end], config.seed), "intent's checksum")
    packs = list(struct.unpack_from(f"<{unlinks}I", data, 24))
    rows = struct.unpack_from(f"<{3 * punches}I", data, 24 + 4 * unlinks)
    return packs, list(zip(rows[0::3], rows[1::3], rows[2::3], strict=True))


def read_events(config: Config, root: Path) -> list[tuple[int, int, str]]:
    """Serial, time and name of each event in the ring, oldest first."""
    data = (root / "events").read_bytes()
    need(len(data) == 256 * 4096, "the ring has 256 cells")
    found: list[tuple[int, int, str]] = []
    for start in range(0, len(data), 4096):
        cell = data[start : start + 4096]
        magic, length, serial, time_ns = struct.unpack_from("<4sIQq", cell, 0)
        (checksum,) = struct.unpack_from("<Q", cell, 4088)
        if magic != b"BEVT" or checksum != xxh3_64_intdigest(cell[:4088], config.seed):
            continue
        need(serial % 256 == start // 4096, "an event's cell")
        said = json.loads(cell[24 : 24 + length])
        need(set(said) == {"name", "fields"}, "an event's text")
        found.append((serial, time_ns, str(said["name"])))
    return sorted(found)
