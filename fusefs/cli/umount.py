"""`ballast umount MNT`: returns when everything is durable."""

import argparse

from fusefs import control, mountpoints
from repository.errors import EXIT_DONE, BallastError, BusyError, UsageError


def run(args: argparse.Namespace) -> int:
    """Unmounts and says so; BusyError names who is in the way."""
    path = mountpoints.resolved_mountpoint(args.mountpoint)
    there = mountpoints.mounted_at(path)
    if there is None or there.type != mountpoints.FILE_SYSTEM_TYPE:
        raise UsageError(f"Nothing of Ballast is mounted at {path}.")
    try:
        control.ask(control.mount_socket(there.device), "shutdown", {})
    except BusyError:
        raise BusyError(mountpoints.busy_sentence(path)) from None
    except control.NotMountedError:
        return _without_the_mount(path, there)
    print("Safe to remove.")
    return EXIT_DONE


def _without_the_mount(path: str, there: mountpoints.Mounted) -> int:
    """Nobody answers behind the mount: it died (then the mountpoint is cleared), or is somebody else's."""
    if not mountpoints.is_dead(path):
        raise BallastError(f"{path} was mounted by another user; only that user, or root, can unmount it.")
    mountpoints.unmount(path, lazy=True)
    control.mount_socket(there.device).unlink(missing_ok=True)
    print("The mount had died before; its mountpoint is free again. The next mount recovers what was written.")
    return EXIT_DONE
