"""Where in a specimen each structure lies, and what can happen to it there."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from repository.events import EVENTS_FILE
from repository.format.catalog import COPY_BYTES, HEAD_SLOT, copy_offset
from repository.format.config import CONFIG_NAME
from repository.format.events import CELL_BYTES, cell_offset
from repository.format.indexseg import SEGMENT_HEADER_BYTES, decode_segment_header, segment_path
from repository.format.pack import PACK_HEADER_BYTES, TRAILER_BYTES, decode_trailer, pack_path
from repository.format.record import HEADER_BYTES, Place, RecordKind
from repository.ids import PackIndex, pack_of
from repository.intent import INTENT_FILE
from repository.lock import LOCK_BYTES, LOCK_FILE
from repository.repo import Repository
from repository.slotfile import CATALOG_FILE
from repository.space import RESERVE_FILE

INTENT_BYTES_USED: Final = 40


class Region(NamedTuple):
    """Bytes of a file of the repository."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Structure:
    """Something that can be damaged: all of `regions` at once; `other` is its like elsewhere.

    `named`: what the finding or error has to mention; None where nobody needs the structure, so that nobody has to
    tell. `quiet`: actions after which nobody can tell.
    """

    name: str
    regions: tuple[Region, ...]
    other: Region
    named: str | None
    quiet: frozenset[str] = frozenset()


def structures(path: Path) -> list[Structure]:
    """Everything that can be damaged in the specimen at `path`."""
    with Repository.open(path, writable=False) as repository:
        return [
            *_small_files(),
            *_catalog(repository),
            *_packs(repository),
            *_records(repository),
            *_segments(path, repository),
        ]


def _small_files() -> Iterator[Structure]:
    event = Region(EVENTS_FILE, cell_offset(1), CELL_BYTES)
    yield Structure("events", (event,), event._replace(offset=cell_offset(2)), None)
    yield Structure("lock", (Region(LOCK_FILE, 0, LOCK_BYTES),), event, None)
    yield Structure("reserve", (Region(RESERVE_FILE, 0, 4096),), event, None)
    yield Structure("intent", (Region(INTENT_FILE, 0, INTENT_BYTES_USED),), event, INTENT_FILE)
    config = Region(CONFIG_NAME, 0, 600)
    yield Structure("config", (config,), event, CONFIG_NAME)


def _copies(slot: int) -> tuple[Region, Region]:
    return (
        Region(CATALOG_FILE, copy_offset(slot, 0), COPY_BYTES),
        Region(CATALOG_FILE, copy_offset(slot, 1), COPY_BYTES),
    )


def _catalog(repository: Repository) -> Iterator[Structure]:
    slots = [repository.catalog.place(slot.snapshot_id) for slot in repository.listed()]
    other = _copies(slots[1])[0]
    head = _copies(HEAD_SLOT)
    for letter, copy in zip("AB", head, strict=True):
        yield Structure(f"catalog head, copy {letter}", (copy,), other, "catalog")
    yield Structure("catalog head, both copies", head, other, "catalog")
    copies = _copies(slots[0])
    for letter, copy in zip("AB", copies, strict=True):
        yield Structure(f"catalog slot, copy {letter}", (copy,), other, f"catalog, slot {slots[0]}")
    yield Structure("catalog slot, both copies", copies, other, f"catalog, slot {slots[0]}")


def _packs(repository: Repository) -> Iterator[Structure]:
    sealed = [info.index for info in repository.store.packs() if info.sealed]
    still_open = [info.index for info in repository.store.packs() if not info.sealed]
    for kind, packs in (("sealed", sealed), ("open", still_open)):
        header = Region(pack_path(packs[0]), 0, PACK_HEADER_BYTES)
        yield Structure(f"header of a {kind} pack", (header,), header._replace(file=pack_path(packs[1])), header.file)
    end, other_end = (_end(repository, pack) for pack in (sealed[0], sealed[-1]))
    yield Structure("directory of a pack", (end[0],), other_end[0], end[0].file)
    yield Structure("trailer of a pack", (end[1],), other_end[1], end[1].file)


def _end(repository: Repository, pack: PackIndex) -> tuple[Region, Region]:
    file = pack_path(pack)
    with repository.volume.open(file) as handle:
        at = handle.size() - TRAILER_BYTES
        trailer = decode_trailer(handle.pread(TRAILER_BYTES, at), repository.config.seed, pack)
    assert trailer is not None
    return Region(file, trailer.directory_offset, trailer.directory_stored_length), Region(file, at, TRAILER_BYTES)


def _records(repository: Repository) -> Iterator[Structure]:
    """A header and a payload of each kind, of records that something needs."""
    needed = _needed(repository)
    chunk, other_chunk = needed[RecordKind.CHUNK][:2]
    for kind, places in sorted(needed.items()):
        place = places[len(places) // 2] if kind is RecordKind.CHUNK else places[0]
        other = places[1] if len(places) > 1 else other_chunk if place != other_chunk else chunk
        for part, cut in (("header", _header), ("payload", _payload)):
            named, quiet = pack_path(pack_of(place.number)), frozenset[str]()
            if kind is RecordKind.JOURNAL:
                # It is told of by its chain. Where the open pack ends early, or in garbage (both headers are swapped),
                # that is how every crash leaves it.
                named = "journal"
                quiet = frozenset(("truncate", "swap") if part == "header" else ("truncate",))
            yield Structure(f"{kind.name} record, {part}", (cut(place),), cut(other), named, quiet)


def _header(place: Place) -> Region:
    return Region(pack_path(pack_of(place.number)), place.offset, HEADER_BYTES)


def _payload(place: Place) -> Region:
    file = pack_path(pack_of(place.number))
    return Region(file, place.offset + HEADER_BYTES, place.stored_length - HEADER_BYTES)


def _needed(repository: Repository) -> dict[RecordKind, list[Place]]:
    from repository.roots import all_kept

    kept = all_kept(repository.store, repository.catalog)
    found: dict[RecordKind, list[Place]] = {}
    for info in repository.store.packs():
        directory = repository.store.directory(info.index)
        for position, kind in enumerate(directory.kind.tolist()):
            if kind and int(directory.numbers[position]) in kept:
                found.setdefault(RecordKind(kind), []).append(directory.place(position))
    return found


def _segments(path: Path, repository: Repository) -> Iterator[Structure]:
    file = segment_path(min(int(name[:16], 16) for name in os.listdir(path / "index")))
    header = decode_segment_header(repository.volume.read_file(file)[:SEGMENT_HEADER_BYTES])
    parts = {
        "header": Region(file, 0, 200),
        "keys": Region(file, header.keys_offset, header.row_count * 8),
        "rows": Region(file, header.rows_offset, header.row_count * 48),
        "filter": Region(file, header.filter_offset, header.filter_bytes),
        "packs": Region(file, header.packs_offset, 60),
    }
    for name, region in parts.items():
        yield Structure(f"index segment, {name}", (region,), parts["rows" if name == "keys" else "keys"], None)


# --- what can happen ----------------------------------------------------------------------------------------------


def _bytes(root: Path, region: Region) -> bytes:
    with (root / region.file).open("rb") as file:
        file.seek(region.offset)
        return file.read(region.length)


def _overwrite(root: Path, region: Region, content: bytes | bytearray) -> None:
    with (root / region.file).open("r+b") as file:
        file.seek(region.offset)
        file.write(content)


def _truncate(root: Path, region: Region, other: Region) -> None:
    os.truncate(root / region.file, region.offset + region.length // 2)


def _flip(root: Path, region: Region, other: Region) -> None:
    content = bytearray(_bytes(root, region))
    content[len(content) // 2] ^= 0x10
    _overwrite(root, region, content)


def _zero(root: Path, region: Region, other: Region) -> None:
    _overwrite(root, region, bytes(len(_bytes(root, region))))


def _swap(root: Path, region: Region, other: Region) -> None:
    here, there = _bytes(root, region), _bytes(root, other)
    length = min(len(here), len(there))
    _overwrite(root, region, there[:length])
    _overwrite(root, other, here[:length])


def _duplicate(root: Path, region: Region, other: Region) -> None:
    length = min(region.length, other.length)
    _overwrite(root, region, _bytes(root, other)[:length])


ACTIONS: Final[dict[str, Callable[[Path, Region, Region], None]]] = {
    "truncate": _truncate,
    "flip": _flip,
    "zero": _zero,
    "swap": _swap,
    "duplicate": _duplicate,
}


def damage(root: Path, structure: Structure, action: str) -> bool:
    """Does it; False where that changed nothing (zeros over zeros)."""
    before = [_bytes(root, region) for region in structure.regions]
    for region in structure.regions:
        ACTIONS[action](root, region, structure.other)
    return before != [_bytes(root, region) for region in structure.regions]
