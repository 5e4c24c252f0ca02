"""`ballast snapshot delete`."""

import argparse
from functools import partial

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import Change, Fields, carry_out, reading, told
from repository.errors import EXIT_DONE, BusyError, DamagedError
from repository.format.catalog import Slot
from repository.repo import Repository
from repository.snapshots import id_text
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Move snapshots to the trash, or say what that would free. All are looked for before the first goes."""
    with reading(args.repo) as repo:
        slots = _found(repo, args.names)
        nbytes = _freed_bytes(repo, slots)
    names = [slot.name for slot in slots]
    if not args.dry_run:
        ids = [id_text(slot.snapshot_id) for slot in slots]
        carry_out(
            args.repo, [Change("delete", {"snapshot": wanted}, partial(_delete, wanted=wanted)) for wanted in ids]
        )
    if args.json:
        print_json(
            {
                "snapshots": [{"id": id_text(slot.snapshot_id), "name": slot.name} for slot in slots],
                "freed_bytes": nbytes,
                "dry_run": bool(args.dry_run),
            }
        )
    else:
        print_line(_text(names, nbytes, args.repo, dry_run=args.dry_run))
    return EXIT_DONE


def _found(repo: Repository, names: list[str]) -> list[Slot]:
    """The snapshots, each once. Raises NoSuchSnapshotError, and BusyError for a pinned one."""
    slots = {slot.snapshot_id: slot for slot in (repo.find(name) for name in names)}
    for slot in slots.values():
        if slot.pinned:
            raise BusyError(f"'{slot.name}' is pinned; unpin it first (ballast snapshot unpin REPO {slot.name}).")
    return list(slots.values())


def _freed_bytes(repo: Repository, slots: list[Slot]) -> int | None:
    """What comes back when these are collected, beyond what is garbage now; None where damage hides it."""
    try:
        return repo.reclaimable_bytes(slots) - repo.reclaimable_bytes()
    except DamagedError:
        return None  # deleting does not depend on it


def _delete(repo: Repository, wanted: str) -> Fields:
    return told(repo.delete(repo.find(wanted)))


def _text(names: list[str], nbytes: int | None, repo: str, *, dry_run: bool) -> str:
    size = "an unknown size (something is damaged)" if nbytes is None else f"{format_size(nbytes)} ({nbytes:,} bytes)"
    if dry_run:
        return f"Deleting {', '.join(names)} would free {size} once it is collected."
    return (
        f"Deleted {', '.join(names)}. The next collection after 24 hours frees {size}, "
        f"'ballast gc {repo} --safety none' does it now; until then 'ballast snapshot undelete' takes back."
    )
