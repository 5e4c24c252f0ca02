"""Opening repositories for commands, and changing one that is mounted through its mount."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusefs.cli.interrupts import INTERRUPTS
from fusefs.cli.output import Json, utc_time
from fusefs.cli.recoveries import tell_of_recoveries
from fusefs.wire import Json as WireJson
from repository.errors import LockedError
from repository.format.catalog import Slot
from repository.lock import current_holder
from repository.repo import Repository
from repository.snapshots import id_text
from repository.storage.volume import Volume


def reading(repo: str) -> Repository:
    """The repository at `repo`, for reading: no lock, nothing is written."""
    opened = Repository.open(Path(os.path.abspath(repo)), writable=False)
    tell_of_recoveries(opened)
    return opened


@contextmanager
def writing(repo: str) -> Iterator[Repository]:
    """The repository at `repo`, open for writing inside; signals wait for a safe place. Raises LockedError."""
    with INTERRUPTS.deferred(), Repository.open(Path(os.path.abspath(repo)), writable=True) as opened:
        tell_of_recoveries(opened)
        yield opened


@contextmanager
def writing_unmounted(repo: str, instead: str) -> Iterator[Repository]:
    """As `writing`, for what a mount does not do for others: where one holds the lock, the error says what to do.

    `instead`: what can be done beside the mount at `{mount}`, as the beginning of a sentence.
    """
    try:
        with writing(repo) as opened:
            yield opened
    except LockedError:
        holder = current_holder(Volume(Path(os.path.abspath(repo))))
        if holder is None or holder.mountpoint is None:
            raise
        raise LockedError(
            f"The repository is mounted at {holder.mountpoint}; {instead.format(mount=holder.mountpoint)}, "
            f"or unmount it first: ballast umount {holder.mountpoint}"
        ) from None


Fields = dict[str, WireJson]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a repository: how a mount is asked for it (`verb`, `fields`), and how it is done here.

    Both give an answer with the same keys.
    """

    verb: str
    fields: Fields
    here: Callable[[Repository], Fields]


def carry_out(repo: str, changes: Sequence[Change]) -> list[Fields]:
    """Carry out all changes in their order: here, or, where a mount holds the lock, there; their answers."""
    try:
        with writing(repo) as opened:
            return [change.here(opened) for change in changes]
    except LockedError as locked:
        return [through_mount(repo, change.verb, change.fields, locked) for change in changes]


def through_mount(repo: str, verb: str, fields: Fields, locked: LockedError) -> Fields:
    """Have the mount carry out `verb`. Raises `locked` where whoever holds the lock is no mount."""
    from fusefs import control  # late: it brings trio along

    try:
        return control.request(os.path.abspath(repo), verb, fields)
    except control.NotMountedError:
        raise locked from None


def told(slot: Slot) -> Fields:
    """What a change answers, here as in a mount."""
    return {"id": id_text(slot.snapshot_id), "name": slot.name}


def slot_json(slot: Slot) -> dict[str, Json]:
    """A snapshot as every command's JSON shows it; `snapshot list` adds `unique_bytes`."""
    return {
        "id": id_text(slot.snapshot_id),
        "name": slot.name,
        "time": utc_time(slot.time_ns),
        "source": slot.source,
        "kind": slot.kind.name.lower(),
        "pinned": slot.pinned,
        "files": slot.totals.files,
        "content_bytes": slot.totals.content_bytes,
    }
