"""Opening repositories for commands, and changing one that is mounted through its mount."""

import os
from collections.abc import Callable
from pathlib import Path

from fusefs.cli.output import Json, utc_time
from fusefs.wire import Json as WireJson
from repository.errors import LockedError
from repository.format.catalog import Slot
from repository.repo import Repository
from repository.snapshots import id_text


def reading(repo: str) -> Repository:
    """The repository at `repo`, for reading: no lock, nothing is written."""
    return Repository.open(Path(os.path.abspath(repo)), writable=False)


def writing(repo: str) -> Repository:
    """The repository at `repo`, for writing. Raises LockedError."""
    return Repository.open(Path(os.path.abspath(repo)), writable=True)


def change(
    repo: str, verb: str, fields: dict[str, WireJson], locally: Callable[[Repository], dict[str, WireJson]]
) -> dict[str, WireJson]:
    """Carry out a change: here, or, where a mount holds the lock, there. The answer of either has the same keys."""
    try:
        opened = writing(repo)
    except LockedError as locked:
        from fusefs import control  # late: it brings trio along

        try:
            return control.request(os.path.abspath(repo), verb, fields)
        except control.NotMountedError:
            raise locked from None
    with opened:
        return locally(opened)


def slot_json(slot: Slot, unique_bytes: int | None = None) -> dict[str, Json]:
    """A snapshot as `snapshot list --json` shows it."""
    document: dict[str, Json] = {
        "id": id_text(slot.snapshot_id),
        "name": slot.name,
        "time": utc_time(slot.time_ns),
        "source": slot.source,
        "kind": slot.kind.name.lower(),
        "pinned": slot.pinned,
        "files": slot.totals.files,
        "content_bytes": slot.totals.content_bytes,
    }
    if unique_bytes is not None:
        document["unique_bytes"] = unique_bytes
    return document
