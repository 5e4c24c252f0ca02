"""The independent reader's part for borders: where equal content is cut equally. Readers need none of this."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from tests.format.independent import need


class Rule(NamedTuple):
    """A record ends behind an item when its weight is `least` or more and the item's hash is below
    weight × (2^64 div `every`), or when its weight is `most` or more."""

    least: int
    every: int
    most: int


SEGMENTS: Final = Rule(64, 192, 1024)
EXTENT_SEGMENTS: Final = Rule(128, 384, 2048)
LISTS: Final = Rule(256, 768, 2048)


class Item(NamedTuple):
    """Something that a record has a row for."""

    weight: int
    hash: int


def cut(items: Sequence[Item], rule: Rule) -> list[int]:
    """How many items each record gets."""
    lengths: list[int] = []
    weight = since = 0
    for item in items:
        weight += item.weight
        since += 1
        border = item.hash < item.weight * ((1 << 64) // rule.every)
        if (weight >= rule.least and border) or weight >= rule.most:
            lengths.append(since)
            weight = since = 0
    return [*lengths, since] if since else lengths


@dataclass
class Shape:
    """The records of one directory, extent list or links table: by level (0: segments), the items of each."""

    levels: dict[int, list[list[Item]]] = field(default_factory=dict)

    def add(self, level: int, items: list[Item]) -> None:
        self.levels.setdefault(level, []).append(items)

    def check(self, segments: Rule) -> None:
        """All records end where they should."""
        for level, records in self.levels.items():
            rule = LISTS if level else segments
            everything = [item for record in records for item in record]
            need(cut(everything, rule) == [len(record) for record in records], f"borders at level {level}")


def of_bytes(name: bytes, level: int = 0) -> Item:
    return Item(1, xxh3_64_intdigest(name, level))


def of_file(file_id: int, level: int = 0) -> Item:
    return of_bytes(file_id.to_bytes(8, "little"), level)


def of_id(record_id: bytes) -> Item:
    return Item(1, int.from_bytes(record_id[:8], "little"))
