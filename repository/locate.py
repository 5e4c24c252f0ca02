"""`SNAPSHOT[:PATH]`, as `restore` and `snapshot diff` take it: which snapshot, and what in it."""

import os
from dataclasses import dataclass

from repository.errors import DamagedError, NoSuchSnapshotError
from repository.format.catalog import Slot
from repository.format.inode import Inode, NodeKind
from repository.ids import RecordId
from repository.repo import Repository


@dataclass(frozen=True, slots=True)
class Located:
    """Something in a snapshot. `path` without slashes at its ends, empty for the root; `inode` is never a LINK."""

    slot: Slot
    path: bytes
    inode: Inode
    links: RecordId | None

    @property
    def name(self) -> bytes:
        """The last component of the path."""
        return self.path.rpartition(b"/")[2]


def locate(repo: Repository, wanted: str) -> Located:
    """What `wanted` names. A name that holds colons is tried whole first, then up to each of them.

    Raises NoSuchSnapshotError, also for a path that is not in the snapshot, and DamagedError.
    """
    slot, path = _split(repo, wanted)
    manifest = repo.manifest(slot)
    if manifest is None:
        raise DamagedError(f"The snapshot '{slot.name}' has no manifest.")
    inode = manifest.root
    names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
    for depth, name in enumerate(names):
        found = repo.reader.lookup(inode.directory, name) if inode.kind is NodeKind.DIRECTORY else None
        if found is not None and found.kind is NodeKind.LINK:
            found = repo.reader.link(manifest.links, found.file_id)
        if found is None:
            missing = os.fsdecode(b"/".join(names[: depth + 1]))
            raise NoSuchSnapshotError(f"There is no '{missing}' in the snapshot '{slot.name}'.")
        inode = found
    return Located(slot, b"/".join(names), inode, manifest.links)


def _split(repo: Repository, wanted: str) -> tuple[Slot, str]:
    first: NoSuchSnapshotError | None = None
    end = len(wanted)
    borders = [end, *(at for at, sign in enumerate(wanted) if sign == ":")]
    for border in borders:
        try:
            return repo.find(wanted[:border]), wanted[border + 1 :]
        except NoSuchSnapshotError as error:
            if first is None or border == borders[1]:  # the sentence about what stands before the first colon
                first = error
    assert first is not None
    raise first
