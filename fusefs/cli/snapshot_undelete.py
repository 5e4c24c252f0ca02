"""`ballast snapshot undelete`."""

import argparse
from functools import partial

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import Change, Fields, carry_out, told
from repository.errors import EXIT_DONE, UsageError
from repository.repo import Repository


def run(args: argparse.Namespace) -> int:
    """Take deleted snapshots back."""
    if args.name is not None and len(args.names) > 1:
        raise UsageError("--name goes with one snapshot only.")
    changes = [
        Change("undelete", {"snapshot": wanted, "name": args.name}, partial(_undelete, wanted=wanted, name=args.name))
        for wanted in args.names
    ]
    answers = carry_out(args.repo, changes)
    if args.json:
        print_json(answers)
    else:
        for answer in answers:
            print_line(f"Undeleted {answer['name']}.")
    return EXIT_DONE


def _undelete(repo: Repository, wanted: str, name: str | None) -> Fields:
    return told(repo.undelete(repo.snapshots.find_trash(wanted), name))
