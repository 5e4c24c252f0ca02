"""A disk that logs: a mounted folder with the file `disk`, to be put under a loop device, and the file `notes`.

What is written to `disk` and each of its fsyncs is appended to a log (see `blocklog`), one after the other, before it
is answered; what programs append to `notes` stands between them where it belongs. As a script, one process of its own:
python -m tests.support.blocklog_fuse FOLDER IMAGE LOG. It ends when FOLDER is unmounted.
"""

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from tests.support.blocklog import Entry, Kind, pack
from tests.support.mounted import is_mounted, run, wait_until

DISK: Final = pyfuse3.InodeT(2)
NOTES: Final = pyfuse3.InodeT(3)
NAMES: Final = {b"disk": DISK, b"notes": NOTES}
FLUSH_S: Final = 0.004
"""What a flush takes, as on a disk: writes go on meanwhile."""
END_S: Final = 5.0
ROOT_FOLDER: Final = Path(__file__).parents[2]


class BlockLog(pyfuse3.Operations):
    """No handler waits for anything before it has noted its request: the log's order is that of the requests."""

    enable_writeback_cache = False

    def __init__(self, image: int, log: int) -> None:
        super().__init__()
        self._image = image
        self._log = log

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        about = pyfuse3.EntryAttributes()
        about.st_ino = inode
        about.st_mode = stat.S_IFDIR | 0o700 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
        about.st_nlink = 1
        about.st_size = os.fstat(self._image).st_size if inode == DISK else 0
        return about

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return await self.getattr(inode, ctx)  # times are of no interest

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name not in NAMES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(NAMES[name], ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self._image, size, off) if fh == DISK else b""

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        if fh == DISK:
            self._note(Entry(Kind.WRITE, off, buf))
            return os.pwrite(self._image, buf, off)
        self._note(Entry(Kind.NOTE, 0, buf))
        return len(buf)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        if fh == DISK:
            self._note(Entry(Kind.FLUSH))  # for what was written before it was asked for, and nothing else
            await trio.sleep(FLUSH_S)

    def _note(self, entry: Entry) -> None:
        line = pack(entry)
        assert os.write(self._log, line) == len(line)


@contextmanager
def logging_disk(folder: Path, image: Path, log: Path) -> Iterator[tuple[str, Path]]:
    """`image` as a block device that keeps `log`, both as long as this lasts: the device, and the file for notes."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.blocklog_fuse", folder, image, log]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT_FOLDER, stdin=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: is_mounted(folder) or server.poll() is not None, "the logging disk")
            with loop_device(folder / "disk") as device:
                yield device, folder / "notes"
        finally:
            while is_mounted(folder):
                subprocess.run(["umount", "-l", folder], check=True)
            with suppress(subprocess.TimeoutExpired):  # who copied our mounts into a namespace of theirs keeps it
                server.wait(END_S)
            server.kill()
    assert server.returncode in (0, -signal.SIGKILL), "the logging disk failed"


@contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """A block device over a file."""
    device = run(["losetup", "--find", "--show", file]).strip()
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])


def main(arguments: Sequence[str]) -> None:
    """Serves until it is unmounted."""
    folder, image, log = arguments
    operations = BlockLog(os.open(image, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    pyfuse3.init(operations, folder, {*pyfuse3.default_options, "fsname=blocklog"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1:])
