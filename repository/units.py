"""Sizes and times as people write them."""

import re
from typing import Final

from repository.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
KB: Final = 1000
MB: Final = 1000 * KB
GB: Final = 1000 * MB
NS_PER_S: Final = 1_000_000_000

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", re.IGNORECASE)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PREFIXES: Final = " KMGTP"


def parse_size(text: str) -> int:
    """Bytes meant by `text`: `500M` is 500 * 10^6, `2MiB` 2 * 2^20, a bare number bytes.

    Raises UsageError for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size; write it like 500M, 2GiB or 1000000.")
    number, prefix, binary = match.groups()
    base = KIB if binary else KB
    return int(float(number) * base ** _PREFIXES.index(prefix.upper() or " "))


def parse_duration_s(text: str) -> float:
    """Seconds meant by `text`: `5s`, `1m`, `1h`, `250ms`, `2d`; a bare number is seconds.

    Raises UsageError for anything else.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a duration; write it like 5s, 1m or 1h.")
    return float(match.group(1)) * _SECONDS[(match.group(2) or "s").lower()]


def format_size(size_bytes: int) -> str:
    """`size_bytes` for people, in powers of ten: `999 B`, `1.5 MB`, `12.0 GB`."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < KB or unit == "TB":
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= KB
    raise AssertionError("unreachable")
