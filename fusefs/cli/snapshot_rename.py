"""`ballast snapshot rename`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import change
from fusefs.wire import Json
from repository.errors import EXIT_DONE
from repository.repo import Repository
from repository.snapshots import id_text


def run(args: argparse.Namespace) -> int:
    """Give a snapshot another name."""

    def here(repo: Repository) -> dict[str, Json]:
        slot = repo.rename(repo.find(args.name), args.new_name)
        return {"id": id_text(slot.snapshot_id), "name": slot.name}

    document = change(args.repo, "rename", {"snapshot": args.name, "name": args.new_name}, here)
    if args.json:
        print_json(document)
    else:
        print_line(f"{args.name} is now called {document['name']}.")
    return EXIT_DONE
