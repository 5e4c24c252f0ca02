"""Where the log goes: never onto the repository's own device."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs import logs


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    """Gives the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_file_of_the_users_state_where_that_is_another_disk(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere))
    where = logs.start_logging(tmp_path, foreground=False)
    assert where.startswith(str(elsewhere / "ballast"))
    logging.getLogger("fusefs.test").info("thing.happened", extra={"size_bytes": 7, "where": "here"})
    text = Path(where).read_text()
    assert text.rstrip().endswith("INFO fusefs.test thing.happened size_bytes=7 where=here")


def test_not_onto_the_repositorys_disk_even_if_the_directory_is_missing_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "not" / "there"))
    assert logs.start_logging(tmp_path, foreground=False) in ("syslog", "nowhere")
    assert not (tmp_path / "not").exists()


def test_two_repositories_of_one_name_have_two_logs(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(elsewhere))
    found: list[str] = []
    for parent in ("a", "b"):
        (tmp_path / parent / "my repo").mkdir(parents=True)
        found.append(logs.start_logging(tmp_path / parent / "my repo", foreground=False))
        logging.getLogger().handlers[-1].close()
    one, other = found
    assert one != other and "my_repo-" in one


def test_a_formatted_traceback_keeps_its_fields() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.EventFormatter("%(levelname)s %(message)s"))
    try:
        raise ValueError("inside")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "thing.failed", None, info)
    record.op = "read"
    handler.emit(record)
    assert out.getvalue().startswith("ERROR thing.failed op=read\nTraceback") and "ValueError: inside" in out.getvalue()
