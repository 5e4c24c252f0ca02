"""`ballast snapshot pin` and `unpin`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import change
from fusefs.wire import Json
from repository.errors import EXIT_DONE
from repository.repo import Repository
from repository.snapshots import id_text


def run(args: argparse.Namespace) -> int:
    """Forbid the deletion of snapshots, or allow it again."""
    pinned = args.command == "pin"
    documents = []
    for wanted in args.names:

        def here(repo: Repository, wanted: str = wanted) -> dict[str, Json]:
            slot = repo.find(wanted)
            slot = repo.pin(slot) if pinned else repo.unpin(slot)
            return {"id": id_text(slot.snapshot_id), "name": slot.name}

        document = change(args.repo, args.command, {"snapshot": wanted}, here)
        documents.append({**document, "pinned": pinned})
        if not args.json:
            print_line(f"{'Pinned' if pinned else 'Unpinned'} {document['name']}.")
    if args.json:
        print_json(documents)
    return EXIT_DONE
