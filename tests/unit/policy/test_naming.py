"""Names of snapshots."""

from repository.format.catalog import Slot, SlotState, SnapshotKind
from repository.ids import NO_ID, RecordNumber, SnapshotId
from repository.policy.naming import distinct, implicit_name, trash_names


def deleted(number: int, name: str, deleted_ns: int) -> Slot:
    number_ = RecordNumber(0)
    kind = SnapshotKind.NAMED
    return Slot(SnapshotId(number), SlotState.TRASH, name, 0, "", kind, NO_ID, number_, deleted_ns=deleted_ns)


def test_implicit_names_are_utc_and_told_apart_within_a_second() -> None:
    time_ns = 1_795_185_545_999_999_999
    assert implicit_name(time_ns, set()) == "2026-11-20T14-39-05Z"
    assert implicit_name(time_ns, {"2026-11-20T14-39-05Z"}) == "2026-11-20T14-39-05Z-2"
    assert implicit_name(time_ns, {"2026-11-20T14-39-05Z", "2026-11-20T14-39-05Z-2"}) == "2026-11-20T14-39-05Z-3"


def test_distinct_takes_the_first_gap() -> None:
    assert distinct("a", {"a", "a-3"}) == "a-2"


def test_in_the_trash_the_first_deleted_keeps_its_name() -> None:
    shown = trash_names([deleted(2, "a", 20), deleted(1, "a", 30), deleted(3, "b", 10)])
    assert {name: slot.snapshot_id for name, slot in shown.items()} == {"b": 3, "a": 2, "a-2": 1}
