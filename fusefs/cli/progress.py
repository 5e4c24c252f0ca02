"""How far long work is, on a terminal only; and lines about single files, anywhere."""

import sys
import threading
import time
from typing import Final, TextIO

from fusefs.cli.interrupts import INTERRUPTS
from fusefs.cli.output import counted, shown
from repository.units import format_size

REDRAW_S: Final = 0.1
"""Redrawing more often than this costs more than it tells."""
BAR_CELLS: Final = 24
MAX_LINES: Final = 100
"""Lines about single files; what comes after is counted only, so that a broken disk doesn't bury the result."""


class Console:
    """Progress and notices of one command. Thread safe.

    On a terminal one line is drawn over and over; elsewhere only notices are printed.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._draws = self._stream.isatty() and not quiet
        self._lock = threading.Lock()
        self._title = ""
        self._total_bytes: int | None = None
        self._done_bytes = 0
        self._done_files = 0
        self._began_s = 0.0
        self._drawn_s = 0.0
        self._drawn = False
        self.problems = 0
        self._lines = 0

    # --- repository.ports.Progress -------------------------------------------------------------------------------

    def start(self, title: str, total_bytes: int | None) -> None:
        """A phase begins."""
        with self._lock:
            self._title, self._total_bytes = title, total_bytes
            self._done_bytes = self._done_files = 0
            self._began_s = time.monotonic()
            self._drawn_s = 0.0

    def advance(self, done_bytes: int, done_files: int) -> None:
        """This much more is done. A safe place to end: raises InterruptedByUserError where a signal came."""
        INTERRUPTS.check()
        with self._lock:
            self._done_bytes += done_bytes
            self._done_files += done_files
            if self._draws:
                now_s = time.monotonic()
                if now_s - self._drawn_s >= REDRAW_S:
                    self._drawn_s = now_s
                    self._draw(now_s)

    def finish(self) -> None:
        """The phase is over; the line goes away."""
        with self._lock:
            self._clear()
            self._title = ""

    # --- notices -------------------------------------------------------------------------------------------------

    def problem(self, path: bytes, why: str) -> None:
        """A file could not be handled as it should."""
        with self._lock:
            self.problems += 1
        self._line(f"{shown(path)}: {why}")

    def note(self, sentence: str) -> None:
        """Something worth a line that is not a failure."""
        self._line(sentence)

    def close(self) -> None:
        """Say how many lines were left out."""
        self.finish()
        if self._lines > MAX_LINES:
            print(f"... and {counted(self._lines - MAX_LINES, 'more line')}.", file=self._stream, flush=True)

    def _line(self, text: str) -> None:
        with self._lock:
            self._lines += 1
            if self._lines <= MAX_LINES:
                self._clear()
                print(text, file=self._stream, flush=True)

    def _draw(self, now_s: float) -> None:
        seconds = max(now_s - self._began_s, 0.001)
        parts = [self._title, format_size(self._done_bytes)]
        if self._total_bytes:
            share = min(1.0, self._done_bytes / self._total_bytes)
            full = int(share * BAR_CELLS)
            parts = [
                self._title,
                f"[{'#' * full}{'.' * (BAR_CELLS - full)}] {share:4.0%}",
                f"{format_size(self._done_bytes)} of {format_size(self._total_bytes)}",
            ]
        parts += [counted(self._done_files, "file"), f"{format_size(int(self._done_bytes / seconds))}/s"]
        width = _width()
        self._stream.write("\r" + "  ".join(parts)[:width].ljust(width))
        self._stream.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r" + " " * _width() + "\r")
            self._stream.flush()
            self._drawn = False


def _width() -> int:
    """Columns that a line may take."""
    from shutil import get_terminal_size  # late: it brings compressors along, and only a terminal asks

    return get_terminal_size().columns - 1
