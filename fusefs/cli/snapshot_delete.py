"""`ballast snapshot delete`.

Keys of its JSON: `snapshots` [{`id`, `name`}], `freed_bytes` (what their collection gives back, beyond what is garbage
already; null where damage hides it), `collected_bytes` (what came back at once, because the reserve was missing),
`reserve_whole`, `dry_run`.
"""

import argparse
from typing import NamedTuple

from fusefs.cli.exactly import look_closer
from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import reading, through_mount, writing
from repository.errors import EXIT_DONE, DamagedError, LockedError
from repository.format.catalog import Slot
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.snapshots import id_text, require_unpinned
from repository.units import format_size


class Outcome(NamedTuple):
    """What came of a deletion besides the slots: bytes that came back at once, and the reserve as it is then."""

    collected_bytes: int
    was_whole: bool
    whole: bool
    shortage: str


class Deletion(NamedTuple):
    """Snapshots that went, or would go: their slots as they were, what their collection gives back, and the rest."""

    slots: list[Slot]
    nbytes: int | None
    outcome: Outcome


def run(args: argparse.Namespace) -> int:
    """Move snapshots to the trash, or say what that would free. All are looked for before the first goes.

    While the reserve isn't whole they are collected at once.
    """
    slots, nbytes, outcome = _rehearsed(args.repo, args.names) if args.dry_run else _delete(args.repo, args.names)
    if args.json:
        print_json(
            {
                "snapshots": [{"id": id_text(slot.snapshot_id), "name": slot.name} for slot in slots],
                "freed_bytes": nbytes,
                "collected_bytes": outcome.collected_bytes,
                "reserve_whole": outcome.whole,
                "dry_run": bool(args.dry_run),
            }
        )
    else:
        names = ", ".join(slot.name for slot in slots)
        whole = outcome.whole
        print_line(_planned(names, nbytes, whole) if args.dry_run else _done(names, nbytes, args.repo, outcome))
    return EXIT_DONE


def _found(repo: Repository, names: list[str]) -> list[Slot]:
    """The snapshots, each once. Raises NoSuchSnapshotError, and BusyError for a pinned one."""
    slots = {slot.snapshot_id: slot for slot in (repo.find(name) for name in names)}
    for slot in slots.values():
        require_unpinned(slot)
    return list(slots.values())


def _freed_bytes(repo: Repository, slots: list[Slot], *, exactly: bool) -> int | None:
    """What comes back when these are collected, beyond what is garbage now; None where damage hides it.

    Not `exactly`: a quick answer, which may be too small.
    """
    try:
        if exactly:
            look_closer(repo)
        return repo.reclaimable_bytes(slots) - repo.reclaimable_bytes()
    except DamagedError:
        return None  # deleting does not depend on it


def _rehearsed(repo: str, names: list[str]) -> Deletion:
    """Nothing is written."""
    with reading(repo) as opened:
        slots = _found(opened, names)
        nbytes = _freed_bytes(opened, slots, exactly=True)
        whole = opened.space.reserve().whole
    return Deletion(slots, nbytes, Outcome(0, whole, whole, ""))


def _delete(repo: str, names: list[str]) -> Deletion:
    """Here, in one opening, or where a mount holds the lock, there."""
    try:
        with writing(repo) as opened:
            return _delete_here(opened, names)
    except LockedError as locked:
        return _delete_there(repo, names, locked)


def _delete_here(repo: Repository, names: list[str]) -> Deletion:
    slots = _found(repo, names)
    nbytes = _freed_bytes(repo, slots, exactly=False)
    before = repo.space.reserve()
    for slot in slots:
        repo.delete(slot)
    collected = repo.recovery.deleted()
    if collected:  # no more than it took; but what else of them is garbage now is of no use to anybody
        collected += repo.recovery.collect(Safety.NONE, trash=False).freed_bytes
    whole = repo.space.reserve().whole
    return Deletion(slots, nbytes, Outcome(collected, before.whole, whole, "" if whole else repo.space.shortage()))


def _delete_there(repo: str, names: list[str], locked: LockedError) -> Deletion:
    with reading(repo) as opened:
        slots = _found(opened, names)
        nbytes = _freed_bytes(opened, slots, exactly=False)
        was_whole = opened.space.reserve().whole
    collected = 0
    for slot in slots:
        answer = through_mount(repo, "delete", {"snapshot": id_text(slot.snapshot_id)}, locked)
        freed = answer.get("collected_bytes")
        collected += freed if isinstance(freed, int) else 0
    with reading(repo) as opened:
        whole = opened.space.reserve().whole
        return Deletion(slots, nbytes, Outcome(collected, was_whole, whole, "" if whole else opened.space.shortage()))


def _size(nbytes: int | None) -> str:
    return "an unknown size (something is damaged)" if nbytes is None else f"{format_size(nbytes)} ({nbytes:,} bytes)"


def _planned(names: str, nbytes: int | None, whole: bool) -> str:
    when = "once it is collected" if whole else "at once, because the reserve is missing"
    return f"Deleting {names} would free {_size(nbytes)} {when}."


def _done(names: str, nbytes: int | None, repo: str, outcome: Outcome) -> str:
    if outcome.was_whole and not outcome.collected_bytes:
        return (
            f"Deleted {names}. The next collection after 24 hours frees {_size(nbytes)}, "
            f"'ballast gc {repo} --safety none' does it now; until then 'ballast snapshot undelete' takes back."
        )
    text = f"Deleted {names}. {_size(outcome.collected_bytes)} came back at once, because the reserve was missing."
    return f"{text} It is whole again." if outcome.whole else f"{text} {outcome.shortage}"
