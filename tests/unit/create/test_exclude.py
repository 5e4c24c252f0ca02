"""Patterns of what to leave out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repository.create.exclude import Excludes, pattern_lines
from repository.errors import UsageError


def out(patterns: list[bytes], path: bytes, *, directory: bool = False) -> bool:
    parent, _, name = path.rpartition(b"/")
    return Excludes(patterns).leaves_out(parent or b"/", name, directory)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        (b"*.o", b"/a/b/x.o", True),
        (b"*.o", b"/a/b/x.oo", False),
        (b"*", b"/a/.hidden", True),
        (b"x?z", b"/x\xffz", True),
        (b"/home/anna/tmp", b"/home/anna/tmp", True),
        (b"/home/anna/tmp", b"/x/home/anna/tmp", False),
        (b"/home/*/tmp", b"/home/anna/tmp", True),
        (b"/home/*/tmp", b"/home/anna/x/tmp", False),
        (b"/home/**/tmp", b"/home/anna/x/tmp", True),
        (b"/home/**/tmp", b"/home/tmp", True),
        (b"cache/thumbs", b"/home/cache/thumbs", True),
        (b"cache/thumbs", b"/cache/thumbs", True),
        (b"cache/thumbs", b"/mycache/thumbs", False),
        (b"**/x", b"/x", True),
        (b"/a**c", b"/a/b/c", True),
        (b"[ab]c", b"/bc", True),
        (b"[!ab]c", b"/bc", False),
        (b"[!ab]c", b"/xc", True),
        (b"[a-c]", b"/b", True),
        (b"[]]", b"/]", True),
        (b"[", b"/[", True),
        (b"[ab", b"/[ab", True),
        (rb"\*", b"/*", True),
        (rb"\*", b"/x", False),
        (rb"\#x", b"/#x", True),
        (rb"\!x", b"/!x", True),
        (b"a.b", b"/axb", False),
        (b" ", b"/ ", True),
    ],
)
def test_patterns_mean_what_is_written(pattern: bytes, path: bytes, expected: bool) -> None:
    assert out([pattern], path) is expected


def test_a_slash_at_the_end_means_directories_only() -> None:
    assert out([b"build/"], b"/x/build", directory=True)
    assert not out([b"build/"], b"/x/build")


def test_the_last_pattern_that_fits_decides() -> None:
    assert not out([b"*.log", b"!keep.log"], b"/keep.log")
    assert out([b"!keep.log", b"*.log"], b"/keep.log")
    assert out([b"*.log", b"!keep.log", b"/x/*"], b"/x/keep.log")


def test_what_no_pattern_fits_stays() -> None:
    assert not out([b"!x"], b"/y")
    assert not Excludes().leaves_out(b"/", b"x", False)


@pytest.mark.parametrize("pattern", [b"", b"/", b"!", b"!/", b"[z-a]"])
def test_patterns_without_meaning_are_refused(pattern: bytes) -> None:
    with pytest.raises(UsageError):
        Excludes([pattern])


def test_a_file_of_patterns() -> None:
    content = b"# comment\n\n*.o\r\n\\#x\n last \n"
    assert pattern_lines(content) == [b"*.o", b"\\#x", b" last "]


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_a_name_with_every_byte_escaped_matches_itself_alone(name: bytes) -> None:
    escaped = b"".join(b"\\" + bytes((byte,)) for byte in name)
    assert out([escaped], b"/dir/" + name)
    assert not out([escaped], b"/dir/" + name + b"x")


@given(st.lists(st.binary(max_size=12).filter(lambda line: line.strip(b"/!") != b"")), st.binary(max_size=8))
def test_no_pattern_crashes(lines: list[bytes], name: bytes) -> None:
    try:
        excludes = Excludes(lines)
    except UsageError:
        return
    excludes.leaves_out(b"/a", name, is_directory=True)
