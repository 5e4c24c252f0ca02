"""Into the background: what the starter sees of a service that is ready, fails, dies or is interrupted."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

HEAD = """\
import os, sys, time
from fusefs.daemon import run_in_background
from repository.errors import BallastError, LockedError
def service(report):
    {body}
try:
    run_in_background(service)
except BallastError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
print("returned")
"""


def start(body: str, directory: Path) -> tuple[int, str]:
    """Exit code and output of a starter whose service is `body`."""
    code = HEAD.format(body=textwrap.indent(textwrap.dedent(body), "    ").strip())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"TMP_DIRECTORY": str(directory), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_starter_returns_when_the_service_is_ready(tmp_path: Path) -> None:
    code, said = start(
        """
        report.say("found something")
        report.ready()
        report.say("nobody listens")
        open(os.environ["TMP_DIRECTORY"] + "/went on", "w").close()
        """,
        tmp_path,
    )
    assert (code, said) == (0, "found something\nreturned\n")


def test_an_error_before_ready_is_the_starters(tmp_path: Path) -> None:
    code, said = start('raise LockedError("Process 7 writes this repository.")', tmp_path)
    assert (code, said) == (11, "LockedError Process 7 writes this repository.\n")


def test_a_crash_before_ready_is_one_sentence(tmp_path: Path) -> None:
    code, said = start("[][0]", tmp_path)
    assert code == 1
    assert said == "BallastError The mount ended by an internal error: IndexError('list index out of range').\n"


def test_a_death_before_ready_is_told_too(tmp_path: Path) -> None:
    code, said = start("os.kill(os.getpid(), 9)", tmp_path)
    assert code == 1 and "without a word" in said


def test_it_is_in_a_session_of_its_own_and_holds_nothing(tmp_path: Path) -> None:
    code, said = start(
        """
        streams = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
        for _ in range(3000):  # the process between them is still ending, perhaps
            if os.getppid() != os.getsid(0):
                break
            time.sleep(0.01)
        report.say(f"{os.getcwd()} {streams} {os.getsid(0) == os.getpid()} {os.getppid() != os.getsid(0)}")
        report.ready()
        """,
        tmp_path,
    )
    assert code == 0
    assert said.startswith("/ ['/dev/null', '/dev/null', '/dev/null'] False True")


@pytest.mark.parametrize("count", [1, 500])
def test_long_talk_before_ready_is_passed_on(tmp_path: Path, count: int) -> None:
    code, said = start(f'for number in range({count}): report.say("x" * 1000)\nreport.ready()', tmp_path)
    assert code == 0 and said.count("x" * 1000 + "\n") == count
