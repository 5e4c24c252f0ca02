"""`ballast snapshot list`."""

import argparse
import os
from collections.abc import Sequence

from fusefs.cli.output import Json, local_time, print_json, print_table, shown, utc_time
from fusefs.cli.repositories import reading, slot_json
from repository.errors import EXIT_DONE, DamagedError
from repository.format.catalog import Slot
from repository.policy.naming import trash_names
from repository.repo import Repository
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """List snapshots, or deleted ones.

    The provisional one of `live` is in the JSON always, by its kind, but in the table only with --all: the next
    snapshot takes its place, so there is nothing that could be done to it.
    """
    with reading(args.repo) as repo:
        if args.trash:
            _print_trash(repo, as_json=args.json)
            return EXIT_DONE
        slots = repo.snapshots.present() if args.all or args.json else repo.listed()
        unique = _unique_bytes(repo, slots)
    if args.json:
        print_json([{**slot_json(slot), "unique_bytes": nbytes} for slot, nbytes in zip(slots, unique, strict=True)])
        return EXIT_DONE
    rows = [
        (
            slot.name,
            local_time(slot.time_ns),
            _kind(slot),
            f"{slot.totals.files:,}",
            format_size(slot.totals.content_bytes),
            "?" if nbytes is None else format_size(nbytes),
            shown(os.fsencode(slot.source)),
        )
        for slot, nbytes in zip(slots, unique, strict=True)
    ]
    print_table(("NAME", "TIME", "KIND", "FILES", "SIZE", "UNIQUE", "SOURCE"), rows, frozenset((3, 4, 5)))
    return EXIT_DONE


def _unique_bytes(repo: Repository, slots: list[Slot]) -> Sequence[int | None]:
    """What only each of them keeps; all unknown where damage hides it, for a list must be had then too."""
    try:
        return repo.unique_bytes(slots)
    except DamagedError:
        return [None] * len(slots)


def _kind(slot: Slot) -> str:
    return slot.kind.name.lower() + (", pinned" if slot.pinned else "")


def _print_trash(repo: Repository, *, as_json: bool) -> None:
    shown = trash_names(repo.trash())
    if as_json:
        documents: list[Json] = []
        for name, slot in shown.items():
            until = utc_time(repo.snapshots.deadline_ns(slot))
            documents.append({**slot_json(slot), "name": name, "deleted": utc_time(slot.deleted_ns), "until": until})
        print_json(documents)
        return
    rows = [
        (name, local_time(slot.time_ns), local_time(slot.deleted_ns), local_time(repo.snapshots.deadline_ns(slot)))
        for name, slot in shown.items()
    ]
    print_table(("NAME", "TIME", "DELETED", "KEPT UNTIL"), rows)
