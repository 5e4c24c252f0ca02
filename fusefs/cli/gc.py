"""`ballast gc`.

Keys of its JSON: those of `CollectReport.to_json`, and `safety` (full, none: what was done), `emergency` (whether room
was so short that the window is not kept unless that is asked for), `reserve_whole` (whether it is, in the end).
"""

import argparse

from fusefs.cli.exactly import look_closer
from fusefs.cli.output import print_json, print_line, warn
from fusefs.cli.progress import Console
from fusefs.cli.repositories import Fields, reading, through_mount, writing
from repository.errors import EXIT_DONE, LockedError
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.space import ReserveState
from repository.units import format_size

EMERGENCY = "Emergency mode detected: forcing safety=none to reclaim space immediately"


def run(args: argparse.Namespace) -> int:
    """Give back the room of what no snapshot needs; here, or through the mount."""
    if args.dry_run:
        document, text = _plan(args)
    else:
        console = Console()
        try:
            with writing(args.repo) as repo:
                document, text = _collect(repo, args, console)
        except LockedError as locked:
            document, text = _through_mount(args, locked)
        finally:
            console.close()
    if args.json:
        print_json(document)
    else:
        print_line(text[:1].upper() + text[1:])
    return EXIT_DONE


def _safety(args: argparse.Namespace, emergency: bool) -> Safety:
    """What was asked for. Where nothing was, and room is short: what brings most back, and at once."""
    if args.safety is not None:
        return Safety(args.safety)
    if not emergency:
        return Safety.FULL
    warn(EMERGENCY)
    return Safety.NONE


def _plan(args: argparse.Namespace) -> tuple[Fields, str]:
    with reading(args.repo) as repo:
        emergency = repo.recovery.emergency()
        safety = _safety(args, emergency)
        look_closer(repo)
        report = repo.gc(safety=safety, dry_run=True)
        whole = repo.space.reserve().whole
    nbytes = report.plan.reclaimable_bytes
    text = f"{report.text()}\nwould free {nbytes:,} bytes"
    return _document(report.to_json(), safety, emergency=emergency, whole=whole), text


def _collect(repo: Repository, args: argparse.Namespace, console: Console) -> tuple[Fields, str]:
    before, emergency = repo.space.reserve(), repo.recovery.emergency()
    safety = _safety(args, emergency)
    report = repo.gc(safety=safety, progress=console)
    after = repo.space.reserve()
    lines = [report.text()]
    if not before.whole:
        lines.append(_reserve_text(repo, after))
    return _document(report.to_json(), safety, emergency=emergency, whole=after.whole), "\n".join(lines)


def _through_mount(args: argparse.Namespace, locked: LockedError) -> tuple[Fields, str]:
    with reading(args.repo) as repo:
        before, emergency = repo.space.reserve(), repo.recovery.emergency()
        safety = _safety(args, emergency)
        answer = through_mount(args.repo, "gc", {"safety": safety.value, "dry_run": False}, locked)
        after = repo.space.reserve()
        nbytes = answer.get("freed_bytes")
        lines = [f"the mount freed {format_size(nbytes)}" if isinstance(nbytes, int) else "the mount collected"]
        if not before.whole:
            lines.append(_reserve_text(repo, after))
    return _document(answer, safety, emergency=emergency, whole=after.whole), "\n".join(lines)


def _document(report: Fields, safety: Safety, *, emergency: bool, whole: bool) -> Fields:
    return {**report, "safety": safety.value, "emergency": emergency, "reserve_whole": whole}


def _reserve_text(repo: Repository, after: ReserveState) -> str:
    if after.whole:
        return f"the reserve ({format_size(after.wanted_bytes)}) is whole again"
    return repo.space.shortage()
