"""`ballast reserve status`, `release` and `restore`."""

import argparse

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import reading, writing_unmounted
from repository.errors import EXIT_DONE
from repository.space import ReserveState
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Look at the reserve, give its room away, or make it whole."""
    match args.command:
        case "status":
            with reading(args.repo) as repo:
                state = repo.space.reserve()
        case "release":
            with writing_unmounted(args.repo) as repo:
                repo.space.release(repo.space.reserve().bytes_)
                state = repo.space.reserve()
        case _:
            with writing_unmounted(args.repo) as repo:
                state = repo.space.restore()
    if args.json:
        print_json({"whole": state.whole, "bytes": state.bytes_, "wanted_bytes": state.wanted_bytes})
    else:
        print_line(_text(state))
    return EXIT_DONE


def _text(state: ReserveState) -> str:
    if not state.wanted_bytes:
        return "This repository runs without a reserve."
    if state.whole:
        return f"The reserve ({format_size(state.wanted_bytes)}) is whole."
    return (
        f"The reserve ({format_size(state.wanted_bytes)}) is missing {format_size(state.missing_bytes)}; until it is "
        "whole again nothing new is stored."
    )
