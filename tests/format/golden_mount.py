"""A mount of `live` that remembers what was written through it, so that what is found can be compared with that."""

import os
from pathlib import Path

from repository.format.catalog import Slot, SnapshotKind
from repository.format.inode import NodeKind
from repository.live import attributes, names, writing
from tests.format.golden import Row, digest
from tests.format.ours import live_rows
from tests.support.repositories import SetClock
from tests.support.sync_live import SyncLive
from tests.support.world import Path_


class Mount:
    """A mount of `live` that remembers what it wrote."""

    def __init__(self, path: Path, clock: SetClock, written: dict[Path_, bytearray]) -> None:
        self.live = SyncLive(path, clock=clock)
        self.written = written

    def make(self, path: Path_, kind: NodeKind, mode: int = 0o644, rdev: int = 0, target: bytes = b"") -> None:
        wish = names.Wish(kind, mode, 1000, 100, rdev, target)
        names.create(self.live.tree, self.live.resolve(path[:-1]), path[-1], wish)
        if kind is NodeKind.FILE:
            self.written[path] = bytearray()

    def write(self, path: Path_, offset: int, data: bytes) -> None:
        writing.write(self.live.tree, self.live.resolve(path), offset, data)
        content = self.written[path]
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    def file(self, path: Path_, data: bytes) -> None:
        self.make(path, NodeKind.FILE)
        if data:
            self.write(path, 0, data)

    def truncate(self, path: Path_, size: int) -> None:
        attributes.set_attributes(self.live.tree, self.live.resolve(path), attributes.Wanted(size=size))
        content = self.written[path]
        del content[size:]
        content.extend(bytes(size - len(content)))

    def link(self, old: Path_, new: Path_) -> None:
        names.link(self.live.tree, self.live.resolve(old), self.live.resolve(new[:-1]), new[-1])
        if old in self.written:
            self.written[new] = self.written[old]

    def unlink(self, path: Path_) -> None:
        self.live.tree.forget(names.unlink(self.live.tree, self.live.resolve(path[:-1]), path[-1]))
        self.written.pop(path, None)

    def rename(self, old: Path_, new: Path_) -> None:
        places = (self.live.resolve(old[:-1]), old[-1]), (self.live.resolve(new[:-1]), new[-1])
        names.rename(self.live.tree, *places, 0)
        for path in [path for path in self.written if path[: len(old)] == old]:
            self.written[new + path[len(old) :]] = self.written.pop(path)

    def xattr(self, path: Path_, name: bytes, value: bytes) -> None:
        attributes.set_xattr(self.live.tree, self.live.resolve(path), name, value)

    def rows(self) -> list[Row]:
        """What is there, compared with what was written."""
        rows = live_rows(self.live)
        files = {os.fsdecode(b"/" + b"/".join(path)): digest(bytes(data)) for path, data in self.written.items()}
        assert {row.path: row.content for row in rows if row.kind == "file"} == files
        return rows

    def snapshot(self, kind: SnapshotKind = SnapshotKind.IMPLICIT, name: str | None = None) -> tuple[Slot, list[Row]]:
        rows = self.rows()
        slot = self.live.commit(kind, name)
        assert slot is not None
        return slot, rows
