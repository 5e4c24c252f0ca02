"""`snapshot create` as one call: scan, read, build, publish."""

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from repository.chunker import Chunker
from repository.codec import Codec
from repository.create.ahead import look_ahead
from repository.create.builder import Builder, Built
from repository.create.estimate import Planned, gave_up, require_room
from repository.create.exclude import Excludes
from repository.create.ingest import Ingest
from repository.create.plan import Base, FileIds, ScanOptions, wanted_tree
from repository.create.readers import Readers
from repository.create.scan import Scanner
from repository.create.sinks import CountingStore, Growth, HeldTrees, SharedWriter
from repository.create.skim import ScanCounts
from repository.create.source import SourceError, directory_identity, lstat_path
from repository.create.worker import ReadingWork
from repository.errors import BallastError, DamagedError, NoSpaceError, UsageError
from repository.format.catalog import Slot, cut_source
from repository.format.inode import Totals
from repository.ids import FileId
from repository.leases import Lease
from repository.notices import Notices
from repository.policy.preflight import Estimate
from repository.ports import Progress
from repository.recovery import GAVE_UP_EVENT
from repository.repo import Repository, Tree
from repository.trees.writer import TreeWriter

STORERS: Final = 2
"""Threads that hash, compress and append what readers of large files cut."""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What to store. `paths` as given; `mounts`: absolute paths of Ballast mounts; `name` None takes the time;
    `estimate`: refuse beforehand what cannot fit."""

    paths: Sequence[bytes]
    name: str | None
    excludes: Excludes
    exclude_caches: bool = False
    one_file_system: bool = False
    mounts: frozenset[bytes] = frozenset()
    estimate: bool = True


@dataclass(frozen=True, slots=True)
class Created:
    """A published snapshot and what it took. Sizes in bytes; `stored_bytes` is what the repository grew by."""

    slot: Slot
    counts: ScanCounts
    changed_files: int
    stored_bytes: int
    parent: str | None


def absolute(path: bytes) -> bytes:
    """`path` made absolute as it is written; only a `..` has its directory's symlinks resolved first."""
    joined = os.path.join(os.getcwdb(), path)
    if b".." in joined.split(b"/"):
        directory, name = os.path.split(joined.rstrip(b"/"))
        return os.path.realpath(joined) if name in (b"..", b".") else os.path.join(os.path.realpath(directory), name)
    normal = os.path.normpath(joined)
    return normal[1:] if normal.startswith(b"//") else normal


def source_of(paths: Sequence[bytes]) -> str:
    """`host:path[,path...]`, by which the parent of a later snapshot is found."""
    return f"{socket.gethostname()}:{','.join(os.fsdecode(path) for path in sorted(set(paths)))}"


def create_snapshot(repo: Repository, request: CreateRequest, notices: Notices, progress: Progress) -> Created:
    """Store the files and publish the snapshot. Durable on return.

    Files that cannot be read are told to `notices` and left out. Raises UsageError, NameTakenError, NoSpaceError and
    what the store raises; nothing is published then, and what was stored is found again by the next attempt. But
    after NoSpaceError it is collected at once: others need the room more.
    """
    if request.name is not None:
        repo.snapshots.require_name(request.name)
    paths = _named(repo, request, notices)
    source = source_of(paths)
    scan, estimate = _begin(repo, request, paths, _parent(repo, source), notices, progress)
    growth = Growth()
    try:
        with repo.store.lease() as lease:
            while True:
                run = _Run(repo, lease, growth, notices, progress)
                try:
                    built, changed_files = run.build(scan.scanner)
                    break
                except DamagedError as error:
                    if scan.parent is None:
                        raise
                    notices.note(_unreadable(scan.parent, error))
                    scan = _scan(repo, request, paths, None, notices)
            slot = run.publish(scan, built, source, request.name)
    except NoSpaceError as error:
        repo.recovery.give_up(0 if estimate is None else estimate.upper_bytes)
        raise NoSpaceError(gave_up(repo, growth.nbytes), error.needed_bytes) from error
    parent = None if scan.parent is None else scan.parent.name
    return Created(slot, scan.scanner.counts, changed_files, growth.nbytes, parent)


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan that has begun, at `time_ns`; the ids that it gives, and the snapshot that it compares with."""

    scanner: Scanner
    ids: FileIds
    parent: Slot | None
    time_ns: int


def _scan(
    repo: Repository,
    request: CreateRequest,
    paths: list[bytes],
    parent: Slot | None,
    notices: Notices,
    *,
    ahead: bool = True,
) -> _Scan:
    """Begin to scan, with a crew that looks ahead if `ahead`. Raises DamagedError where `parent` cannot be read."""
    time_ns = repo.clock.now_ns()
    ids = FileIds(repo.catalog.next_file_id())
    options, base, wanted = _options(repo, request), _base(repo, parent), wanted_tree(paths)
    crew = look_ahead(repo, options, base, wanted) if ahead else None
    scanner = Scanner(options, base, repo.reader, ids, notices, crew)
    try:
        scanner.begin(wanted)
    except BaseException as error:
        scanner.close()
        if isinstance(error, SourceError):
            raise BallastError(f"'/' cannot be read: {error}.") from error
        raise
    return _Scan(scanner, ids, parent, time_ns)


def _begin(
    repo: Repository,
    request: CreateRequest,
    paths: list[bytes],
    parent: Slot | None,
    notices: Notices,
    progress: Progress,
) -> tuple[_Scan, Estimate | None]:
    """Begin to scan; and where that was asked for, find out first whether it can fit."""
    try:
        scan = _scan(repo, request, paths, parent, notices)
        return scan, _estimate(repo, request, paths, scan, progress) if request.estimate else None
    except DamagedError as error:
        if parent is None:
            raise
        notices.note(_unreadable(parent, error))
        return _begin(repo, request, paths, None, notices, progress)


def _estimate(
    repo: Repository, request: CreateRequest, paths: list[bytes], scan: _Scan, progress: Progress
) -> Estimate | None:
    """See `estimate.require_room`."""

    def again() -> Scanner:
        return _scan(repo, request, paths, scan.parent, _Silence(), ahead=False).scanner

    left_out = request.mounts | {os.fsencode(repo.volume.root)}
    progress.start("Estimating", None)
    try:
        planned = Planned(paths, request.one_file_system, left_out, scan.parent)
        return require_room(repo, planned, scan.scanner, again, progress)
    except BaseException as error:
        scan.scanner.close()
        if isinstance(error, NoSpaceError):
            repo.events.add(GAVE_UP_EVENT, {"freed_bytes": 0, "needed_bytes": error.needed_bytes})
        raise
    finally:
        progress.finish()


def _unreadable(parent: Slot, error: DamagedError) -> str:
    return f"The snapshot before this one ('{parent.name}') cannot be read ({error}): every file is read again."


class _Silence:
    """For a scan that is repeated: what it has to tell will be told then."""

    def problem(self, path: bytes, why: str) -> None:
        pass

    def note(self, sentence: str) -> None:
        pass


def _named(repo: Repository, request: CreateRequest, notices: Notices) -> list[bytes]:
    """The named paths that can be stored; the others are told. Raises UsageError when none is left."""
    repository = directory_identity(os.fsencode(repo.volume.root))
    found: list[bytes] = []
    failures: list[tuple[bytes, str]] = []
    for path in dict.fromkeys(absolute(path) for path in request.paths):
        try:
            there = lstat_path(path)
        except SourceError as error:
            failures.append((path, str(error)))
            continue
        why = _left_out(path, (there.st_dev, there.st_ino), repository, request.mounts)
        if why:
            failures.append((path, why))
        else:
            found.append(path)
    if not found:
        path, why = failures[0]
        raise UsageError(f"'{os.fsdecode(path)}' cannot be stored: {why}.")
    for path, why in failures:
        notices.problem(path, why)
    return found


def _left_out(path: bytes, own: tuple[int, int], repository: tuple[int, int], mounts: frozenset[bytes]) -> str:
    """Why nothing of a named path would be stored: it lies where the scanner never goes. Empty for any other.

    `own`: what lstat says of it (a symlink to the repository is stored as what it is); what leads there is followed.
    """
    identity = own
    while True:
        if path in mounts:
            return f"it lies in '{os.fsdecode(path)}', a Ballast mount"
        if identity == repository:
            return "it lies in the repository itself"
        if path == b"/":
            return ""
        path = os.path.dirname(path)
        identity = directory_identity(path)


def _parent(repo: Repository, source: str) -> Slot | None:
    """The newest listed snapshot of the same source."""
    wanted = cut_source(source)
    for slot in reversed(repo.snapshots.listed()):
        if cut_source(slot.source) != wanted:
            continue
        try:
            manifest = repo.manifest(slot)
        except DamagedError:
            continue
        if manifest is not None and manifest.source == source:
            return slot
    return None


def _base(repo: Repository, parent: Slot | None) -> Base | None:
    if parent is None:
        return None
    manifest = repo.manifest(parent)
    assert manifest is not None
    return Base(manifest.root, manifest.links, manifest.time_ns)


def _options(repo: Repository, request: CreateRequest) -> ScanOptions:
    return ScanOptions(
        request.excludes,
        request.exclude_caches,
        request.one_file_system,
        directory_identity(os.fsencode(repo.volume.root)),
        request.mounts,
    )


class _Run:
    """One attempt."""

    def __init__(
        self,
        repo: Repository,
        lease: Lease,
        growth: Growth,
        notices: Notices,
        progress: Progress,
    ) -> None:
        self._repo = repo
        self._lease = lease
        self._notices = notices
        self._progress = progress
        self._store = CountingStore(repo, growth)

    def publish(self, scan: _Scan, built: Built, source: str, name: str | None) -> Slot:
        """List what was built as a snapshot."""
        tree = Tree(built.root, built.links, FileId(scan.ids.next), scan.time_ns, source, self._totals(built))
        return self._repo.publish(tree, self._lease, name=name, parent=scan.parent)

    def _totals(self, built: Built) -> Totals:
        """Of the whole snapshot: names that are not directories, and every hard-linked inode's bytes once."""
        linked = self._repo.reader.link_totals(built.links)
        return Totals(built.root.totals.files, built.root.totals.content_bytes + linked.content_bytes)

    def build(self, scanner: Scanner) -> tuple[Built, int]:
        """Go on with a scan to its end; the tree, and how many files were new or changed."""
        config, reader = self._repo.config, self._repo.reader
        chunker, codec = Chunker(config.chunker), Codec(config.id_key, config.seed)
        extents = SharedWriter(TreeWriter(self._store, reader, self._lease))
        trees = HeldTrees(self._store, codec, reader, self._lease)
        work = ReadingWork(chunker, codec, self._repo.store.known, self._store.recent)
        with Readers(work) as readers, ThreadPoolExecutor(STORERS, "store") as storers:
            ingest = Ingest(
                self._store, extents, chunker, lease=self._lease, storing=storers, crew=lambda: readers.crew
            )
            builder = Builder(scanner, ingest, trees, readers, notices=self._notices, progress=self._progress)
            self._progress.start("Storing", None)
            try:
                built = builder.run()
                trees.flush()
                return built, builder.changed_files
            except BaseException:
                ingest.stop()
                builder.abandon()
                raise
            finally:
                self._progress.finish()
