"""What people are told while the volume is full and nothing is left to give up."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from repository.units import format_size

NAMED_MAX: Final = 10
"""Snapshots named in the text: who frees less than the tenth helps little."""


def disk_full_text(root: Path, needed_bytes: int, missing_bytes: int, snapshots: Sequence[tuple[str, int]]) -> str:
    """The text of `DISK-IS-FULL.txt`: that nothing is lost, what is needed, what helps.

    `needed_bytes`: what must come free on the volume; `missing_bytes` of it belong to the reserve. `snapshots`: names
    and the bytes that deleting each alone would free, most first.
    """
    repository = shlex.quote(str(root))
    needed = f"{format_size(needed_bytes)} must come free on the disk that holds {root}."
    if missing_bytes > 0:
        needed += f" {format_size(missing_bytes)} of that is Ballast's own reserve."
    lines = [
        "The disk is full, and Ballast has nothing left that it may give up by itself.",
        "",
        "Nothing is lost. Everything that was stored is still there and can be read; removing and renaming works.",
        "New data is refused until there is room again, and accepted again as soon as there is: nothing to restart.",
        "",
        f"What is needed: {needed}",
        "",
    ]
    helpful = [(name, nbytes) for name, nbytes in snapshots[:NAMED_MAX] if nbytes > 0]
    if helpful:
        width = max(len(format_size(nbytes)) for _, nbytes in helpful)
        lines += ["Deleting one of these snapshots would free:", ""]
        lines += [f"    {format_size(nbytes):>{width}}  {name}" for name, nbytes in helpful]
        lines += [
            "",
            f"    ballast snapshot delete {repository} {shlex.quote(helpful[0][0])}",
            "",
            "Several at once can free more than their sum, because they share what only they hold:",
            f"'ballast snapshot delete {repository} NAME NAME --dry-run' says how much.",
        ]
    elif snapshots:
        lines += [
            "No single snapshot holds much alone; several together do:",
            "",
            f"    ballast snapshot delete {repository} NAME NAME --dry-run",
        ]
    else:
        lines += ["There is no snapshot that could be deleted: remove other files from this disk."]
    return "\n".join(lines) + "\n"
