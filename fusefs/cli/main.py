"""The command `ballast`: finds the command's module, runs it, turns what it raises into a line and an exit code."""

import argparse
import gc
import importlib
import logging
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from fusefs.cli.arguments import build_parser
from fusefs.cli.interrupts import INTERRUPTS
from repository.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, BallastError, InterruptedByUserError

_log = logging.getLogger(__name__)

OPEN_FILES_WANTED: Final = 16_384
"""A very deep tree needs a descriptor per level; the usual soft limit is 1,024."""
GC_THRESHOLD: Final = 10_000
"""New containers between two looks for garbage: batches hold thousands of them, and hardly any form cycles."""
LOG_VARIABLE: Final = "BALLAST_LOG"
"""A level (debug, info, ...): the log then goes to standard error. Without it nothing is logged."""


class Command(Protocol):
    """A module of `fusefs.cli`."""

    def run(self, args: argparse.Namespace) -> int:
        """Carry the command out; returns the exit code. Raises BallastError."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ballast` with these words (the process's own by default); returns the exit code."""
    _prepare_streams()
    _start_quickly()
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(words).parse_args(words)
    start_logging()
    _raise_open_files()
    try:
        if args.module != "mount":  # it watches signals itself
            INTERRUPTS.watch()
        command = _load(str(args.module))
        _settle_down()
        code = command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_DONE  # whoever read has read enough
    except (KeyboardInterrupt, InterruptedByUserError) as error:
        _tell(str(error) or "Interrupted.")
        return EXIT_INTERRUPTED
    except BallastError as error:
        _tell(str(error))
        return error.exit_code
    except Exception as error:
        _tell(_crashed(error, args))
        return EXIT_FAILED
    return code


def _start_quickly() -> None:
    """What is imported stays: looking for garbage among it, and threads for linear algebra, are a tenth of a start."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()


def _settle_down() -> None:
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    gc.enable()


def _load(module: str) -> Command:
    loaded: object = importlib.import_module(f"fusefs.cli.{module}")
    assert hasattr(loaded, "run")
    return loaded


def _tell(sentence: str) -> None:
    """One line on standard error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    print("ballast: " + " ".join(sentence.split("\n")), file=sys.stderr, flush=True)


def _prepare_streams() -> None:
    """Names of files that are no text, and terminals that know less than UTF-8, must not break a command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Nobody reads any more: keep the interpreter from complaining at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def start_logging() -> None:
    """Log to standard error where BALLAST_LOG asks for it; a mount sets up its own log later, in place of this."""
    level = os.environ.get(LOG_VARIABLE, "").upper()
    root = logging.getLogger()
    if level in logging.getLevelNamesMapping():
        from fusefs.logs import EventFormatter

        handler = logging.StreamHandler()
        handler.setFormatter(EventFormatter("%(levelname)s %(name)s %(message)s"))
        logging.basicConfig(level=level, handlers=[handler])
    elif not root.handlers:
        root.addHandler(logging.NullHandler())


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(OPEN_FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            _log.info("cli.open_files", extra={"error": str(error)})


def _crashed(error: Exception, args: argparse.Namespace) -> str:
    """Write the traceback where it can be found; the sentence that says where."""
    what = f"Ballast met an error that it did not expect ({type(error).__name__}: {error})"
    text = "".join(traceback.format_exception(error))
    repo: object = getattr(args, "repo", None)
    where = _write_crash(text, Path(repo) if isinstance(repo, str) else None)
    return f"{what}; please report it, with {where}."


def _write_crash(text: str, repo: Path | None) -> str:
    from fusefs.logs import state_directory

    directory = state_directory()
    try:
        existing = next(one for one in (directory, *directory.parents) if one.exists())
        if repo is None or not repo.exists() or existing.stat().st_dev != repo.stat().st_dev:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = directory / "last-error.log"
            path.write_text(text, errors="backslashreplace")
            return str(path)
    except OSError as error:
        _log.info("cli.crash_log", extra={"error": str(error)})
    if os.path.exists("/dev/log"):
        import logging.handlers  # late, as it brings in pickle, queues and sockets

        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.emit(logging.makeLogRecord({"msg": f"ballast: {text}", "levelno": logging.ERROR, "levelname": "ERROR"}))
        return "what the system's log says"
    return f"what {LOG_VARIABLE}=debug shows"


if __name__ == "__main__":
    sys.exit(main())
