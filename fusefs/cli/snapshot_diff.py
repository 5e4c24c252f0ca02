"""`ballast snapshot diff`.

Keys of an element of its JSON: `change` (added, deleted, modified, renamed), `path`, `old_path` (of what was renamed,
else null), `content` and `attributes` (whether these differ; true for what was added or deleted), `before` and `after`
(`type`, `size` in bytes, `mode`; null where there is none). Where a listing cannot be read the array ends there, as
valid JSON, and the command fails.
"""

import argparse
import json
from collections.abc import Iterator

from fusefs.cli.output import Json, json_path, print_line, shown
from fusefs.cli.repositories import reading
from repository.diff import Change, ChangeKind, Comparison, Side
from repository.errors import EXIT_DONE
from repository.format.inode import Inode, NodeKind
from repository.locate import locate


def run(args: argparse.Namespace) -> int:
    """Show what differs. Streams: a million differences cost no memory."""
    with reading(args.repo) as repo:
        before, after = locate(repo, args.before), locate(repo, args.after)
        comparison = Comparison(repo.reader, Side(before.inode, before.links), Side(after.inode, after.links))
        changes = comparison.changes()
        if args.json:
            _print_json(changes)
        else:
            for change in changes:
                print_line(f"{_letter(change)} {_path(change)}")
    return EXIT_DONE


def _letter(change: Change) -> str:
    match change.kind:
        case ChangeKind.ADDED:
            return "A"
        case ChangeKind.DELETED:
            return "D"
        case ChangeKind.MODIFIED:
            return "M" if change.content else "m"
        case ChangeKind.RENAMED:
            return "R" + ("M" if change.content else "m" if change.attributes else "")


def _path(change: Change) -> str:
    inode = change.after or change.before
    assert inode is not None
    slash = "/" if inode.kind is NodeKind.DIRECTORY else ""
    source = "" if change.old_path is None else f"{shown(change.old_path)}{slash} -> "
    return source + shown(change.path or b".") + slash


def _print_json(changes: Iterator[Change]) -> None:
    """An array, one element a line, written as it comes; closed also where an error ends it."""
    separator = "["
    try:
        for change in changes:
            print_line(separator + json.dumps(_document(change)))
            separator = ","
    finally:
        print_line("[]" if separator == "[" else "]")


def _document(change: Change) -> dict[str, Json]:
    return {
        "change": change.kind.value,
        "path": json_path(change.path),
        "old_path": None if change.old_path is None else json_path(change.old_path),
        "content": change.content,
        "attributes": change.attributes,
        "before": _side(change.before),
        "after": _side(change.after),
    }


def _side(inode: Inode | None) -> Json:
    return None if inode is None else {"type": inode.kind.name.lower(), "size": inode.size, "mode": inode.mode}
