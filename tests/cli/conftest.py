"""Commands run in this process, as `ballast` runs them."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fusefs.cli.main import main


class Run(Protocol):
    """Runs a command: exit code, standard output, standard error."""

    def __call__(self, *words: object) -> tuple[int, str, str]: ...


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state directory: a test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ballast"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
