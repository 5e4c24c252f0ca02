"""What BALLAST_LOG shows."""

import os
import subprocess
import sys

LINES = """
import logging, pathlib, sys
from fusefs.cli.main import start_logging
start_logging()
log = logging.getLogger("repository.test")
log.debug("before.mount", extra={"nbytes": 7})
if len(sys.argv) > 1:
    from fusefs import logs
    logs.start_logging(pathlib.Path("/"), foreground=True)
    log.debug("in.mount", extra={"nbytes": 8})
"""


def logged(*words: str, level: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BALLAST_LOG"}
    if level is not None:
        environment["BALLAST_LOG"] = level
    done = subprocess.run(
        [sys.executable, "-c", LINES, *words], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_commands_log_has_its_figures() -> None:
    assert logged(level="debug") == ["DEBUG repository.test before.mount nbytes=7"]
    assert logged(level="info") == logged(level=None) == []


def test_in_the_foreground_each_line_comes_once() -> None:
    lines = logged("mount", level="debug")
    assert [line.rsplit(" ", 2)[-2:] for line in lines] == [["before.mount", "nbytes=7"], ["in.mount", "nbytes=8"]]
