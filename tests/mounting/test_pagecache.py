"""Small files of a snapshot are in the kernel's page cache when `open` returns."""

import ctypes
import mmap
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusefs.pagecache import REMEMBERED_MAX
from tests.mounting.test_handshake import reads_of
from tests.support.mounting import Mounting

pytestmark = pytest.mark.mount

MANY = REMEMBERED_MAX + 400
"""More than are remembered: so each walk in the same order hands every file over again."""
READERS = 4
READ_ALL = """
import os, sys
top, start = os.fsencode(sys.argv[1]), int(sys.argv[2])
names = sorted(os.listdir(top))
for lap in range(2):
    for name in names[start:] + names[:start]:
        opened = os.open(os.path.join(top, name), os.O_RDONLY)
        found = os.pread(opened, 1 << 20, 0)
        if found != name * 500:
            sys.exit("wrong bytes of %r: %r" % (name, found[:40]))
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.pread(opened, 8, 100) != found[100:108]:
            sys.exit("wrong bytes of %r afterwards" % name)
        os.close(opened)
"""


def stored(ballast: Mounting, files: int) -> Path:
    """So many small files in a snapshot, mounted; the directory that they are in."""
    source = ballast.base / "source"
    source.mkdir()
    for number in range(files):
        name = f"{number:05}"
        (source / name).write_text(name * 500)
    ballast.ballast("snapshot", "create", ballast.repository, source, "--name", "one")
    ballast.mount("--read-only")
    return ballast.snapshots / "one" / source.relative_to("/")


def in_memory(file: Path) -> bool:
    """Whether the first page of the file is in the page cache, asked of an `open` that nothing was read through."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened = os.open(file, os.O_RDONLY)
    try:
        with mmap.mmap(opened, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            pages = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE + 1))()
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), pages) == 0
            return bool(pages[0] & 1)
    finally:
        os.close(opened)


def test_a_copied_file_is_two_requests(ballast: Mounting) -> None:
    files = 600
    top = stored(ballast, files)
    names = sorted(os.listdir(top))
    assert not in_memory(top / names[-1])
    for name in names[:20]:  # from here on its neighbours are read ahead
        assert (top / name).read_text() == name * 500
    assert in_memory(top / names[50])
    pid = ballast.pid()
    before = reads_of(pid)
    for name in names:
        opened = os.open(top / name, os.O_RDONLY)  # Python's own `open` asks for a terminal, which is a request more
        assert os.pread(opened, 1 << 20, 0) == name.encode() * 500
        os.close(opened)
    requests = reads_of(pid) - before
    assert requests < 2.5 * files, "open and release of each; waiting for the device comes to some more"


def test_readers_that_meet_in_the_same_files_never_wait_for_each_other_for_good(ballast: Mounting) -> None:
    top = stored(ballast, MANY)
    starts = [0] * (READERS - 1) + [MANY // 2]
    with ExitStack() as running:
        readers = [
            running.enter_context(subprocess.Popen([sys.executable, "-c", READ_ALL, str(top), str(start)]))
            for start in starts
        ]
        for reader in readers:
            running.callback(reader.kill)
        assert [reader.wait(timeout=100) for reader in readers] == [0] * READERS
