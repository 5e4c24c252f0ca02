"""Rows of expectation, as the present code reads them."""

from collections.abc import Iterator

from repository.format.catalog import Slot
from repository.format.inode import DirRef, Inode, NodeKind
from repository.ids import RecordId
from repository.live.node import Node, View
from repository.repo import Repository
from tests.format.golden import KINDS, Row, digest, text_of, xattr_rows
from tests.support.sync_live import SyncLive, entries, read_inode


def row(path: bytes, view: View, data: bytes) -> Row:
    """What is expected of `view` under `path`. `data`: a file's bytes."""
    inode = view.attributes() if isinstance(view, Node) else view
    return Row(
        text_of(path), KINDS[inode.kind], inode.file_id, inode.version, inode.mode, inode.uid, inode.gid, inode.rdev,
        inode.size, inode.nlink, inode.atime_ns, inode.mtime_ns, inode.ctime_ns, xattr_rows(inode.xattrs),
        text_of(inode.target), digest(data) if inode.kind is NodeKind.FILE else "",
    )  # fmt: skip


def live_rows(live: SyncLive) -> list[Row]:
    """Everything under `live`, its root first, directories before what is in them."""

    def below(path: bytes, view: View) -> Iterator[Row]:
        yield row(path, view, live.content(view) if view.kind is NodeKind.FILE else b"")
        if view.kind is NodeKind.DIRECTORY:
            for name, child in entries(live.tree, view.file_id):
                live.resolve(tuple((path + b"/" + name).split(b"/")[1:]))
                yield from below(path + b"/" + name, child)

    return list(below(b"", live.tree.resolve(live.tree.base.root.file_id)))


def snapshot_rows(repository: Repository, slot: Slot) -> list[Row]:
    """Everything in a snapshot, in the same order."""
    manifest = repository.manifest(slot)
    assert manifest is not None
    return list(_below(repository, manifest.links, b"", manifest.root))


def _below(repository: Repository, links: RecordId | None, path: bytes, entry: Inode) -> Iterator[Row]:
    inode = entry
    if entry.kind is NodeKind.LINK:
        linked = repository.reader.link(links, entry.file_id)
        assert linked is not None
        inode = linked
    yield row(path, inode, read_inode(repository, inode) if inode.kind is NodeKind.FILE else b"")
    listing: DirRef = inode.directory
    for name, child in repository.reader.scan(listing):
        yield from _below(repository, links, path + b"/" + name, child)
