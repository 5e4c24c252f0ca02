"""`ballast status`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import reading
from repository.errors import EXIT_DONE


def run(args: argparse.Namespace) -> int:
    """Show how a repository is. Reads the files itself, also beside a mount."""
    with reading(args.repo) as repo:
        status = repo.status()
    if args.json:
        print_json(status.to_json())
    else:
        print_line(status.text())
    return EXIT_DONE
