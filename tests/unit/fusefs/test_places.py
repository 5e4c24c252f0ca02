"""The table of places, against a plain model of what the kernel knows."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fusefs.inodes import InodeNumber
from fusefs.places import Place, PlaceTable, Row
from repository.ids import RecordId


def row(number: int) -> Row:
    return Row(InodeNumber(number), RecordId(bytes([number]) * 32), RecordId(bytes([number + 100]) * 32))


events = st.lists(
    st.one_of(
        st.tuples(st.just("seen"), st.integers(1, 12), st.integers(0, 3), st.integers(0, 65_535)),
        st.tuples(st.just("forget"), st.integers(1, 12), st.integers(1, 3), st.just(0)),
    ),
    max_size=80,
)


@given(events)
def test_it_knows_the_latest_place_until_the_last_reference_is_gone(steps: list[tuple[str, int, int, int]]) -> None:
    table = PlaceTable()
    counts: Counter[int] = Counter()
    latest: dict[int, Place] = {}
    for what, number, argument, position in steps:
        if what == "seen":
            table.seen(InodeNumber(number), row(argument), position)
            counts[number] += 1
            latest[number] = Place(row(argument), position)
        elif counts[number]:
            lookups = min(argument, counts[number])
            table.forget(number, lookups)
            counts[number] -= lookups
        known = {one for one, count in counts.items() if count}
        assert len(table) == len(known)
        assert table.rows == len({latest[one].row for one in known})
        for one in range(13):
            assert table.place(one) == (latest[one] if one in known else None)


def test_numbers_of_64_bits_and_many_references_fit() -> None:
    table = PlaceTable()
    number = InodeNumber((3 << 62) | 12345)
    for _ in range(5000):
        table.seen(number, row(1), 65_535)
    table.forget(number, 4999)
    assert table.place(number) == Place(row(1), 65_535)
    table.forget(number, 1)
    assert table.place(number) is None


def test_a_directory_in_use_stays_young_with_all_above_it() -> None:
    table = PlaceTable(places_max=16)
    for number in range(1, 18):
        table.seen(InodeNumber(number), Row(InodeNumber(number - 1), row(1).content, row(1).attrs), 0)
    table.used(3)
    assert [number for number, _ in table.overdue()] == [4, 5]
    table.used(99)


def test_the_oldest_are_named_in_turn_once_there_are_too_many() -> None:
    table = PlaceTable(places_max=16)
    for number in range(1, 17):
        table.seen(InodeNumber(number), row(1), number)
    assert table.overdue() == []
    table.seen(InodeNumber(17), row(2), 0)
    table.seen(InodeNumber(1), row(2), 5)
    assert [number for number, _ in table.overdue()] == [2, 3]
    assert [number for number, _ in table.overdue()] == [4, 5]
    table.forget(4, 1)
    assert table.overdue() == []
