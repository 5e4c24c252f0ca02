"""Which files a snapshot leaves out: patterns, exactly. Pure.

A pattern is one line of bytes:

- A pattern with a `/` at its front names an absolute path: `/home/anna/tmp`.
- A pattern without a `/` (a last one does not count) names files in any directory by their name: `*.o`.
- Any other pattern names the end of a path, from the beginning of a name on: `cache/thumbnails` is
  left out wherever a `cache` holds a `thumbnails`.
- A `/` at the end restricts it to directories. A directory that is left out takes all below with it.
- `*` stands for any bytes except `/`, `?` for one byte except `/`, `[a-z]` and `[!a-z]` for one byte of (or not
  of) a set, and `**` for anything, `/` included; `**/` may also stand for nothing. `\\` takes the next byte as it is.
- A `!` in front takes in again what an earlier pattern left out: the last pattern that fits decides.
  What lies in a directory that was left out cannot be taken in again, because it is never looked at.

In a file of patterns empty lines and lines that begin with `#` are passed over; `\\#` and `\\!` begin a pattern
that means the sign itself. Blanks belong to the pattern. A path that was named on the command line itself is
never left out.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from repository.errors import UsageError

SLASH: Final = b"/"
CACHE_TAG_NAME: Final = b"CACHEDIR.TAG"
CACHE_TAG_SIGNATURE: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""How a CACHEDIR.TAG file begins (Cache Directory Tagging Specification, bford.info/cachedir)."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One compiled pattern; `by_name` ones are matched against the name alone, the others against the path."""

    regex: re.Pattern[bytes]
    by_name: bool
    only_directories: bool
    leaves_out: bool


def _class(text: bytes, at: int) -> tuple[bytes, int]:
    """The regular expression of the bracket set that opens at `at`, and where it ends; a lone `[` is itself."""
    end = at + 1
    if end < len(text) and text[end : end + 1] in (b"!", b"^"):
        end += 1
    if end < len(text) and text[end : end + 1] == b"]":
        end += 1
    while end < len(text) and text[end : end + 1] != b"]":
        end += 1
    if end >= len(text):
        return rb"\[", at + 1
    inside = text[at + 1 : end]
    negated = inside[:1] in (b"!", b"^")
    inside = inside[1:] if negated else inside
    inside = re.sub(rb"([\\\[\]^&~|])", rb"\\\1", inside)
    return (b"(?!/)[" + (b"^" if negated else b"") + inside + b"]"), end + 1


def _expression(text: bytes) -> bytes:
    """The regular expression that one glob means."""
    out = bytearray()
    at = 0
    while at < len(text):
        byte = text[at : at + 1]
        if text.startswith(b"**/", at) and (at == 0 or text[at - 1 : at] == SLASH):
            out += b"(?:.*/)?"
            at += 3
        elif text.startswith(b"**", at):
            out += b".*"
            at += 2
        elif byte == b"*":
            out += b"[^/]*"
            at += 1
        elif byte == b"?":
            out += b"[^/]"
            at += 1
        elif byte == b"[":
            expression, at = _class(text, at)
            out += expression
        elif byte == b"\\" and at + 1 < len(text):
            out += re.escape(text[at + 1 : at + 2])
            at += 2
        else:
            out += re.escape(byte)
            at += 1
    return bytes(out)


def parse_pattern(line: bytes) -> Pattern:
    """The pattern that `line` means. Raises UsageError for one that cannot match anything."""
    text = line
    leaves_out = not text.startswith(b"!")
    if not leaves_out:
        text = text[1:]
    only_directories = text.endswith(SLASH)
    text = text.rstrip(SLASH)
    if not text:
        raise UsageError(f"'{line.decode(errors='replace')}' is not a pattern that could match a file.")
    if text.startswith(SLASH):
        by_name, expression = False, _expression(text)
    elif SLASH in text:
        by_name, expression = False, b"(?:.*/)?" + _expression(text)
    else:
        by_name, expression = True, _expression(text)
    try:
        regex = re.compile(expression, re.DOTALL)
    except re.error as error:
        raise UsageError(f"'{line.decode(errors='replace')}' is not a pattern: {error}.") from error
    return Pattern(regex, by_name, only_directories, leaves_out)


def pattern_lines(content: bytes) -> list[bytes]:
    """The patterns in the content of a file given to `--exclude-from`."""
    lines = (line.removesuffix(b"\r") for line in content.split(b"\n"))
    return [line for line in lines if line and not line.startswith(b"#")]


class Excludes:
    """All patterns of one command, in their order. Immutable."""

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self._patterns = tuple(parse_pattern(line) for line in lines)
        self._all_leave_out = all(pattern.leaves_out for pattern in self._patterns)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def leaves_out(self, directory: bytes, name: bytes, is_directory: bool) -> bool:
        """Whether `name` in the absolute path `directory` (no slash at its end, except for `/` itself) stays out."""
        path = b""
        patterns = self._patterns if self._all_leave_out else reversed(self._patterns)
        for pattern in patterns:
            if pattern.only_directories and not is_directory:
                continue
            if pattern.by_name:
                fits = pattern.regex.fullmatch(name)
            else:
                path = path or (directory + name if directory.endswith(SLASH) else directory + SLASH + name)
                fits = pattern.regex.fullmatch(path)
            if fits is not None:
                return pattern.leaves_out
        return False
