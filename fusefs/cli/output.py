"""What commands print: tables, JSON, sizes, times, names.

Standard output carries results, standard error everything else.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from repository.units import NS_PER_S

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None

_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))}
"""Control characters: a file's name must not be able to drive the terminal."""


def print_json(document: Json) -> None:
    """`document` with stable keys, in ASCII.

    Bytes of file names that are not UTF-8 stand as lone surrogates (\\udc80 to \\udcff, one for each byte), which
    Python's `os.fsencode` turns back into the name.
    """
    print(json.dumps(document, indent=2, ensure_ascii=True))


def print_line(text: str) -> None:
    """One line of result."""
    print(text)


def warn(text: str) -> None:
    """One line for the person, on standard error."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def shown(name: bytes) -> str:
    """A file's name or path for people: what is not printable text stands as `\\xNN`."""
    return name.decode("utf-8", "backslashreplace").translate(_CONTROL)


def json_path(path: bytes) -> str:
    """A file's path for JSON."""
    return os.fsdecode(path)


def local_time(time_ns: int) -> str:
    """`2026-11-20 15:39:05` in the time zone of this machine; `-` for 0 (never)."""
    return datetime.fromtimestamp(time_ns // NS_PER_S).strftime("%Y-%m-%d %H:%M:%S") if time_ns else "-"  # noqa: DTZ006


def utc_time(time_ns: int) -> str | None:
    """RFC 3339 in UTC, to the second: `2026-11-20T14:39:05Z`; None for 0 (never)."""
    return datetime.fromtimestamp(time_ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time_ns else None


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> None:
    """Columns side by side; those in `right` are aligned at their right border. Nothing but the titles without rows."""
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    for row in (titles, *rows):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def counted(number: int, thing: str) -> str:
    """`1 file`, `1,204 files`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
