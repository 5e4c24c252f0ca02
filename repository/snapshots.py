"""Naming, finding and changing snapshots: each change is one slot overwritten in place.

Owner of the invariants *names of listed snapshots are unique* and *what is pinned or provisional is not deleted or
renamed by request*. Deleting needs no room: the slot goes to the trash, the records stay until a collection.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from repository.catalog import Catalog
from repository.errors import BusyError, NameTakenError, NoSuchSnapshotError
from repository.events import EventRing
from repository.format.catalog import Slot, SlotState, SnapshotKind, check_name
from repository.ids import SnapshotId
from repository.policy.collect import WINDOW_NS, Safety
from repository.policy.naming import trash_names
from repository.ports import Clock

LIVE_SOURCE: Final = "live"
LATEST: Final = "latest"
ID_DIGITS: Final = 16
"""Hexadecimal digits of an id as shown. All are asked for: ids are consecutive, so a short one may be a slip."""


class Snapshots:
    """What can be asked of and done to snapshots that exist. Thread safe."""

    def __init__(self, catalog: Catalog, events: EventRing, clock: Clock) -> None:
        self._catalog = catalog
        self._events = events
        self._clock = clock
        self.lock = threading.RLock()
        """Held over every change of the catalog that rests on what it said before."""
        self.moves = 0
        """Counts, under the lock, how often records were moved and the slots' bitmaps rewritten: who made a bitmap
        from an earlier one before that has to make it again."""
        self._held: Counter[SnapshotId] = Counter()
        self._needed: Counter[SnapshotId] = Counter()

    # --- looking -----------------------------------------------------------------------------------------------

    def listed(self) -> list[Slot]:
        """Live snapshots without provisional ones, by time, then id."""
        return [slot for slot in self._catalog.slots() if is_listed(slot)]

    def present(self) -> list[Slot]:
        """Live snapshots, the provisional one of `live` included, by time, then id."""
        return [slot for slot in self._catalog.slots() if slot.state == SlotState.LIVE]

    def trash(self) -> list[Slot]:
        """Deleted ones that are not collected yet, by time, then id."""
        return [slot for slot in self._catalog.slots() if slot.state == SlotState.TRASH]

    def latest(self) -> Slot | None:
        """The last listed snapshot of `live`."""
        return next((slot for slot in reversed(self.listed()) if slot.source == LIVE_SOURCE), None)

    def find(self, wanted: str) -> Slot:
        """A listed snapshot by name, `latest`, or its id. Raises NoSuchSnapshotError."""
        listed = self.listed()
        for slot in listed:
            if slot.name == wanted:
                return slot
        if wanted == LATEST and (last := self.latest()) is not None:
            return last
        return _by_id(listed, wanted) or _missing(wanted, "ballast snapshot list REPO shows what there is")

    def find_trash(self, wanted: str) -> Slot:
        """A deleted snapshot by the name it is shown under in the trash, or its id. Raises NoSuchSnapshotError."""
        trash = self.trash()
        shown = trash_names(trash).get(wanted)
        return shown or _by_id(trash, wanted) or _missing(wanted, "it may have been collected already", "in the trash")

    def deadline_ns(self, slot: Slot) -> int:
        """Until when a deleted snapshot can surely be undeleted (nanoseconds since 1970)."""
        return slot.deleted_ns + WINDOW_NS

    # --- changing ----------------------------------------------------------------------------------------------

    def delete(self, slot: Slot) -> Slot:
        """Move to the trash, durable. Raises BusyError for a pinned one, NoSuchSnapshotError for one that is gone."""
        with self.lock:
            now = self._current(slot, SlotState.LIVE)
            require_unpinned(now)
            gone = replace(now, state=SlotState.TRASH, deleted_ns=max(1, self._clock.now_ns()))
            self._catalog.change([gone])
        self._events.add("snapshot.deleted", {"name": gone.name, "id": id_text(gone.snapshot_id)})
        return gone

    def undelete(self, slot: Slot, name: str | None = None) -> Slot:
        """Take out of the trash, under its own name or another. Raises NameTakenError, NoSuchSnapshotError."""
        with self.lock:
            now = self._current(slot, SlotState.TRASH)
            wanted = now.name if name is None else name
            check_name(wanted)
            self._require_free(wanted, now)
            back = replace(now, state=SlotState.LIVE, deleted_ns=0, name=wanted)
            self._catalog.change([back])
        self._events.add("snapshot.undeleted", {"name": back.name, "id": id_text(back.snapshot_id)})
        return back

    def rename(self, slot: Slot, name: str) -> Slot:
        """Give another name; an implicit snapshot becomes a named one, which no rule deletes.

        Raises UsageError for an impossible name, NameTakenError, NoSuchSnapshotError, and BusyError for a pinned one:
        who pinned it finds it where it was.
        """
        check_name(name)
        with self.lock:
            now = self._current(slot, SlotState.LIVE)
            if now.name == name:
                return now
            require_unpinned(now)
            self._require_free(name, now)
            renamed = replace(now, name=name, kind=SnapshotKind.NAMED)
            self._catalog.change([renamed])
        return renamed

    def pin(self, slot: Slot, *, pinned: bool) -> Slot:
        """Forbid deletion, or allow it again."""
        with self.lock:
            now = self._current(slot, SlotState.LIVE)
            if now.pinned == pinned:
                return now
            changed = replace(now, pinned=pinned)
            self._catalog.change([changed])
        return changed

    def _current(self, slot: Slot, state: SlotState) -> Slot:
        now = self._catalog.get(slot.snapshot_id)
        if now.state != state or (state == SlotState.LIVE and not is_listed(now)):
            where = "in the trash" if state == SlotState.TRASH else "a snapshot any more"
            raise NoSuchSnapshotError(f"'{slot.name}' is not {where}.")
        return now

    def _require_free(self, name: str, but: Slot | None = None) -> None:
        for other in self.listed():
            if other.name == name and (but is None or other.snapshot_id != but.snapshot_id):
                raise NameTakenError(f"There is a snapshot '{name}' already.")

    def require_name(self, name: str) -> None:
        """Raises UsageError or NameTakenError unless a new snapshot can be called `name`."""
        check_name(name)
        self._require_free(name)

    # --- holding -----------------------------------------------------------------------------------------------

    @contextmanager
    def hold(self, snapshot_id: SnapshotId) -> Iterator[None]:
        """While something of it is open, an ordinary collection leaves a deleted snapshot alone."""
        with self._counted(self._held, snapshot_id):
            yield

    @contextmanager
    def need(self, snapshot_id: SnapshotId) -> Iterator[None]:
        """While a new snapshot is made from it, every collection leaves this one alone, deleted or not.

        Raises NoSuchSnapshotError where it is gone already.
        """
        with self._counted(self._needed, snapshot_id):
            self._catalog.get(snapshot_id)
            yield

    def is_needed(self, snapshot_id: SnapshotId) -> bool:
        """Whether a new snapshot is being made from it, so that deleting it would free nothing."""
        with self.lock:
            return snapshot_id in self._needed

    @contextmanager
    def _counted(self, counter: Counter[SnapshotId], snapshot_id: SnapshotId) -> Iterator[None]:
        with self.lock:
            counter[snapshot_id] += 1
        try:
            yield
        finally:
            with self.lock:
                counter[snapshot_id] -= 1
                if not counter[snapshot_id]:
                    del counter[snapshot_id]

    def expired(self, safety: Safety, now_ns: int) -> list[Slot]:
        """Deleted snapshots that a collection takes now, longest deleted first.

        FULL: those deleted WINDOW_NS ago that nothing is open in. NONE: all but those that are needed. A clock that
        went back since makes none older than it is.
        """
        with self.lock:
            needed, held = set(self._needed), set(self._held)
            trash = [slot for slot in self.trash() if slot.snapshot_id not in needed]
        if safety is Safety.FULL:
            trash = [slot for slot in trash if slot.snapshot_id not in held and now_ns - slot.deleted_ns >= WINDOW_NS]
        return sorted(trash, key=lambda slot: (slot.deleted_ns, slot.snapshot_id))


def id_text(snapshot_id: SnapshotId) -> str:
    """A snapshot's id as people and JSON see it."""
    return f"{snapshot_id:0{ID_DIGITS}x}"


def require_unpinned(slot: Slot) -> None:
    """Raises BusyError for a pinned snapshot: whoever pinned it finds it, and where it was."""
    if slot.pinned:
        raise BusyError(f"'{slot.name}' is pinned; unpin it first (ballast snapshot unpin REPO {slot.name}).")


def is_listed(slot: Slot) -> bool:
    """Whether a slot is shown under `snapshots/`."""
    return slot.state == SlotState.LIVE and slot.kind != SnapshotKind.PROVISIONAL


def _by_id(slots: list[Slot], wanted: str) -> Slot | None:
    if len(wanted) != ID_DIGITS:
        return None
    return next((slot for slot in slots if id_text(slot.snapshot_id) == wanted.lower()), None)


def _missing(wanted: str, hint: str, where: str = "") -> Slot:
    place = f" {where}" if where else ""
    raise NoSuchSnapshotError(f"There is no snapshot '{wanted}'{place}; {hint}.")
