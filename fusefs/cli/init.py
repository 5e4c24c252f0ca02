"""`ballast init`."""

import argparse
import os
from pathlib import Path

from fusefs.cli.interrupts import INTERRUPTS
from fusefs.cli.output import print_json, print_line
from repository.errors import EXIT_DONE
from repository.format.config import CONFIG_NAME
from repository.policy.volumes import not_promised
from repository.repo import Repository
from repository.units import format_size


def run(args: argparse.Namespace) -> int:
    """Make a repository."""
    path = Path(os.path.abspath(args.repo))
    with INTERRUPTS.deferred():
        config = Repository.init(
            path, reserve_bytes=args.reserve, headspace_bytes=args.headspace, quota_bytes=args.quota
        )
    if args.json:
        print_json(
            {
                "path": str(path),
                "id": config.repository_id.hex(),
                "volume_class": config.volume_class,
                "reserve_bytes": config.reserve_bytes,
                "headspace_bytes": config.headspace_bytes,
                "quota_bytes": config.quota_bytes,
            }
        )
    else:
        reserve = f"a reserve of {format_size(config.reserve_bytes)}" if config.reserve_bytes else "no reserve"
        print_line(f"Made a repository in {path}, with {reserve}.")
        private = (path / CONFIG_NAME).stat().st_mode & 0o077 == 0
        if (missing := not_promised(config.volume_class, private=private)) is not None:
            print_line(missing)
    return EXIT_DONE
