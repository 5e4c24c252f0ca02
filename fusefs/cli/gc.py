"""`ballast gc`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.progress import Console
from fusefs.cli.repositories import Change, Fields, carry_out, reading
from repository.errors import EXIT_DONE
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Give back the room of what no snapshot needs; here, or through the mount."""
    safety = Safety.NONE if args.safety == "none" else Safety.FULL
    console = Console()
    if args.dry_run:
        with reading(args.repo) as repo:
            report = repo.gc(safety=safety, dry_run=True)
        document, text = report.to_json(), report.text()
    else:
        texts: list[str] = []

        def here(repo: Repository) -> Fields:
            done = repo.gc(safety=safety, progress=console)
            texts.append(done.text())
            return done.to_json()

        fields: Fields = {"safety": safety.value, "dry_run": False}
        document = carry_out(args.repo, [Change("gc", fields, here)])[0]
        console.close()
        text = texts[0] if texts else _freed(document)
    if args.json:
        print_json(document)
    else:
        print_line(text[:1].upper() + text[1:])
    return EXIT_DONE


def _freed(document: Fields) -> str:
    """What the mount's answer says, in a line."""
    nbytes = document.get("freed_bytes")
    return f"the mount freed {format_size(nbytes)}" if isinstance(nbytes, int) else "the mount collected"
