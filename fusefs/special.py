"""The made-up part of a mount: its root, `snapshots/`, `trash/`, README.txt, `.ballast/status.json`, `latest`,
DISK-IS-FULL.txt."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import pyfuse3

from fusefs import inodes
from fusefs.attributes import FOREVER_S, attributes
from fusefs.inodes import InodeNumber
from repository.format.inode import Inode, NodeKind
from repository.ids import FileId

STATUS_FRESH_S: Final = 1.0
"""For this long one rendering of status.json serves, unless the mode or a snapshot changed: `stat`, `open` and `read`
of one program then agree on the size, and nobody reads of a mode that has ended."""

ROOT_NAMES: Final[dict[bytes, InodeNumber]] = {
    b"snapshots": inodes.SNAPSHOTS,
    b"trash": inodes.TRASH,
    b"README.txt": inodes.README,
    b".ballast": inodes.CONTROL_DIR,
}
LIVE_NAME: Final = b"live"
LATEST_NAME: Final = b"latest"
STATUS_NAME: Final = b"status.json"
DISK_IS_FULL_NAME: Final = b"DISK-IS-FULL.txt"

README_WRITABLE: Final = """\
This folder is a Ballast mount of
  {repository}

live/        Copy files here. What stays unchanged for a few seconds becomes a snapshot by itself.
snapshots/   Older states, read-only: browse them, and copy back whatever you need.
trash/       Deleted snapshots, until their room is needed.

To keep a state under a name:     mkdir "{mountpoint}/snapshots/before-upgrade"
To delete a snapshot:             mv "{mountpoint}/snapshots/NAME" "{mountpoint}/trash/"
To have it back:                  mv "{mountpoint}/trash/NAME" "{mountpoint}/snapshots/"
Before you unplug the disk:       ballast umount "{mountpoint}"

Removing files from live/ frees room on the disk only when no snapshot holds them any more.
"""

README_READ_ONLY: Final = """\
This folder is a read-only Ballast mount of
  {repository}

snapshots/   States of your files: browse them, and copy back whatever you need.
trash/       Deleted snapshots whose room has not been needed yet.

To unmount:  ballast umount "{mountpoint}"

To change anything, mount the repository without --read-only.
"""

Text = Callable[[], Awaitable[bytes]]
"""Renders the contents of a made-up file."""
State = Callable[[], object]
"""What a rendering has to be made anew for, when it changes. Never blocks."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who mounted, and therefore owns what is made up."""

    uid: int
    gid: int


class SpecialFiles:
    """Contents and attributes of the made-up files and directories.

    The kernel keeps the directories and README.txt, which stay as they are; everything else it asks for each time.
    """

    def __init__(
        self,
        owner: Owner,
        readme: bytes,
        status: Text,
        state: State,
        disk_is_full: Callable[[], bytes | None],
        writable: bool,
    ) -> None:
        self._owner = owner
        self._readme = readme
        self._status = status
        self._state = state
        self._disk_is_full = disk_is_full
        self._writable = writable
        self._mounted_ns = time.time_ns()
        self._rendered = b""
        self._rendered_s = float("-inf")
        self._rendered_state: object = None

    def root_names(self) -> dict[bytes, InodeNumber]:
        """What the root lists beside `live`."""
        if self._disk_is_full() is None:
            return ROOT_NAMES
        return ROOT_NAMES | {DISK_IS_FULL_NAME: inodes.DISK_IS_FULL}

    async def text(self, number: InodeNumber) -> bytes | None:
        """The contents of a made-up file; None if `number` is not one (now)."""
        match number:
            case inodes.README:
                return self._readme
            case inodes.STATUS_JSON:
                state = self._state()
                if state != self._rendered_state or time.monotonic() - self._rendered_s > STATUS_FRESH_S:
                    self._rendered = await self._status()
                    self._rendered_s, self._rendered_state = time.monotonic(), state
                return self._rendered
            case inodes.DISK_IS_FULL:
                return self._disk_is_full()
            case _:
                return None

    def directory(self, number: InodeNumber) -> pyfuse3.EntryAttributes:
        """Attributes of the made-up directory `number`: only its owner may create, delete and rename snapshots."""
        changeable = self._writable and number in (inodes.SNAPSHOTS, inodes.TRASH)
        return self._attributes(number, NodeKind.DIRECTORY, 0o755 if changeable else 0o555, 0, FOREVER_S)

    def file(self, number: InodeNumber, text: bytes) -> pyfuse3.EntryAttributes:
        """Attributes of the made-up file `number`, whose contents are `text`."""
        timeout_s = FOREVER_S if number == inodes.README else 0.0
        return self._attributes(number, NodeKind.FILE, 0o444, len(text), timeout_s)

    def link(self, target: bytes) -> pyfuse3.EntryAttributes:
        """Attributes of `latest`, which points to `target`."""
        return self._attributes(inodes.LATEST, NodeKind.SYMLINK, 0o777, len(target), 0.0)

    def _attributes(
        self, number: InodeNumber, kind: NodeKind, mode: int, size: int, timeout_s: float
    ) -> pyfuse3.EntryAttributes:
        inode = Inode(
            kind,
            FileId(0),
            mode=mode,
            uid=self._owner.uid,
            gid=self._owner.gid,
            size=size,
            atime_ns=self._mounted_ns,
            mtime_ns=self._mounted_ns,
            ctime_ns=self._mounted_ns,
            allocated_bytes=size,
        )
        return attributes(inode, number, timeout_s)


def readme(repository: str, mountpoint: str, *, writable: bool) -> bytes:
    """README.txt for this mount."""
    text = README_WRITABLE if writable else README_READ_ONLY
    return text.format(repository=repository, mountpoint=mountpoint).encode(errors="surrogateescape")
