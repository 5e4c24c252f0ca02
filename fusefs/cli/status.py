"""`ballast status`."""

import argparse
import os
from dataclasses import replace
from typing import Final

from fusefs.cli.output import print_json, print_line
from fusefs.cli.repositories import reading
from repository.errors import EXIT_DONE, BallastError
from repository.status import Status

ANSWER_WAIT_S: Final = 10.0
"""How long the mount is waited for: one that hangs must not keep its owner from looking."""


def run(args: argparse.Namespace) -> int:
    """Show how a repository is. Reads the files itself, also beside a mount; what the mode is, the mount knows."""
    with reading(args.repo) as repo:
        status = repo.status()
    status = replace(status, mode=_mode(args.repo, status))
    if args.json:
        print_json(status.to_json())
    else:
        print_line(status.text())
    return EXIT_DONE


def _mode(repo: str, status: Status) -> str:
    """As the mount says, if there is one and it answers this user; else as the disk tells."""
    if status.holder is None or status.holder.mountpoint is None:
        return status.mode
    from fusefs import control  # late: it brings trio along

    try:
        answer = control.request(os.path.abspath(repo), "status", timeout_s=ANSWER_WAIT_S)["status"]
    except (BallastError, KeyError):
        return status.mode
    mode = answer.get("mode") if isinstance(answer, dict) else None
    return mode if isinstance(mode, str) else status.mode
