"""`ballast snapshot create`."""

import argparse
import os

from fusefs import mountpoints
from fusefs.cli.output import counted, print_json, print_line
from fusefs.cli.progress import Console
from fusefs.cli.repositories import slot_json, writing_unmounted
from repository.create.command import Created, CreateRequest, create_snapshot
from repository.create.exclude import Excludes, pattern_lines
from repository.errors import EXIT_DONE, EXIT_PARTIAL, UsageError
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
    )
    console = Console()
    with writing_unmounted(args.repo) as repo:
        try:
            created = create_snapshot(repo, request, console, console)
        finally:
            console.close()
    _print(created, console.problems, as_json=args.json)
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


def _print(created: Created, problems: int, *, as_json: bool) -> None:
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
            }
        )
        return
    print_line(
        f"Snapshot {slot.name}: {counted(slot.totals.files, 'file')}, {format_size(slot.totals.content_bytes)}; "
        f"{counted(created.changed_files, 'file')} new or changed, {format_size(created.stored_bytes)} added."
    )
    if problems:
        print_line(f"{counted(problems, 'file')} could not be stored as they are; see the lines above.")
