"""The table of places, against a plain model of what the kernel knows."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fusefs.inodes import InodeNumber, snapshot_directory_number, snapshot_file_number
from fusefs.places import PLACES_MAX, SHARD_PLACES, Place, PlaceTable, Row
from repository.ids import FileId, RecordId, SnapshotId


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
            table.seen(row(argument), [(number, position)])
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
        table.seen(row(1), [(number, 65_535)])
    table.forget(number, 4999)
    assert table.place(number) == Place(row(1), 65_535)
    table.forget(number, 1)
    assert table.place(number) is None


def test_several_of_one_segment_at_once_are_the_same_as_one_after_the_other() -> None:
    together, apart = PlaceTable(), PlaceTable()
    for segment, seen in ((1, [(5, 0), (6, 1), (5, 2)]), (2, [(6, 0)]), (1, [(5, 7)]), (2, [(5, 1), (5, 1)])):
        together.seen(row(segment), seen)
        for one in seen:
            apart.seen(row(segment), [one])
        assert together.rows == apart.rows
    for number, lookups in ((5, 5), (6, 2)):
        assert together.place(number) == apart.place(number) is not None
        together.forget(number, lookups - 1)
        assert together.place(number) is not None
        together.forget(number, 1)
        assert together.place(number) is None
    assert len(together) == together.rows == 0


def children_of(*numbers: int) -> list[Row]:
    """A row of entries of each of these directories."""
    return [Row(InodeNumber(number), row(1).content, row(1).attrs) for number in numbers]


def test_a_directory_in_use_stays_young_with_all_above_it() -> None:
    table = PlaceTable(places_max=16)
    for number, above in enumerate(children_of(*range(0, 80, 5)), 1):
        table.seen(above, [(number, 0)])
    table.seen(children_of(3)[0], [(17, 0)])
    table.seen(children_of(17)[0], [(18, 0)])
    table.used(18)  # and with it 17 and 3
    assert table.overdue() == [Place(children_of(0)[0], 0), Place(children_of(5)[0], 0)]
    assert table.overdue() == [Place(children_of(15)[0], 0), Place(children_of(20)[0], 0)]
    table.used(99)


def test_the_oldest_are_named_in_turn_once_there_are_too_many() -> None:
    table = PlaceTable(places_max=16)
    for number in range(1, 17):
        table.seen(row(100), [(number, number)])
    assert table.overdue() == []
    table.seen(row(99), [(17, 0)])
    table.seen(row(99), [(1, 5)])
    assert [place.position for place in table.overdue()] == [2, 3]
    assert [place.position for place in table.overdue()] == [4, 5]
    table.forget(4, 1)
    assert table.overdue() == []


def test_what_goes_along_with_the_directory_above_it_is_not_named() -> None:
    """A walk's oldest are mostly whole trees: one name taken away instead of thousands."""
    table = PlaceTable(places_max=100)
    for directory in range(1000, 1040):
        above, inside = children_of(1, directory)
        table.seen(above, [(directory, directory - 1000)])
        table.seen(inside, [(directory * 100 + file, file) for file in range(9)])
    assert len(table) == 400
    places = table.overdue()
    assert [place.row.parent for place in places] == [1] * 5, "50 entries: five directories with nine files each"


def test_many_segments_fill_the_table_too() -> None:
    """A walk over many snapshots meets the same files, and other directories in each: few places, many rows."""
    table = PlaceTable(places_max=1000, rows_max=20)
    for directory in range(21):
        assert not table.is_full()
        table.seen(children_of(directory)[0], [(7, 1), (directory + 100, 2)])
    assert len(table) == 22
    assert table.is_full()
    assert table.overdue()


def test_a_large_table_is_cut_into_parts_of_which_none_is_much_larger_than_the_others() -> None:
    """What many numbers, coming and going, may do to one large dictionary, they must not do to a part."""
    for numbers in (
        [snapshot_file_number(FileId(file_id), version) for file_id in range(20_000) for version in (0, 1)],
        [
            snapshot_directory_number(SnapshotId(snapshot), FileId(file_id * 7))
            for snapshot in range(200)
            for file_id in range(200)
        ],
    ):
        table = PlaceTable()
        table.seen(row(1), [(number, 0) for number in numbers])
        sizes = sorted(map(len, table._shards))
        assert len(sizes) * SHARD_PLACES >= PLACES_MAX
        assert sizes[-1] < 1.5 * sizes[0]
