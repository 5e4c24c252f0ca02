"""The cutting of sorted items: a change gives the same tree as building anew, and touches little."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from repository.trees.storeys import Bounds, House, Storey, build, rewrite


class Ref(NamedTuple):
    """A group: its last key, and its number in the toy store."""

    last: int
    content: tuple[object, ...]


class Toy:
    """Groups are their own content, so that equal trees are equal values. Counts reads and writes."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0


class Ground(Storey[int, tuple[int, int], Ref]):
    """Items are (key, value); cut every four or so."""

    bounds = Bounds(2, 4, 8)

    def __init__(self, toy: Toy) -> None:
        self._toy = toy

    def key(self, item: tuple[int, int]) -> int:
        return item[0]

    def weigh(self, item: tuple[int, int]) -> tuple[int, int]:
        return 1, xxhash.xxh3_64_intdigest(item[0].to_bytes(8, "little"))

    def read(self, ref: Ref) -> Sequence[tuple[int, int]]:
        self._toy.reads += 1
        return ref.content  # type: ignore[return-value]  # a ground group holds items

    def write(self, groups: Sequence[Sequence[tuple[int, int]]]) -> list[Ref]:
        self._toy.writes += len(groups)
        return [Ref(group[-1][0], tuple(group)) for group in groups]


class Upper(Storey[int, Ref, Ref]):
    """Lists, cut every four or so."""

    bounds = Bounds(2, 4, 8)

    def __init__(self, toy: Toy, level: int) -> None:
        self._toy = toy
        self._level = level

    def key(self, item: Ref) -> int:
        return item.last

    def weigh(self, item: Ref) -> tuple[int, int]:
        return 1, xxhash.xxh3_64_intdigest(item.last.to_bytes(8, "little"), self._level)

    def read(self, ref: Ref) -> Sequence[Ref]:
        self._toy.reads += 1
        return ref.content  # type: ignore[return-value]  # a list holds references

    def write(self, groups: Sequence[Sequence[Ref]]) -> list[Ref]:
        self._toy.writes += len(groups)
        return [Ref(group[-1].last, tuple(group)) for group in groups]


class ToyHouse(House[int, tuple[int, int], Ref]):
    """Both."""

    def __init__(self, least_height: int = 0) -> None:
        self.toy = Toy()
        self.ground = Ground(self.toy)
        self.least_height = least_height

    def upper(self, level: int) -> Upper:
        return Upper(self.toy, level)


def height_of(ref: Ref) -> int:
    """Lists above the items."""
    height = 0
    while isinstance(ref.content[0], Ref):
        ref = ref.content[0]
        height += 1
    return height


@given(
    st.sets(st.integers(0, 400), max_size=300),
    st.dictionaries(st.integers(0, 450), st.one_of(st.none(), st.integers(1, 5)), max_size=60),
    st.sampled_from((0, 1)),
)
def test_a_change_gives_what_building_anew_gives(
    keys: set[int], changes: dict[int, int | None], least_height: int
) -> None:
    house = ToyHouse(least_height)
    before = dict.fromkeys(keys, 0)
    root = build(house, sorted(before.items()))
    after = {key: value for key, value in (before | changes).items() if value is not None}
    expected = build(house, sorted(after.items()))
    if root is None:
        assert not keys
        return
    edits = [(key, None if value is None else (key, value)) for key, value in sorted(changes.items())]
    assert rewrite(house, root, height_of(root), edits) == expected


@given(st.integers(0, 400), st.integers(1, 300), st.sampled_from((0, 1)))
def test_removing_a_run_gives_what_building_anew_gives(start: int, length: int, least_height: int) -> None:
    """Long runs of deletions take whole groups and whole lists away, and lower the tree."""
    house = ToyHouse(least_height)
    root = build(house, [(key, 0) for key in range(400)])
    assert root is not None
    gone = range(start, start + length)
    expected = build(house, [(key, 0) for key in range(400) if key not in gone])
    assert rewrite(house, root, height_of(root), [(key, None) for key in gone]) == expected


@pytest.mark.slow
def test_removing_all_but_an_end_lowers_the_tree_to_what_is_written() -> None:
    """What is left may be a list of one list of one group: it must not stay above it."""
    for least_height in (0, 1):
        house = ToyHouse(least_height)
        for count in range(1, 130, 4):
            items = [(key, 0) for key in range(count)]
            root = build(house, items)
            assert root is not None
            for left in range(min(count, 12)):
                expected = build(house, items[count - left :])
                assert rewrite(house, root, height_of(root), [(key, None) for key in range(count - left)]) == expected
                expected = build(house, items[:left])
                gone = [(key, None) for key in range(left, count)]
                assert rewrite(house, root, height_of(root), gone) == expected


def test_one_change_reads_and_writes_one_path() -> None:
    house = ToyHouse()
    root = build(house, [(key, 0) for key in range(0, 4000, 2)])
    assert root is not None
    height = height_of(root)
    assert height >= 4
    costs: list[tuple[int, int]] = []
    for key in range(1, 4000, 39):
        house.toy.reads = house.toy.writes = 0
        assert rewrite(house, root, height, [(key, (key, 1))]) is not None
        costs.append((house.toy.reads, house.toy.writes))
    reads = sum(read for read, _ in costs) / len(costs)
    writes = sum(write for _, write in costs) / len(costs)
    # Finding a group walks down from the root once for each storey; now and then a border falls away.
    assert reads <= (height + 1) * (height + 2) / 2 + 5
    assert writes <= 2 * (height + 1)


def test_no_change_costs_nothing() -> None:
    house = ToyHouse()
    root = build(house, [(key, 0) for key in range(1000)])
    assert root is not None
    house.toy.reads = house.toy.writes = 0
    assert rewrite(house, root, height_of(root), []) is root
    assert (house.toy.reads, house.toy.writes) == (0, 0)


def test_nothing_has_no_root() -> None:
    house = ToyHouse()
    assert build(house, []) is None
    root = build(house, [(1, 0)])
    assert root is not None
    assert rewrite(house, root, 0, [(1, None)]) is None


def test_bounds_hold() -> None:
    house = ToyHouse()
    root = build(house, [(key, 0) for key in range(3000)])
    assert root is not None
    pending, ground = [root], []
    while pending:
        ref = pending.pop()
        children = [child for child in ref.content if isinstance(child, Ref)]
        pending += children
        if not children:
            ground.append(len(ref.content))
    assert max(ground) <= 8
    assert sorted(ground)[1] >= 2  # only the last group of all may be smaller
    assert 2.5 <= sum(ground) / len(ground) <= 4
