"""The line that tells, at a user's next command, that a full disk was recovered from meanwhile.

What the user has been told is remembered as the serial of an event, in a file for each repository in the user's state
directory. That file is a convenience: where it cannot be read or written, the line comes once more than it should.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from fusefs.cli.output import counted, local_time, warn
from repository.format.events import Event
from repository.repo import Repository
from repository.status import RECOVERY_EVENT
from repository.units import format_size

FILE_BYTES_MAX: Final = 32
"""A number."""
_told: Final[set[tuple[bytes, int]]] = set()
"""Of which repositories, up to which event, this process has told: a command opens its repository more than once."""


def tell_of_recoveries(repo: Repository) -> None:
    """Warn of recoveries since the last command. Never an error."""
    events = recoveries_since(repo, 0)
    if not events or (repo.config.repository_id, events[-1].serial) in _told:
        return
    _told.add((repo.config.repository_id, events[-1].serial))
    try:
        path = _state_file(repo)
    except (OSError, RuntimeError):
        return  # nobody's home
    seen = _read(path)
    fresh = [event for event in events if event.serial > seen]
    if fresh:
        warn(f"ballast: {sentence(fresh)} (ballast status {repo.path}).")
        _write(path, fresh[-1].serial)


def recoveries_since(repo: Repository, serial: int) -> list[Event]:
    """Recoveries that the ring of events tells of, later than the event `serial`."""
    return [event for event in repo.events.events() if event.name == RECOVERY_EVENT and event.serial > serial]


def given_up(events: list[Event]) -> list[str]:
    """Names of the snapshots that recoveries gave up."""
    return [name for event in events for name in _names(event)]


def sentence(events: list[Event]) -> str:
    """One line about recoveries, the last of which says how it stands; without a full stop."""
    last = events[-1]
    freed = sum(_number(event, "freed_bytes") for event in events)
    gone = given_up(events)
    done = [f"freed {format_size(freed)}"]
    if gone:
        done.append(f"gave up {counted(len(gone), 'snapshot')}")
    times = f"The disk was full on {local_time(last.time_ns)}"
    if len(events) > 1:
        times = f"The disk was full {len(events):,} times, last on {local_time(last.time_ns)}"
    end = "" if last.fields.get("outcome") == "recovered" else ", but not enough came free"
    return f"{times}: recovery {' and '.join(done)}{end}"


def _number(event: Event, key: str) -> int:
    value = event.fields.get(key)
    return int(value) if isinstance(value, int | float) else 0


def _names(event: Event) -> list[str]:
    value = event.fields.get("deleted_snapshots")
    return [str(name) for name in value] if isinstance(value, list) else []


def _state_file(repo: Repository) -> Path:
    from fusefs.logs import state_directory

    return state_directory() / f"told-{repo.config.repository_id.hex()}"


def _read(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return int(file.read(FILE_BYTES_MAX))
    except (OSError, ValueError):
        return 0


def _write(path: Path, serial: int) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.write_bytes(b"%d\n" % serial)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
