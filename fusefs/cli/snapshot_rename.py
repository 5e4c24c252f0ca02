"""`ballast snapshot rename`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import Change, Fields, carry_out, told
from repository.errors import EXIT_DONE
from repository.repo import Repository


def run(args: argparse.Namespace) -> int:
    """Give a snapshot another name."""
    name, new_name = str(args.name), str(args.new_name)

    def here(repo: Repository) -> Fields:
        return told(repo.rename(repo.find(name), new_name))

    answer = carry_out(args.repo, [Change("rename", {"snapshot": name, "name": new_name}, here)])[0]
    if args.json:
        print_json(answer)
    else:
        print_line(f"{name} is now called {answer['name']}.")
    return EXIT_DONE
