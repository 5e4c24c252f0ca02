"""`ballast snapshot undelete`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import change
from fusefs.wire import Json
from repository.errors import EXIT_DONE, UsageError
from repository.repo import Repository
from repository.snapshots import id_text


def run(args: argparse.Namespace) -> int:
    """Take deleted snapshots back."""
    if args.name is not None and len(args.names) > 1:
        raise UsageError("--name goes with one snapshot only.")
    documents = []
    for wanted in args.names:

        def here(repo: Repository, wanted: str = wanted) -> dict[str, Json]:
            slot = repo.undelete(repo.snapshots.find_trash(wanted), args.name)
            return {"id": id_text(slot.snapshot_id), "name": slot.name}

        document = change(args.repo, "undelete", {"snapshot": wanted, "name": args.name}, here)
        documents.append(document)
        if not args.json:
            print_line(f"Undeleted {document['name']}.")
    if args.json:
        print_json(documents)
    return EXIT_DONE
