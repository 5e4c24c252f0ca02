"""`ballast check`.

Keys of its JSON: `sound`, `packs`, `records`, `snapshots`, `read_bytes`, `findings` [{`severity`, `place`, `what`}],
`affected` [{`path`, `snapshots`, `what`}]: files that what was found takes something from.
"""

import argparse

from fusefs.cli.output import json_path, print_json, print_line
from fusefs.cli.progress import Console
from fusefs.cli.repositories import reading
from repository.errors import EXIT_DONE, EXIT_FAILED


def run(args: argparse.Namespace) -> int:
    """Verify a repository. Exit 1 where something is damaged."""
    console = Console()
    with reading(args.repo) as repo:
        try:
            report = repo.check(read_data=args.read_data, progress=console)
        finally:
            console.close()
    if args.json:
        print_json(
            {
                "sound": report.is_sound,
                "packs": report.packs,
                "records": report.records,
                "snapshots": report.snapshots,
                "read_bytes": report.read_bytes,
                "findings": [
                    {"severity": one.severity.value, "place": one.place, "what": one.what} for one in report.findings
                ],
                "affected": [
                    {"path": json_path(one.path), "snapshots": list(one.snapshots), "what": one.what}
                    for one in report.affected
                ],
            }
        )
    else:
        print_line(report.text())
    return EXIT_DONE if report.is_sound else EXIT_FAILED
