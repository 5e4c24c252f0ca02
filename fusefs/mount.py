"""Composes a mount: opens the repository, builds what is served from it, and hands that to `service.py`."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from fusefs import heap, mountpoints
from fusefs.answers import Answers
from fusefs.browse import Browse
from fusefs.committer import Committer
from fusefs.daemon import ForegroundReport, Report, run_in_background
from fusefs.eviction import Eviction, evict_live
from fusefs.idle import shrink_when_idle
from fusefs.logs import start_logging
from fusefs.monitor import Monitor
from fusefs.neighbours import Neighbours
from fusefs.nodes import SnapshotNodes
from fusefs.operations import Operations, StatFs
from fusefs.pagecache import PageCache
from fusefs.places import PlaceTable
from fusefs.readpath import ReadPath
from fusefs.service import Composition, MountPlace, Service, Verb
from fusefs.session import LiveSession, recovery_lines
from fusefs.snapshots import Snapshots
from fusefs.sources import ForeignCatalog, OwnCatalog
from fusefs.special import Owner, SpecialFiles, State, readme
from fusefs.statfs import Statfs
from fusefs.trees import Trees
from fusefs.upkeep import Upkeep
from fusefs.verbs import Verbs
from fusefs.workers import Workers
from repository.configfile import read_config
from repository.policy.schedule import Pace
from repository.recovery import RecoverySettings
from repository.repo import Repository
from repository.storage.volume import Volume

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountSettings:
    """What `ballast mount` was asked for. Times in seconds."""

    repository: str
    mountpoint: str
    read_only: bool
    foreground: bool
    allow_other: bool
    pace: Pace
    keep_all: bool
    auto_delete: bool
    min_snapshots: int
    deletion_exponent: float
    write_deadline_s: float


def mount(settings: MountSettings) -> None:
    """Mounts and returns once it serves, or (in the foreground) after it ended. Raises BallastError."""
    place = MountPlace(
        os.path.realpath(settings.repository),
        mountpoints.resolved_mountpoint(settings.mountpoint),
        settings.read_only,
        settings.allow_other,
    )
    read_config(Volume(Path(place.repository)))  # is there one at all? The rest is looked at in the background
    mountpoints.check_fuse(allow_other=settings.allow_other)
    service = partial(_serve, place, settings)
    if settings.foreground:
        service(ForegroundReport())
    else:
        run_in_background(service)


def _serve(place: MountPlace, settings: MountSettings, report: Report) -> None:
    """The whole life of the mount, in this process."""
    start_logging(Path(place.repository), foreground=settings.foreground)
    heap.bound()
    trio.run(_Mount(place, settings, report).run)


class _Mount:
    """Puts one mount together. Each part gets what it needs through its constructor, and only here."""

    def __init__(self, place: MountPlace, settings: MountSettings, report: Report) -> None:
        self._place = place
        self._settings = settings
        self._report = report
        self._workers = Workers()
        self._answers = Answers(self._workers.is_telling)

    async def run(self) -> None:
        await Service(self._place, self._workers).run(self._compose, self._report)

    async def _compose(self, nursery: trio.Nursery) -> Composition:
        """Opens first: whoever does not get the repository must not disturb what is at the mountpoint."""
        writable = not self._settings.read_only
        repository = await self._workers.slow(_open, self._place.repository, writable)
        try:
            for line in await self._workers.slow(mountpoints.prepare, self._place.mountpoint, self._place.repository):
                self._report.say(line)
            trees = Trees(repository.reader.cache.view(inline=False), self._workers)
            reads = ReadPath(repository.store, trees, self._workers, nursery)
            neighbours = Neighbours(repository.reader, trees, reads, self._workers, nursery)
            if not writable:
                return self._read_only(repository, trees, reads, neighbours)
            return await self._writable(repository, trees, reads, neighbours, nursery)
        except BaseException:
            repository.close()
            raise

    def _read_only(self, repository: Repository, trees: Trees, reads: ReadPath, neighbours: Neighbours) -> Composition:
        source = ForeignCatalog(repository.catalog, repository.store, repository.volume)
        snapshots = Snapshots(source, self._workers)
        verbs = Verbs(repository, self._workers, self._place.mountpoint, None).table()
        places = PlaceTable()
        browse = Browse(
            self._special(verbs, lambda: repository.catalog.serial, lambda: None),
            snapshots,
            trees,
            SnapshotNodes(snapshots, trees, places),
            reads,
            neighbours,
            PageCache(),
            live=None,
            actions=None,
        )
        return Composition(
            Operations(browse, None, self._statfs(repository), self._answers),
            self._answers,
            close=repository.close,
            tasks=[
                Eviction(places, trees, self._workers, self._place.mountpoint, browse.open_directories).run,
                partial(shrink_when_idle, reads, self._workers),
                snapshots.let_go,
            ],
            verbs=verbs,
        )

    async def _writable(
        self, repository: Repository, trees: Trees, reads: ReadPath, neighbours: Neighbours, nursery: trio.Nursery
    ) -> Composition:
        settings = self._settings
        repository.recovery.settings = RecoverySettings(
            settings.auto_delete, settings.min_snapshots, settings.deletion_exponent
        )
        session = LiveSession(repository, reads, trees, neighbours, self._workers, nursery, settings.write_deadline_s)
        for line in recovery_lines(session.recovery):
            self._report.say(line)
        await self._workers.slow(repository.marks.mounted, self._place.mountpoint)
        monitor = Monitor(repository, self._workers, self._place.mountpoint)
        session.guard.climbed, session.guard.freed = monitor.wake, monitor.deleted
        upkeep = Upkeep(repository, self._workers, monitor.deleted)
        committer = Committer(session, upkeep, self._settings.pace)
        snapshots = Snapshots(OwnCatalog(repository.catalog, repository.store, repository.snapshots), self._workers)
        verbs = Verbs(repository, self._workers, self._place.mountpoint, committer).table()
        places = PlaceTable()
        browse = Browse(
            self._special(verbs, lambda: (repository.recovery.mode, repository.catalog.serial), monitor.disk_is_full),
            snapshots,
            trees,
            SnapshotNodes(snapshots, trees, places),
            reads,
            neighbours,
            PageCache(),
            live=session.ops,
            actions=committer,
        )
        return Composition(
            Operations(browse, session.ops, self._statfs(repository), self._answers),
            self._answers,
            close=repository.close,
            hurry=repository.recovery.stop,
            session=session,
            tasks=[
                Eviction(places, trees, self._workers, self._place.mountpoint, browse.open_directories).run,
                partial(shrink_when_idle, reads, self._workers),
                partial(evict_live, session.ops.known.overdue, self._workers),
                session.flush_now_and_then,
                monitor.run,
                snapshots.let_go,
                committer.run,
                upkeep.collect_now_and_then,
                *([] if self._settings.keep_all else [upkeep.condense_now_and_then]),
            ],
            verbs=verbs,
            repository_socket=True,
        )

    def _statfs(self, repository: Repository) -> StatFs:
        return Statfs(repository.space, lambda: repository.recovery.mode, self._workers).ask

    def _special(
        self, verbs: Mapping[str, Verb], state: State, disk_is_full: Callable[[], bytes | None]
    ) -> SpecialFiles:
        async def status() -> bytes:
            answer = await verbs["status"]({})
            return json.dumps(answer["status"], indent=2).encode() + b"\n"

        writable = not self._settings.read_only
        text = readme(self._place.repository, self._place.mountpoint, writable=writable)
        return SpecialFiles(Owner(os.getuid(), os.getgid()), text, status, state, disk_is_full, writable)


def _open(repository: str, writable: bool) -> Repository:
    return Repository.open(Path(repository), writable=writable)
