"""What is printed for people and for programs."""

import io
import json
import os
import time
from collections.abc import Iterator

import pytest

from fusefs.cli.output import counted, json_path, local_time, print_json, print_table, shown, utc_time
from fusefs.cli.progress import MAX_LINES, Console


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NOON_NS = 1_795_176_005_000_000_000


def test_times_are_local_for_people_and_utc_for_programs(berlin: None) -> None:
    assert utc_time(NOON_NS) == "2026-11-20T12:00:05Z"
    assert local_time(NOON_NS) == "2026-11-20 13:00:05"
    assert (utc_time(0), local_time(0)) == (None, "-")


def test_names_cannot_drive_the_terminal() -> None:
    assert shown("grün".encode()) == "grün"
    assert shown(b"\x1b[2J\n\xff\xc2\x9b") == "\\x1b[2J\\x0a\\xff\\x9b"


def test_json_gives_every_name_back(capsys: pytest.CaptureFixture[str]) -> None:
    name = b"\xff\xfeodd\n"
    print_json({"path": json_path(name), "n": 1})
    assert os.fsencode(json.loads(capsys.readouterr().out)["path"]) == name


def test_tables_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "SIZE"), [("a", "5"), ("longer", "1,000")], frozenset((1,)))
    assert capsys.readouterr().out == "NAME     SIZE\na           5\nlonger  1,000\n"


def test_counting() -> None:
    assert (counted(1, "file"), counted(1204, "file")) == ("1 file", "1,204 files")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_that_goes_away() -> None:
    terminal = Terminal()
    console = Console(terminal)
    console.start("Restoring", 2000)
    console.advance(1000, 1)
    assert "50%" in terminal.getvalue() and "1.0 kB of 2.0 kB" in terminal.getvalue()
    console.problem(b"x", "gone")
    console.finish()
    lines = terminal.getvalue().split("\r")
    assert lines[0] == "" and lines[2].strip() == "" and lines[3] == "x: gone\n"


def test_elsewhere_only_notices_are_printed() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.start("Storing", None)
    console.advance(10**9, 5)
    console.note("Left out.")
    console.close()
    assert (stream.getvalue(), console.problems) == ("Left out.\n", 0)


def test_a_flood_of_notices_is_counted() -> None:
    stream = io.StringIO()
    console = Console(stream)
    for number in range(MAX_LINES + 50):
        console.problem(b"%d" % number, "bad")
    console.close()
    assert len(stream.getvalue().splitlines()) == MAX_LINES + 1
    assert stream.getvalue().endswith("... and 50 more lines.\n")
    assert console.problems == MAX_LINES + 50
