"""How snapshots are called. Pure."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from repository.format.catalog import Slot
from repository.units import NS_PER_S


def implicit_name(time_ns: int, taken: Collection[str]) -> str:
    """The name of a snapshot made at `time_ns`: `2026-11-20T14-39-05Z`, with -2, -3 ... where that is taken.

    UTC, sorts by time, and has no character that a file manager or another system's file names refuse.
    """
    return distinct(datetime.fromtimestamp(time_ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H-%M-%SZ"), taken)


def distinct(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of `name-2`, `name-3` ... that is not in `taken`."""
    if name not in taken:
        return name
    number = 2
    while f"{name}-{number}" in taken:
        number += 1
    return f"{name}-{number}"


def trash_names(slots: Iterable[Slot]) -> dict[str, Slot]:
    """The names under which deleted snapshots are shown: the first that was deleted under a name keeps it."""
    shown: dict[str, Slot] = {}
    for slot in sorted(slots, key=lambda one: (one.deleted_ns, one.snapshot_id)):
        shown[distinct(slot.name, shown)] = slot
    return shown
