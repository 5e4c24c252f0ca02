"""The command line's words: every command with its options, and the module that carries it out.

Nothing heavy is imported here: `ballast --help` is quick, and works without what mounting needs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, NoReturn

from repository.errors import EXIT_USAGE, UsageError
from repository.units import MB, parse_duration_s, parse_size

DISTRIBUTION: Final = "ballastfs"
COLUMNS_DEFAULT: Final = 80
"""Of help that no terminal shows."""
EXPONENT_MAX: Final = 100.0
"""Beyond this no second gap has any weight beside the smallest."""
_EXIT_CODES: Final = (
    "exit codes: 0 done; 1 failed; 2 usage; 3 done, but some files could not be read or written; "
    "10 no such repository; 11 locked by another process; 28 no space; 130 interrupted"
)
_PATTERNS: Final = (
    "Patterns: a name without '/' is left out in any directory; '/home/x/tmp' is one path; 'a/b' is left out wherever "
    "a holds b; a '/' at the end means directories only; * ? [a-z] stand within a name, ** across directories; '!' in "
    "front takes in again; the last pattern that fits decides. REPO and Ballast mounts are always left out."
)


class Parser(argparse.ArgumentParser):
    """argparse, saying what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; '{self.prog} --help' shows the options.\n")


def _formatter(prog: str) -> argparse.HelpFormatter:
    """argparse makes one for each option that it takes in, and asks a module for the width that brings compressors."""
    return argparse.HelpFormatter(prog, width=_columns() - 2)


@cache
def _columns() -> int:
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or COLUMNS_DEFAULT
    except (AttributeError, ValueError, OSError):
        return COLUMNS_DEFAULT


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def _duration(text: str) -> float:
    try:
        return parse_duration_s(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return int(text)


class _Version(argparse.Action):
    """`--version`, looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata  # late: it brings in half of the library for mail

        try:
            version = metadata.version(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"ballast {version}")
        parser.exit()


class _Commands:
    """Adds commands to a parser: all, or the one that is `wanted`, as making them all takes a tenth of a start."""

    def __init__(self, parser: argparse.ArgumentParser, wanted: str | None) -> None:
        self._group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
        self._wanted = wanted
        self.found = wanted is None

    def __call__(self, name: str, module: str, text: str) -> argparse.ArgumentParser | None:
        """A command: its name, the module in `fusefs.cli` that runs it, and one line of help; None where it is not
        wanted."""
        if self._wanted not in (None, name):
            return None
        self.found = True
        description = text[:1].upper() + text[1:] + "."
        command = self._group.add_parser(name, help=text, description=description, formatter_class=_formatter)
        command.set_defaults(module=module, command=name)
        return command


def _repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", metavar="REPO", help="the repository's directory")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON with stable keys")


def _exponent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= EXPONENT_MAX:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to {EXPONENT_MAX:g}")
    return value


def _thinning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--auto-delete", action="store_true", help="let a full disk delete implicit snapshots")
    parser.add_argument("--min-snapshots", type=_count, default=1, metavar="N", help="of each source that stay (1)")
    parser.add_argument(
        "--deletion-exponent", type=_exponent, default=2.0, metavar="X", help="larger: spread more evenly (2.0)"
    )


def _estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-estimate", dest="estimate", action="store_false", help="begin without estimating whether it fits"
    )


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of `ballast`. Its answer has `module`: which module of `fusefs.cli` runs the command.

    It knows all commands, or only the one that `words` begin with.
    """
    parser = _build(words[:2]) if words else None
    if parser is None:  # help, or a mistake that is answered with what there is
        parser = _build([None, None])
    assert parser is not None
    return parser


def _parser() -> Parser:
    parser = Parser(
        prog="ballast",
        description="A snapshotting, deduplicating repository that mounts as a folder and survives a full disk.",
        epilog=_EXIT_CODES,
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    return parser


def _build(wanted: Sequence[str | None]) -> Parser | None:
    """With the wanted command, or, where that is a group, with the wanted one of it; None stands for all. Returns None
    where there is no such command."""
    parser = _parser()
    add = _Commands(parser, wanted[0])
    _add_repository_commands(add)
    _add_mount_commands(add)
    found = True
    if group := add("snapshot", "", "make, list, compare and delete snapshots"):
        found &= _add_group(group, wanted, _add_snapshot_commands)
    _add_restore(add)
    _add_care_commands(add)
    if group := add("reserve", "", "look at, give up or make again the reserve"):
        found &= _add_group(group, wanted, _add_reserve_commands)
    return parser if found and add.found else None


def _add_group(group: argparse.ArgumentParser, wanted: Sequence[str | None], fill: Callable[[_Commands], None]) -> bool:
    """Whether the group has what is wanted of it."""
    if len(wanted) < 2:
        return False
    add = _Commands(group, wanted[1])
    fill(add)
    return add.found


def _add_reserve_commands(add: _Commands) -> None:
    for name, text in (
        ("status", "tell whether the reserve is whole"),
        ("release", "give the reserve's room back to the disk, until it is restored"),
        ("restore", "make the reserve whole again"),
    ):
        if command := add(name, "reserve", text):
            _repository(command)
            _json(command)


def _add_repository_commands(add: _Commands) -> None:
    if init := add("init", "init", "make a repository in a new or empty directory"):
        _repository(init)
        init.add_argument("--reserve", type=_size, default=500 * MB, metavar="SIZE", help="room for emergencies (500M)")
        init.add_argument("--headspace", type=_size, metavar="SIZE", help="room that must be left beside it")
        init.add_argument("--quota", type=_size, metavar="SIZE", help="most that the repository may take")
        _json(init)
    if status := add("status", "status", "show how a repository is"):
        _repository(status)
        _json(status)


def _add_mount_commands(add: _Commands) -> None:
    if mount := add("mount", "mount", "mount a repository as a folder"):
        _repository(mount)
        mount.add_argument("mountpoint", metavar="MNT", help="an empty or missing directory")
        mount.add_argument("--foreground", action="store_true", help="stay in the foreground, log to standard error")
        mount.add_argument("--read-only", action="store_true", help="snapshots only; needs no lock and writes nothing")
        mount.add_argument("--allow-other", action="store_true", help="let other users see the mount")
        mount.add_argument("--settle", type=_duration, default=5.0, metavar="TIME", help="quiet before a snapshot (5s)")
        mount.add_argument("--interval", type=_duration, default=60.0, metavar="TIME", help="at most one a ... (1m)")
        mount.add_argument(
            "--max-age", type=_duration, default=3600.0, metavar="TIME", help="under steady writing (1h)"
        )
        mount.add_argument("--keep-all", action="store_true", help="never condense implicit snapshots")
        _thinning(mount)
        mount.add_argument("--write-deadline", type=_duration, default=30.0, metavar="TIME", help="longest wait (30s)")
    if umount := add("umount", "umount", "unmount; returns when everything is durable"):
        umount.add_argument("mountpoint", metavar="MNT", help="where it is mounted")


def _add_snapshot_commands(add: _Commands) -> None:
    if create := add("create", "snapshot_create", "store files as a new snapshot, without a mount"):
        create.epilog = _PATTERNS
        _repository(create)
        create.add_argument("paths", nargs="+", metavar="PATH", help="files and directories to store")
        create.add_argument("--name", metavar="N", help="the snapshot's name; without one, its time")
        create.add_argument(
            "--exclude", dest="excludes", action=_Exclude, default=[], metavar="PATTERN", help="leave out"
        )
        create.add_argument(
            "--exclude-from", dest="excludes", action=_Exclude, metavar="F", help="leave out by the patterns in file F"
        )
        create.add_argument("--exclude-caches", action="store_true", help="leave out what a CACHEDIR.TAG marks")
        create.add_argument("--one-file-system", action="store_true", help="don't cross mount points")
        _thinning(create)
        _estimate(create)
        _json(create)
    if listing := add("list", "snapshot_list", "list snapshots"):
        _repository(listing)
        which = listing.add_mutually_exclusive_group()
        which.add_argument("--trash", action="store_true", help="deleted ones that can still be undeleted")
        which.add_argument("--all", action="store_true", help="the provisional one of live too, as --json always does")
        _json(listing)
    if delete := add("delete", "snapshot_delete", "delete snapshots; they can be undeleted for 24 hours"):
        _repository(delete)
        delete.add_argument("names", nargs="+", metavar="SNAPSHOT", help="name or id")
        delete.add_argument("--dry-run", action="store_true", help="only say what it would free")
        _json(delete)
    if undelete := add("undelete", "snapshot_undelete", "take a deleted snapshot back"):
        _repository(undelete)
        undelete.add_argument("names", nargs="+", metavar="SNAPSHOT", help="its name in the trash, or id")
        undelete.add_argument("--name", metavar="N", help="give it this name")
        _json(undelete)
    if rename := add("rename", "snapshot_rename", "give a snapshot another name; it then counts as a named one"):
        _repository(rename)
        rename.add_argument("name", metavar="SNAPSHOT", help="name or id")
        rename.add_argument("new_name", metavar="NEW", help="its new name")
        _json(rename)
    for name, text in (("pin", "forbid the deletion of snapshots"), ("unpin", "allow their deletion again")):
        if pin := add(name, "snapshot_pin", text):
            _repository(pin)
            pin.add_argument("names", nargs="+", metavar="SNAPSHOT", help="name or id")
            _json(pin)
    if diff := add("diff", "snapshot_diff", "show what differs between two snapshots"):
        diff.epilog = (
            "A added, D deleted, M content modified, m only owner, mode, time or attributes modified, R renamed "
            "(RM, Rm: and modified)."
        )
        _repository(diff)
        diff.add_argument("before", metavar="SNAPSHOT[:PATH]")
        diff.add_argument("after", metavar="SNAPSHOT[:PATH]")
        _json(diff)


class _Exclude(argparse.Action):
    """Keeps --exclude and --exclude-from in the order in which they were given: the last pattern decides."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        given: list[tuple[str, str]] = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*given, ("file" if option == "--exclude-from" else "pattern", str(values))])


def _add_restore(add: _Commands) -> None:
    if restore := add("restore", "restore", "write files of a snapshot into a directory"):
        restore.epilog = (
            "A directory's content goes into DEST itself, a single file into DEST under its name. Without --merge or "
            "--overwrite DEST must be missing or empty."
        )
        _repository(restore)
        restore.add_argument("snapshot", metavar="SNAPSHOT[:PATH]", help="name or id, and what of it")
        restore.add_argument("destination", metavar="DEST", help="a directory")
        how = restore.add_mutually_exclusive_group()
        how.add_argument("--merge", action="store_true", help="keep files that are there, and say so")
        how.add_argument("--overwrite", action="store_true", help="replace files that are there")
        _estimate(restore)
        _json(restore)


def _add_care_commands(add: _Commands) -> None:
    if gc := add("gc", "gc", "give back the room of what no snapshot needs"):
        _repository(gc)
        gc.add_argument("--safety", choices=("full", "none"), help="none: also what was deleted in the last 24 hours")
        gc.add_argument("--dry-run", action="store_true", help="only say what it would do")
        _json(gc)
    if check := add("check", "check", "verify a repository; never writes"):
        _repository(check)
        check.add_argument("--read-data", action="store_true", help="read and verify every byte")
        _json(check)
    if rebuild := add("rebuild", "rebuild", "make the caches again from the packs alone"):
        _repository(rebuild)
        _json(rebuild)
