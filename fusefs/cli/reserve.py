"""`ballast reserve status`, `release` and `restore`."""

import argparse
from typing import Final

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import reading, writing_unmounted
from repository.errors import EXIT_DONE, NoSpaceError
from repository.space import ReserveState
from repository.status import reserve_json
from repository.units import format_size

INSTEAD: Final = "it lends the reserve and gives it back by itself"


def run(args: argparse.Namespace) -> int:
    """Look at the reserve, give its room away, or make it whole. Exit 28 where it doesn't fit."""
    match args.command:
        case "status":
            with reading(args.repo) as repo:
                state = repo.space.reserve()
        case "release":
            with writing_unmounted(args.repo, INSTEAD) as repo:
                repo.space.release(repo.space.reserve().bytes_)
                state = repo.space.reserve()
        case _:
            with writing_unmounted(args.repo, INSTEAD) as repo:
                state = repo.space.restore()
                if not state.whole:
                    raise NoSpaceError(repo.space.shortage(), state.missing_bytes)
    if args.json:
        print_json(reserve_json(state))
    else:
        print_line(_text(state, args.repo))
    return EXIT_DONE


def _text(state: ReserveState, repo: str) -> str:
    if not state.wanted_bytes:
        return "This repository runs without a reserve."
    if state.whole:
        return f"The reserve ({format_size(state.wanted_bytes)}) is whole."
    return (
        f"The reserve ({format_size(state.wanted_bytes)}) is missing {format_size(state.missing_bytes)}; until it is "
        f"whole again nothing new is stored. 'ballast reserve restore {repo}', or any other command that writes, makes "
        "it whole as soon as it fits."
    )
