"""Mountpoints seen from outside: what is mounted where, whether it is dead, who keeps it busy, mounting's
preconditions.

Nothing here asks a FUSE server anything unless its name says so: a hung one would hang us.
"""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repository.errors import BallastError, BusyError, UsageError, VolumeError

FILE_SYSTEM_TYPE: Final = "fuse.ballast"
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
UNMOUNT_TIMEOUT_S: Final = 30.0
"""fusermount3 takes milliseconds; longer means that something in the kernel waits for a dead server."""
NAMED_MAX: Final = 8
"""Processes named in one sentence."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of the mount table. `device` is (major, minor); `source` is what `fsname` said."""

    device: tuple[int, int]
    path: str
    type: str
    source: str


@dataclass(frozen=True, slots=True)
class User:
    """A process that keeps a mount busy, and by what."""

    pid: int
    name: str
    what: str


def mounts(table: Path = MOUNT_TABLE) -> list[Mounted]:
    """The mount table of this process, in the order of mounting."""
    text = table.read_bytes().decode("utf-8", "surrogateescape")
    return [mounted for line in text.splitlines() if (mounted := _parse(line)) is not None]


def _parse(line: str) -> Mounted | None:
    before, separator, after = line.partition(" - ")
    fields, tail = before.split(" "), after.split(" ")
    if not separator or len(fields) < 5 or len(tail) < 2:
        return None
    major, _, minor = fields[2].partition(":")
    return Mounted((int(major), int(minor)), _plain(fields[4]), tail[0], _plain(tail[1]))


def _plain(text: str) -> str:
    """Undoes the kernel's octal escapes of blank, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def mounted_at(path: str, table: Path = MOUNT_TABLE) -> Mounted | None:
    """What is mounted at `path` (absolute, resolved), the uppermost if several; None if nothing."""
    return next((one for one in reversed(mounts(table)) if one.path == path), None)


def ballast_mounts() -> list[Mounted]:
    """Every Ballast mount."""
    return [one for one in mounts() if one.type == FILE_SYSTEM_TYPE]


def resolved(path: str | os.PathLike[str]) -> str:
    """`path` made absolute without asking what may be a dead mount at its end."""
    absolute = os.path.abspath(path)
    parent, name = os.path.split(absolute)
    return os.path.join(os.path.realpath(parent), name) if name else absolute


def resolved_mountpoint(path: str | os.PathLike[str]) -> str:
    """`path` as the mount table would call it: symlinks followed to the end, except where a mount sits there
    already."""
    plain = resolved(path)
    return plain if mounted_at(plain) else os.path.realpath(plain)


def is_dead(path: str) -> bool:
    """Whether the FUSE server behind the mount at `path` is gone. Asks the server: statfs, which no cache answers."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def prepare(mountpoint: str, repository: str) -> list[str]:
    """Makes `mountpoint` (resolved) ready to be mounted on; both paths absolute. Returns lines for the user.

    Clears a dead Ballast mount, creates a missing directory. Raises UsageError, BusyError and VolumeError.
    """
    said: list[str] = []
    there = mounted_at(mountpoint)
    if there is not None and there.type == FILE_SYSTEM_TYPE:
        if not is_dead(mountpoint):
            raise BusyError(f"{mountpoint} is a Ballast mount already; unmount it first: ballast umount {mountpoint}")
        unmount(mountpoint, lazy=True)
        said.append(f"Cleared a dead Ballast mount at {mountpoint}.")
    if _within(mountpoint, repository):
        raise UsageError(f"{mountpoint} lies inside the repository {repository}; choose a directory outside.")
    if _within(repository, mountpoint):
        raise UsageError(f"{mountpoint} holds the repository {repository}, which the mount would hide; choose another.")
    try:
        os.makedirs(mountpoint, exist_ok=True)
        empty = not os.listdir(mountpoint)
    except NotADirectoryError:
        raise UsageError(f"{mountpoint} is not a directory.") from None
    except FileExistsError:
        raise UsageError(f"{mountpoint} is not a directory.") from None
    except OSError as error:
        raise VolumeError(f"{mountpoint} cannot be used as a mountpoint: {error.strerror}.", error.errno or 0) from None
    if not empty:
        raise UsageError(f"{mountpoint} is not empty; what it holds would be hidden. Choose an empty directory.")
    return said


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def check_fuse(*, allow_other: bool) -> None:
    """Raises VolumeError with one sentence on what this system lacks for mounting."""
    if not os.path.exists("/dev/fuse"):
        raise VolumeError("This system has no /dev/fuse; load the kernel module: modprobe fuse.")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise VolumeError("You may not open /dev/fuse; ask the administrator for access to it.")
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise VolumeError("fusermount3 is missing; install the package fuse3.")
    if allow_other and not _others_allowed():
        raise VolumeError("--allow-other needs the line 'user_allow_other' in /etc/fuse.conf.")


def _others_allowed(configuration: Path = Path("/etc/fuse.conf")) -> bool:
    try:
        lines = configuration.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Takes the mount at `path` away. Raises BusyError while it is in use (not when lazy), else BallastError."""
    if shutil.which("fusermount3") is not None:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    else:
        command = ["umount", *(["-l"] if lazy else []), "--", path]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=UNMOUNT_TIMEOUT_S,
            text=True,
            errors="replace",
            env=_C_LOCALE,
        )
    except subprocess.TimeoutExpired:
        raise BallastError(f"Unmounting {path} takes too long; something still waits for it.") from None
    if done.returncode == 0 or mounted_at(path) is None:  # somebody else may have been quicker
        return
    words = done.stderr.strip() or f"{command[0]} failed"
    if "busy" in words.lower():
        raise BusyError(f"{path} is in use.")
    raise BallastError(f"{path} could not be unmounted: {words}")


_C_LOCALE: Final = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}
"""So that "busy" is spelled like this."""


def users(path: str) -> list[User]:
    """Processes of which /proc shows that they use something under `path` (all that the caller may see), by pid."""
    found: list[User] = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            what = next(_uses(entry.path, path), None)
            if what is not None:
                found.append(User(int(entry.name), _process_name(entry.path), what))
    return sorted(found, key=lambda user: user.pid)


def _uses(process: str, path: str) -> Iterator[str]:
    """What of the process lies under `path`: working directory, root, open files, mapped files."""
    for link in ("cwd", "root", "exe"):
        target = _readlink(f"{process}/{link}")
        if target is not None and _within(target, path):
            yield target
    try:
        names = os.listdir(f"{process}/fd")
    except OSError:
        names = []
    for name in names:
        target = _readlink(f"{process}/fd/{name}")
        if target is not None and _within(target, path):
            yield target
    try:
        with open(f"{process}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                target = line.rstrip("\n").partition("/")[2]
                if target and _within("/" + target, path):
                    yield "/" + target
    except OSError:
        return


def _readlink(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def directories_in_use(path: str) -> list[int]:
    """Inode numbers of the working (and root) directories under `path` of all processes that the caller may look into.

    Asks the server behind `path` where the kernel does not know; never to be called where it would have to answer.
    """
    found: list[int] = []
    for entry in os.scandir("/proc"):
        for link in ("cwd", "root") if entry.name.isdigit() else ():
            target = _readlink(f"{entry.path}/{link}")
            if target is not None and _within(target, path):
                with suppress(OSError):
                    found.append(os.stat(f"{entry.path}/{link}").st_ino)
    return found


def _process_name(process: str) -> str:
    try:
        return Path(process, "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def busy_sentence(path: str) -> str:
    """One sentence on who keeps `path` busy."""
    found = users(path)
    if not found:
        return f"{path} is in use by a process that cannot be seen from here; close what uses it and try again."
    named = ", ".join(f"{user.name} (pid {user.pid}: {user.what})" for user in found[:NAMED_MAX])
    more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
    return f"{path} is in use by {named}{more}; close it and try again."


def raise_read_ahead(device: tuple[int, int], kib: int) -> bool:
    """Lets the kernel ask for up to `kib` KiB at once from this mount; needs root, and is a matter of speed only."""
    try:
        Path(f"/sys/class/bdi/{device[0]}:{device[1]}/read_ahead_kb").write_text(f"{kib}\n")
    except OSError:
        return False
    return True
