"""The directory that the golden repository holds as a snapshot straight from a path; making it needs root."""

import hashlib
import os
import random
import socket
import stat
import struct
from pathlib import Path

from tests.format.golden import Row, digest, text_of, xattr_rows

OLD_NS = 1_700_000_000_123_456_789
ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"


def acl(*rows: tuple[int, int, int]) -> bytes:
    """An ACL as Linux keeps it in an extended attribute: (tag, permissions, id) after its version."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


NAMED_USER = acl((1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
"""user::rw-, user:1234:r--, group::r--, mask::rw-, other::---"""


def make_source(root: Path, seed: int) -> None:
    """Files of every kind, with owners, modes, times before 1970, extended attributes, holes and links."""
    chance = random.Random(seed)
    base = os.fsencode(root)
    for name in (b"", b"/empty", b"/names", b"/nodes", b"/tied", b"/tied/further"):
        os.mkdir(base + name)
    _write(base + b"/plain", b"Everything that was acknowledged is here.\n" * 40)
    _write(base + b"/noise", chance.randbytes(20_000))
    _write(base + b"/nothing", b"")
    for name in (b"\xff\xfe\x80", "naïve ☃".encode(), b"line\nbreak", b"x" * 255, b" ", b"-rf", b"a:b\\c*?"):
        _write(base + b"/names/" + name, name)
    with open(base + b"/sparse", "xb") as file:
        for offset, part in ((300_000, b"first island"), (2_000_000, b"second island")):
            file.seek(offset)
            file.write(part)
        file.truncate(3_000_000)
    _write(base + b"/tied/one", b"one file, three names")
    for name in (b"/tied/two", b"/tied/further/three"):
        os.link(base + b"/tied/one", base + name)
    os.symlink(b"../plain", base + b"/tied/pointer")
    os.symlink(b"nowhere/" * 120, base + b"/dangling")
    os.link(base + b"/dangling", base + b"/tied/dangling too", follow_symlinks=False)
    os.mkfifo(base + b"/nodes/fifo", 0o620)
    os.mknod(base + b"/nodes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(base + b"/nodes/disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "nodes" / "socket"))
    _write(base + b"/attributed", b"look at my attributes")
    os.setxattr(base + b"/attributed", "user.short", b"\0\x01binary\xff")
    os.setxattr(base + b"/attributed", "user.long", b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(9)))
    os.setxattr(base + b"/plain", ACL_ACCESS, NAMED_USER)
    os.setxattr(base + b"/empty", ACL_DEFAULT, NAMED_USER)
    os.setxattr(base + b"/empty", "user.empty", b"")
    os.chown(base + b"/noise", 1000, 4_000_000_000)
    os.chmod(base + b"/noise", 0o4751)
    os.chmod(base + b"/empty", 0o1777)
    _age(base)
    os.utime(base + b"/nothing", ns=(-1, -86_400_000_000_001))


def _write(path: bytes, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


def _age(base: bytes) -> None:
    for directory, _, names in os.walk(base, topdown=False):
        for number, name in enumerate(sorted(names)):
            times = (OLD_NS + number, OLD_NS - 1_000_000_000 * number)
            os.utime(os.path.join(directory, name), ns=times, follow_symlinks=False)
        os.utime(directory, ns=(OLD_NS, OLD_NS))


TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character", stat.S_IFBLK: "block",
}  # fmt: skip


def agrees(row: Row, found: os.stat_result, path: bytes) -> bool:
    """Whether a row is what the kernel says of the file; sizes and link counts of directories are not kept."""
    kind = TYPES[stat.S_IFMT(found.st_mode)]
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names)
    said = [
        row.kind == kind,
        row.mode == stat.S_IMODE(found.st_mode),
        (row.uid, row.gid) == (found.st_uid, found.st_gid),
        kind == "directory" or (row.size, row.nlink) == (found.st_size, found.st_nlink),
        row.rdev == (found.st_rdev if kind in ("character", "block") else 0),
        (row.mtime_ns, row.ctime_ns) == (found.st_mtime_ns, found.st_ctime_ns),
        tuple(sorted(row.xattrs)) == xattr_rows(xattrs),
        row.target == (text_of(os.readlink(path)) if kind == "symlink" else ""),
    ]
    if kind == "file":
        with open(path, "rb") as file:
            said.append(row.content == digest(file.read()))
    return all(said)
