"""`ballast snapshot pin` and `unpin`."""

import argparse
from functools import partial

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import Change, Fields, carry_out, told
from repository.errors import EXIT_DONE
from repository.repo import Repository


def run(args: argparse.Namespace) -> int:
    """Forbid the deletion of snapshots, or allow it again."""
    pinned = args.command == "pin"
    changes = [
        Change(str(args.command), {"snapshot": wanted}, partial(_pin, wanted=wanted, pinned=pinned))
        for wanted in args.names
    ]
    answers = carry_out(args.repo, changes)
    if args.json:
        print_json([{**answer, "pinned": pinned} for answer in answers])
    else:
        for answer in answers:
            print_line(f"{'Pinned' if pinned else 'Unpinned'} {answer['name']}.")
    return EXIT_DONE


def _pin(repo: Repository, wanted: str, pinned: bool) -> Fields:
    slot = repo.find(wanted)
    return told(repo.pin(slot) if pinned else repo.unpin(slot))
