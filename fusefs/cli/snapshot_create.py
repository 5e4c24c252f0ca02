"""`ballast snapshot create`.

Keys of its JSON: those of a snapshot in `snapshot list` without `unique_bytes`, and `parent`, `directories`,
`changed_files`, `unchanged_files`, `stored_bytes`, `problems`, `deleted_snapshots` (names of those that --auto-delete
gave up).
"""

import argparse
import os

from fusefs import mountpoints
from fusefs.cli.output import counted, print_json, print_line
from fusefs.cli.progress import Console
from fusefs.cli.recoveries import given_up, recoveries_since, sentence
from fusefs.cli.repositories import slot_json, writing_unmounted
from repository.create.command import Created, CreateRequest, create_snapshot
from repository.create.exclude import Excludes, pattern_lines
from repository.errors import EXIT_DONE, EXIT_PARTIAL, UsageError
from repository.format.events import Event
from repository.recovery import RecoverySettings
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Store files as a new snapshot."""
    request = CreateRequest(
        paths=[os.fsencode(path) for path in args.paths],
        name=args.name,
        excludes=Excludes(_patterns(args.excludes)),
        exclude_caches=args.exclude_caches,
        one_file_system=args.one_file_system,
        mounts=frozenset(os.fsencode(mount.path) for mount in mountpoints.ballast_mounts()),
        estimate=args.estimate,
    )
    console = Console()
    with writing_unmounted(args.repo, "copy the files into {mount}/live") as repo:
        repo.recovery.settings = RecoverySettings(args.auto_delete, args.min_snapshots, args.deletion_exponent)
        before = max((event.serial for event in repo.events.events()), default=0)
        try:
            created = create_snapshot(repo, request, console, console)
        finally:
            console.close()
        recoveries = recoveries_since(repo, before)
    _print(created, console.problems, recoveries, as_json=args.json)
    return EXIT_PARTIAL if console.problems else EXIT_DONE


def _patterns(given: list[tuple[str, str]]) -> list[bytes]:
    """Patterns of --exclude and --exclude-from, in the order given."""
    lines: list[bytes] = []
    for form, text in given:
        if form == "pattern":
            lines.append(os.fsencode(text))
            continue
        try:
            with open(text, "rb") as file:
                lines += pattern_lines(file.read())
        except OSError as error:
            raise UsageError(f"The patterns in '{text}' cannot be read: {error.strerror}.") from error
    return lines


def _print(created: Created, problems: int, recoveries: list[Event], *, as_json: bool) -> None:
    slot, counts = created.slot, created.counts
    if as_json:
        print_json(
            {
                **slot_json(slot),
                "parent": created.parent,
                "directories": counts.directories,
                "changed_files": created.changed_files,
                "unchanged_files": counts.unchanged_files,
                "stored_bytes": created.stored_bytes,
                "problems": problems,
                "deleted_snapshots": given_up(recoveries),
            }
        )
        return
    print_line(
        f"Snapshot {slot.name}: {counted(slot.totals.files, 'file')}, {format_size(slot.totals.content_bytes)}; "
        f"{counted(created.changed_files, 'file')} new or changed, {format_size(created.stored_bytes)} added."
    )
    if problems:
        print_line(f"{counted(problems, 'file')} could not be stored as they are; see the lines above.")
    if recoveries:
        print_line(sentence(recoveries) + ".")
    if gone := given_up(recoveries):
        print_line(f"Given up to make room: {', '.join(gone)}.")
