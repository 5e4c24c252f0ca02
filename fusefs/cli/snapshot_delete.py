"""`ballast snapshot delete`."""

import argparse

from fusefs.cli.output import Json, counted, print_json, print_line
from fusefs.cli.repositories import change, reading
from fusefs.wire import Json as WireJson
from repository.errors import EXIT_DONE, BusyError
from repository.format.catalog import Slot
from repository.repo import Repository
from repository.snapshots import id_text
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Move snapshots to the trash, or say what that would free. All are looked for before the first goes."""
    with reading(args.repo) as repo:
        slots = _found(repo, args.names)
        before = repo.reclaimable_bytes()
        nbytes = repo.reclaimable_bytes(slots) - before
    document: dict[str, Json] = {
        "snapshots": [{"id": id_text(slot.snapshot_id), "name": slot.name} for slot in slots],
        "freed_bytes": nbytes,
        "dry_run": bool(args.dry_run),
    }
    if not args.dry_run:
        for slot in slots:
            change(args.repo, "delete", {"snapshot": id_text(slot.snapshot_id)}, _deleter(slot))
    if args.json:
        print_json(document)
        return EXIT_DONE
    names = ", ".join(slot.name for slot in slots)
    size = f"{format_size(nbytes)} ({nbytes:,} bytes)"
    if args.dry_run:
        print_line(f"Deleting {names} would free {size} once collected.")
    else:
        print_line(
            f"Deleted {names}. {size} come back at the first collection after 24 hours, or at once with "
            f"'ballast gc {args.repo} --safety none'; until then 'ballast snapshot undelete' takes "
            f"{'it' if len(slots) == 1 else counted(len(slots), 'snapshot')} back."
        )
    return EXIT_DONE


def _found(repo: Repository, names: list[str]) -> list[Slot]:
    """The snapshots, each once. Raises NoSuchSnapshotError, and BusyError for a pinned one."""
    slots = {slot.snapshot_id: slot for slot in (repo.find(name) for name in names)}
    for slot in slots.values():
        if slot.pinned:
            raise BusyError(f"'{slot.name}' is pinned; unpin it first (ballast snapshot unpin REPO {slot.name}).")
    return list(slots.values())


class _deleter:
    """Deletes one snapshot, found by its id."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def __call__(self, repo: Repository) -> dict[str, WireJson]:
        gone = repo.delete(repo.find(id_text(self._slot.snapshot_id)))
        return {"id": id_text(gone.snapshot_id), "name": gone.name}
