"""`ballast rebuild`."""

import argparse
import os
from pathlib import Path

from fusefs.cli.interrupts import INTERRUPTS
from fusefs.cli.output import print_json, print_line
from fusefs.cli.progress import Console
from repository.errors import EXIT_DONE
from repository.rebuild import rebuild
from repository.storage.calls import SystemClock
from repository.storage.volume import Volume


def run(args: argparse.Namespace) -> int:
    """Make the caches again, and what the catalog lost, from the packs alone."""
    console = Console()
    try:
        with INTERRUPTS.deferred():
            report = rebuild(Volume(Path(os.path.abspath(args.repo))), SystemClock(), console)
    finally:
        console.close()
    if args.json:
        print_json(
            {
                "packs": report.packs,
                "records": report.records,
                "found": list(report.found),
                "head_lost": report.head_lost,
            }
        )
    else:
        text = report.text()
        print_line(text[:1].upper() + text[1:])
    return EXIT_DONE
