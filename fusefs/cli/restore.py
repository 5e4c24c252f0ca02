"""`ballast restore`."""

import argparse
import os

from fusefs import mountpoints
from fusefs.cli.interrupts import INTERRUPTS
from fusefs.cli.output import counted, print_json, print_line
from fusefs.cli.progress import Console
from fusefs.cli.repositories import reading
from repository.errors import EXIT_DONE, EXIT_PARTIAL
from repository.locate import locate
from repository.restore.command import restore
from repository.restore.restore import WhenThere
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Write files of a snapshot into a directory. Exit 3 where some could not be: damaged, not allowed, in the way."""
    when_there = WhenThere.KEEP if args.merge else WhenThere.OVERWRITE if args.overwrite else None
    console = Console()
    with reading(args.repo) as repo:
        what = locate(repo, args.snapshot)
        destination = os.fsencode(os.path.abspath(args.destination))
        try:
            with INTERRUPTS.deferred():
                counts = restore(
                    repo,
                    what,
                    destination,
                    when_there,
                    notices=console,
                    progress=console,
                    estimate=args.estimate and not _in_a_mount(args.destination),
                )
        finally:
            console.close()
    if args.json:
        print_json(
            {
                "snapshot": what.slot.name,
                "path": os.fsdecode(what.path),
                "destination": os.fsdecode(destination),
                "files": counts.files,
                "directories": counts.directories,
                "content_bytes": counts.content_bytes,
                "kept": counts.kept,
                "problems": console.problems,
            }
        )
    else:
        kept = f" {counted(counts.kept, 'file')} were there already." if counts.kept else ""
        print_line(f"Restored {counted(counts.files, 'file')}, {format_size(counts.content_bytes)}.{kept}")
        if console.problems:
            print_line(f"{counted(console.problems, 'problem')}; see the lines above.")
    return EXIT_PARTIAL if console.problems else EXIT_DONE


def _in_a_mount(destination: str) -> bool:
    """Whether files go into a Ballast mount: there, what is restored may take no room at all."""
    path = os.path.realpath(destination)
    return any(path.startswith(mount.path.rstrip("/") + "/") for mount in mountpoints.ballast_mounts())
