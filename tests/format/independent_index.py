"""The independent reader's part for index segments, which are caches: each row must name a record that is there."""

from pathlib import Path
from typing import Final

from xxhash import xxh3_64_intdigest

from tests.format.independent import Packs, need
from tests.format.independent_files import Bytes

HEADER: Final = 4096
M64: Final = (1 << 64) - 1
WORDS: Final = (
    0x9E3779B97F4A7C15,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0xD6E8FEB86659FD93,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
    0x8EBC6AF09C88C6E3,
)


def read_segment(packs: Packs, path: Path) -> dict[int, int]:
    """Verifies a segment; the packs that it covers, with their number of rows."""
    text = path.read_bytes()
    data = Bytes(text[:HEADER])
    need((data.take(8), data.number(4), data.number(4)) == (b"BLSTINDX", 1, 0), "a segment's header")
    need(data.take(16) == packs.config.repository_id, "a segment of this repository")
    rows, keys_at, rows_at, filter_at, filter_size, table_at, table_rows = (data.number(8) for _ in range(7))
    sums = [data.number(8) for _ in range(4)]
    need(int.from_bytes(text[4088:HEADER], "little") == xxh3_64_intdigest(text[:4088]), "a segment's checksum")
    parts = (
        text[keys_at : keys_at + 8 * rows],
        text[rows_at : rows_at + 48 * rows],
        text[filter_at : filter_at + filter_size],
        text[table_at : table_at + 48 * table_rows],
    )
    need(sums == [xxh3_64_intdigest(part) for part in parts], "checksums of a segment's parts")
    table = Bytes(parts[3])
    covered: dict[int, int] = {}
    for _ in range(table_rows):
        index, count, stream, zero = (table.number(4) for _ in range(4))
        created, last_added, _mtime, _blocks = (table.number(8) for _ in range(4))
        pack = packs.packs.get(index)
        need(zero == 0 and (pack is None or (pack.sealed, pack.stream) == (True, stream)), "a segment's pack")
        times = created, last_added
        need(pack is None or times == (pack.created_ns, pack.last_added_ns), "times of a segment's pack")
        covered[index] = count
    keys = [int.from_bytes(parts[0][at : at + 8], "little") for at in range(0, 8 * rows, 8)]
    need(keys == sorted(keys), "keys in order")
    for at, key in enumerate(keys):
        _row(packs, key, parts[1][48 * at : 48 * at + 48], parts[2], covered)
    return covered


def _row(packs: Packs, key: int, row: bytes, probes: bytes, covered: dict[int, int]) -> None:
    words = [int.from_bytes(row[at : at + 8], "little") for at in range(0, 48, 8)]
    check = words[5] >> 32
    words[5] &= (1 << 32) - 1
    mixed = (key * WORDS[6] + sum(word * factor for word, factor in zip(words, WORDS, strict=False))) & M64
    need(((mixed ^ (mixed >> 29)) * WORDS[0] & M64) >> 32 == check, "a row's check")
    number, offset = words[3], words[4] & 0xFFFFFFFF
    stored, raw = words[4] >> 32, words[5]
    record_id = key.to_bytes(8, "big") + row[:24]
    second = int.from_bytes(record_id[8:16], "little")
    for probe in range(4):
        bit = (key + probe * (second | 1)) % (8 * len(probes))
        need(probes[bit // 8] >> (bit % 8) & 1 == 1, "the filter knows each key")
    need(number >> 16 in covered, "rows of covered packs only")
    record = packs.by_number.get(number)
    if record is not None:
        said = record.id, record.offset, record.stored_length, len(record.payload)
        need(said == (record_id, offset, stored, raw), "what a row says of a record")
