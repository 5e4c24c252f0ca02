"""`ballast mount REPO MNT`."""

import argparse
from typing import Final

from repository.errors import EXIT_DONE, VolumeError
from repository.policy.schedule import Pace

INSTALL: Final = (
    "Mounting needs pyfuse3, which is not installed: pip install 'ballastfs[mount]' "
    "(that compiles it; it wants gcc, pkg-config and libfuse3-dev)."
)


def run(args: argparse.Namespace) -> int:
    """Mounts; returns when it serves, or with --foreground when it ended."""
    try:
        from fusefs.mount import MountSettings, mount
    except ImportError as error:
        if error.name != "pyfuse3":
            raise
        raise VolumeError(INSTALL) from None
    mount(
        MountSettings(
            repository=args.repo,
            mountpoint=args.mountpoint,
            read_only=args.read_only,
            foreground=args.foreground,
            allow_other=args.allow_other,
            pace=Pace(args.settle, args.interval, args.max_age),
            keep_all=args.keep_all,
            auto_delete=args.auto_delete,
            min_snapshots=args.min_snapshots,
            deletion_exponent=args.deletion_exponent,
            write_deadline_s=args.write_deadline,
        )
    )
    return EXIT_DONE
