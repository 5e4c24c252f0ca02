"""Where a mount writes its log: never on the repository's own disk, which may be full."""

import logging
import logging.handlers
import os
import re
import sys
import zlib
from pathlib import Path
from typing import Final

LOG_BYTES: Final = 1_000_000
"""A log is turned at this size; one older file is kept."""
SYSLOG_SOCKET: Final = "/dev/log"
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
SYSLOG_FORMAT: Final = "ballast[%(process)d]: %(levelname)s %(message)s"
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""Attributes of every record; what a record has beside them are its event's fields."""


class EventFormatter(logging.Formatter):
    """An event's name, then its fields as `key=value`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        return " ".join([super().formatMessage(record), *fields])


def state_directory() -> Path:
    """Where this user's programs keep state (XDG base directories)."""
    configured = os.environ.get("XDG_STATE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".local" / "state"
    return base / "ballast"


def start_logging(repository: Path, *, foreground: bool) -> str:
    """Sets up the root logger and says where it writes: stderr, a file, syslog, or nowhere."""
    handler, where = _handler(repository, foreground=foreground)
    root = logging.getLogger()
    for earlier in root.handlers[:]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    levels = logging.getLevelNamesMapping()
    root.setLevel(levels.get(os.environ.get("BALLAST_LOG", "").upper(), logging.INFO))
    return where


def _handler(repository: Path, *, foreground: bool) -> tuple[logging.Handler, str]:
    if foreground:
        return _with_format(logging.StreamHandler(sys.stderr), FORMAT), "stderr"
    path = state_directory() / f"{_plain(repository.name)}-{zlib.crc32(bytes(repository)):08x}.log"
    try:
        if not _shares_disk(path.parent, repository):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
            return _with_format(file, FORMAT), str(path)
    except OSError:
        pass  # also where the way to this user's home is closed
    if os.path.exists(SYSLOG_SOCKET):
        return _with_format(logging.handlers.SysLogHandler(SYSLOG_SOCKET), SYSLOG_FORMAT), "syslog"
    return logging.NullHandler(), "nowhere"


def _with_format(handler: logging.Handler, text: str) -> logging.Handler:
    handler.setFormatter(EventFormatter(text))
    return handler


def _shares_disk(directory: Path, repository: Path) -> bool:
    """Whether `directory` (or its nearest parent that exists) lies on the repository's device."""
    existing = next(one for one in (directory, *directory.parents) if one.exists())
    return existing.stat().st_dev == repository.stat().st_dev


def _plain(name: str) -> str:
    """A directory's name made fit for a log's."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:40] or "repository"
