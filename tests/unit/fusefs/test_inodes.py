"""The number spaces: no two files share a number, except where they must."""

from hypothesis import given
from hypothesis import strategies as st

from fusefs import inodes
from fusefs.inodes import Space
from repository.format.inode import Inode, NodeKind
from repository.ids import FileId, SnapshotId

file_ids = st.integers(1, (1 << 40) - 1).map(FileId)
snapshots = st.integers(1, (1 << 22) - 1).map(SnapshotId)
versions = st.integers(0, (1 << 22) - 1)


@given(file_ids, file_ids, versions, versions)
def test_a_file_has_a_number_per_version(one: FileId, other: FileId, version: int, later: int) -> None:
    numbers = inodes.snapshot_file_number(one, version), inodes.snapshot_file_number(other, later)
    assert (numbers[0] == numbers[1]) == ((one, version) == (other, later))
    assert all(inodes.space_of(number) is Space.SNAPSHOT_FILE and number < 1 << 64 for number in numbers)


@given(file_ids, snapshots, snapshots)
def test_a_directory_has_a_number_per_snapshot(file_id: FileId, one: SnapshotId, other: SnapshotId) -> None:
    number = inodes.snapshot_directory_number(one, file_id)
    assert inodes.space_of(number) is Space.SNAPSHOT_DIRECTORY
    assert inodes.serial_of(number) == one
    assert (number == inodes.snapshot_directory_number(other, file_id)) == (one == other)


@given(file_ids)
def test_live_numbers_lead_back(file_id: FileId) -> None:
    number = inodes.live_number(file_id)
    assert inodes.space_of(number) is Space.LIVE
    assert inodes.live_file_id(number) == file_id


def test_special_numbers_are_all_different() -> None:
    constants = [value for name, value in vars(inodes).items() if name.isupper() and isinstance(value, int)]
    special = [value for value in constants if 0 < value < 9]
    assert len(special) == len(set(special)) == 8
    assert all(inodes.space_of(number) is Space.SPECIAL for number in special)


@given(file_ids, versions, snapshots, snapshots)
def test_an_unchanged_file_is_the_same_in_every_snapshot(
    file_id: FileId, version: int, one: SnapshotId, other: SnapshotId
) -> None:
    file = Inode(NodeKind.FILE, file_id, version)
    assert inodes.number_in_snapshot(one, file) == inodes.number_in_snapshot(other, file)
