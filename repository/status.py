"""What `ballast status` shows, as one frozen value with stable keys."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from repository.errors import DamagedError, VolumeError
from repository.format.events import Event, Field
from repository.lock import Holder
from repository.policy.levels import Level, Room
from repository.policy.rungs import Mode
from repository.policy.volumes import described, lacks_of
from repository.space import ReserveState
from repository.units import NS_PER_S, format_size

if TYPE_CHECKING:
    from repository.repo import Repository

log = logging.getLogger(__name__)

MODE_EVENT: Final = "mode.changed"
"""Name of the events that tell of read-only and failed mode, and of their end."""
RECOVERY_EVENT: Final = "recovery.done"
"""Name of the events that tell of a climbed ladder, in the ring."""

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Status:
    """A repository at one moment. Sizes in bytes.

    `mode`: normal, emergency, read-only or failed. `reclaimable_bytes` None: it cannot be told (something is
    damaged). `stored_bytes`: blocks of all packs. `content_bytes`: sum over listed snapshots, of what their files hold.
    """

    level: Level
    mode: str
    room: Room
    reserve: ReserveState
    snapshots: int
    chunks: int
    content_bytes: int
    stored_bytes: int
    reclaimable_bytes: int | None
    volume_class: str
    holder: Holder | None
    recoveries: tuple[Event, ...]

    def to_json(self) -> dict[str, Json]:
        """The document of `status --json` and `.ballast/status.json`."""
        holder = self.holder
        return {
            "level": self.level.value,
            "mode": self.mode,
            "available_bytes": self.room.available_bytes,
            "capacity_bytes": self.room.capacity_bytes,
            "reserve": reserve_json(self.reserve),
            "snapshots": self.snapshots,
            "chunks": self.chunks,
            "content_bytes": self.content_bytes,
            "stored_bytes": self.stored_bytes,
            "reclaimable_bytes": self.reclaimable_bytes,
            "volume_class": self.volume_class,
            "volume_lacks": [*lacks_of(self.volume_class)],
            "mount": None
            if holder is None or holder.mountpoint is None
            else {"pid": holder.pid, "mountpoint": holder.mountpoint},
            "recoveries": [_recovery(event) for event in self.recoveries],
        }

    def text(self) -> str:
        """The same for people."""
        ratio = self.content_bytes / self.stored_bytes if self.stored_bytes else 0.0
        reserve = "whole" if self.reserve.whole else "MISSING"
        lines = [
            f"level      {self.level.value}, mode {self.mode}",
            f"available  {format_size(self.room.available_bytes)} of {format_size(self.room.capacity_bytes)}",
            f"reserve    {format_size(self.reserve.wanted_bytes)}, {reserve}",
            f"snapshots  {self.snapshots}, {format_size(self.content_bytes)} of files",
            f"stored     {format_size(self.stored_bytes)} in {self.chunks} chunks"
            + (f", ratio {ratio:.1f}" if ratio else ""),
            "could free " + ("unknown" if self.reclaimable_bytes is None else format_size(self.reclaimable_bytes)),
            f"volume     {described(self.volume_class)}",
        ]
        holder = self.holder
        if holder is not None and holder.mountpoint is not None:
            lines.append(f"mounted    at {holder.mountpoint} by process {holder.pid}")
        if self.recoveries:
            last = self.recoveries[-1]
            lines.append(f"recovery   last on {_rfc3339(last.time_ns)}: {last.fields.get('outcome', 'done')}")
        return "\n".join(lines)


def reserve_json(state: ReserveState) -> dict[str, Json]:
    """The reserve, as in `status --json` and `reserve --json`."""
    return {
        "whole": state.whole,
        "bytes": min(state.bytes_, state.wanted_bytes),
        "wanted_bytes": state.wanted_bytes,
    }


def _recovery(event: Event) -> Json:
    document: dict[str, Json] = {"time": _rfc3339(event.time_ns)}
    for key in ("trigger", "steps", "freed_bytes", "deleted_snapshots", "pause_s", "outcome"):
        document[key] = _json(event.fields.get(key))
    return document


def _json(value: Field) -> Json:
    return [*value] if isinstance(value, list) else value


def _rfc3339(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _mode(repository: "Repository", reserve: ReserveState, holder: Holder | None) -> str:
    """What the writer is in; beside one what it has told, without one what the disk tells."""
    if repository.writable:
        return repository.recovery.mode.value
    told = [event for event in repository.events.events() if event.name == MODE_EVENT]
    if told and holder is not None and told[-1].time_ns >= holder.since_ns:
        mode = told[-1].fields.get("mode")
        if mode in (Mode.READ_ONLY.value, Mode.FAILED.value):
            return str(mode)
    return (Mode.NORMAL if reserve.whole else Mode.EMERGENCY).value


def gather(repository: "Repository", holder: Holder | None) -> Status:
    """Look at everything now. A figure that damage hides is None, not an error."""
    space = repository.space
    level = space.level()
    try:
        room = space.room()
    except VolumeError as error:
        log.info("status.no_room", extra={"error": str(error)})  # the level says `unknown`
        room = Room(0, 0)
    listed = repository.listed()
    try:
        reclaimable: int | None = repository.reclaimable_bytes()
    except DamagedError as error:
        log.info("status.nothing_reclaimable", extra={"error": str(error)})
        reclaimable = None
    infos = repository.store.packs()
    reserve = space.reserve()
    return Status(
        level=level,
        mode=_mode(repository, reserve, holder),
        room=room,
        reserve=reserve,
        snapshots=len(listed),
        chunks=sum(info.records for info in infos),
        content_bytes=sum(slot.totals.content_bytes for slot in listed),
        stored_bytes=sum(info.allocated_bytes for info in infos),
        reclaimable_bytes=reclaimable,
        volume_class=repository.config.volume_class,
        holder=holder,
        recoveries=tuple(event for event in repository.events.events() if event.name == RECOVERY_EVENT),
    )
