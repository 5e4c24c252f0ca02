"""The live tree of a real repository, driven synchronously: what the mount does, without a kernel and an event loop."""

from collections.abc import Iterator
from pathlib import Path

from repository.chunker import Chunker
from repository.format.catalog import Slot, SnapshotKind
from repository.format.inode import DirRef, Inode, NodeKind
from repository.format.stats import Stat
from repository.ids import ROOT_FILE_ID, FileId, RecordId
from repository.journal import JournalWriter
from repository.live import journaling, writing
from repository.live.filedata import Piece
from repository.live.head import Frozen, HeadCommitter
from repository.live.listing import Listing
from repository.live.node import Node, View
from repository.live.tree import LiveTree
from repository.ports import Clock
from repository.repo import Repository
from repository.storage.calls import Calls


class SyncLive:
    """One mount's worth of `live`. Paths are tuples of names; looking one up remembers it, as a kernel would."""

    def __init__(self, path: Path, *, calls: Calls | None = None, clock: Clock | None = None) -> None:
        self.repository = Repository.open(path, writable=True, calls=calls, clock=clock)
        try:
            self.head = HeadCommitter(self.repository)
            self.tree, self.recovery, mark = self.head.open()
            self.repository.marks.mounted()
        except BaseException:
            self.kill()
            raise
        self.store = self.repository.store
        self.journal = JournalWriter(self.store, self.repository.clock, mark)
        self.chunker = Chunker(self.repository.config.chunker)
        self.leases = (self.store.lease(), self.store.lease())
        self._job: writing.Job | None = None
        self._captured: journaling.Capture | None = None
        self._stuck: Frozen | None = None
        """What was being written when something failed: it goes first the next time."""

    def resolve(self, path: tuple[bytes, ...]) -> FileId:
        """The file id of a path that exists."""
        at = ROOT_FILE_ID
        for name in path:
            found = self.tree.find(at, name)
            assert found is not None, path
            view, linked = found
            self.tree.remember(at, name, view.file_id, linked=linked)
            at = view.file_id
        return at

    def store_runs(self) -> None:
        """Everything in memory becomes chunks."""
        while (job := self._job or writing.take(self.tree, self.chunker, final=True)) is not None:
            self._job = job
            writing.land(self.tree, job, writing.run_job(job, self.store, self.chunker, self.leases[0]))
            self._job = None

    def flush(self) -> None:
        """What fsync does."""
        self.store_runs()
        while (captured := self._captured or journaling.capture(self.tree)).count:
            self._captured = captured
            with self.store.closing():
                self.journal.write(journaling.changes_of(captured), self.leases[1], self.tree.base.serial)
            self._captured = None
        self.store.sync()

    def commit(self, kind: SnapshotKind | None = SnapshotKind.IMPLICIT, name: str | None = None) -> Slot | None:
        """What a snapshot does."""
        if self._stuck is not None:
            self._write(self._stuck, None, None)
        self.flush()
        floor = self.journal.floor()
        nodes, gone = self.tree.freeze()
        leases = self.leases
        self.leases = (self.store.lease(), self.store.lease())
        frozen = Frozen(nodes, gone, leases, self.tree.next_file_id, self.journal.mark, floor)
        return self._write(frozen, kind, name)

    def _write(self, frozen: Frozen, kind: SnapshotKind | None, name: str | None) -> Slot | None:
        self._stuck = frozen
        outcome = self.head.commit(frozen, self.tree.base, kind, name)
        self.tree.install(outcome.base, outcome.inodes)
        self._stuck = None
        for lease in frozen.leases:
            lease.close()
        return outcome.slot

    def close(self) -> None:
        """A clean end."""
        self.commit()
        self.repository.marks.unmounted()
        self.repository.close()

    def kill(self) -> None:
        """The end of a process that gets no word in: the lock goes, nothing else is done."""
        assert self.repository.lock is not None
        self.repository.lock.release()

    def content(self, view: View) -> bytes:
        """A file's bytes."""
        if isinstance(view, Inode):
            return read_inode(self.repository, view)
        assert view.data is not None
        out = bytearray()
        for start, end, source in view.data.spans(0, view.size):
            if isinstance(source, Piece):
                assert source.chunk is not None
                chunk = self.store.read(source.chunk).payload
                out += chunk[source.chunk_offset : source.chunk_offset + end - start]
            elif isinstance(source, Inode):
                out += read_inode(self.repository, source)[start:end]
            else:
                out += bytes(end - start) if source is None else source
        return bytes(out)

    def picture(self) -> dict[tuple[bytes, ...], tuple[object, ...]]:
        """Everything that can be seen under `live`, by path; hard links show as equal file ids."""
        return dict(self._picture((), ROOT_FILE_ID))

    def _picture(
        self, path: tuple[bytes, ...], directory: FileId
    ) -> list[tuple[tuple[bytes, ...], tuple[object, ...]]]:
        found: list[tuple[tuple[bytes, ...], tuple[object, ...]]] = []
        for name, view in entries(self.tree, directory):
            here = (*path, name)
            self.resolve(here)
            data = self.content(view) if view.kind is NodeKind.FILE else view.target
            found.append((here, seen(view, data)))
            if view.kind is NodeKind.DIRECTORY:
                found += self._picture(here, view.file_id)
        return found


def entries(tree: LiveTree, directory: FileId) -> Iterator[tuple[bytes, View]]:
    """All entries of a directory, in name order, each as a look-up finds it."""
    listing = Listing(tree, directory)
    while batch := listing.batch():
        for one in batch:
            assert one is not None
            name, view, linked = one
            found = tree.find(directory, name)
            assert found is not None and found[1] == linked and told_of(found[0]) == told_of(view)
            yield name, found[0]


def told_of(view: View | Stat) -> tuple[object, ...]:
    """What `stat` tells of an inode."""
    times = (view.atime_ns, view.mtime_ns, view.ctime_ns)
    owners = (view.mode, view.uid, view.gid)
    return (view.kind, view.file_id, view.rdev, view.size, view.nlink, view.allocated_bytes, *owners, *times)


def seen(view: Node | Inode, data: bytes) -> tuple[object, ...]:
    """What a program can tell of an inode, times left out."""
    links = 1 if view.kind is NodeKind.DIRECTORY else view.nlink
    return (view.kind, view.file_id, view.mode, view.uid, view.gid, view.size, links, view.xattrs, data)


def read_inode(repository: Repository, inode: Inode) -> bytes:
    """The bytes of a committed file."""
    out = bytearray(inode.size)
    for offset, length, chunk, start in repository.reader.extents(inode, 0, inode.size):
        out[offset : offset + length] = repository.store.read(chunk).payload[start : start + length]
    return bytes(out)


def picture_of(repository: Repository, slot: Slot) -> dict[tuple[bytes, ...], tuple[object, ...]]:
    """Everything in a snapshot, by path."""
    manifest = repository.manifest(slot)
    assert manifest is not None
    return dict(_walk(repository, (), manifest.root.directory, manifest.links))


def _walk(
    repository: Repository, path: tuple[bytes, ...], listing: DirRef, links: RecordId | None
) -> list[tuple[tuple[bytes, ...], tuple[object, ...]]]:
    found: list[tuple[tuple[bytes, ...], tuple[object, ...]]] = []
    for name, entry in repository.reader.scan(listing):
        inode = entry
        if entry.kind is NodeKind.LINK:
            linked = repository.reader.link(links, entry.file_id)
            assert linked is not None
            inode = linked
        here = (*path, name)
        data = read_inode(repository, inode) if inode.kind is NodeKind.FILE else inode.target
        found.append((here, seen(inode, data)))
        if inode.kind is NodeKind.DIRECTORY:
            found += _walk(repository, here, inode.directory, links)
    return found
