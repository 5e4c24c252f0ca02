"""chmod, chown, utimes, truncate and extended attributes of the live tree."""

import errno
import stat
from typing import Final, NamedTuple

from repository.errors import RefusedError
from repository.format.inode import NodeKind
from repository.ids import FileId
from repository.live import acl
from repository.live.filedata import FILE_SIZE_MAX
from repository.live.node import Node, View
from repository.live.tree import LiveTree

CAPABILITY: Final = b"security.capability"
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_VALUE_BYTES_MAX: Final = 65_536
"""Both as in the kernel's VFS (XATTR_NAME_MAX, XATTR_SIZE_MAX)."""
XATTRS_BYTES_MAX: Final = 262_144
"""All names and values of one inode: bounds a journal entry and an XATTRS record."""


class Wanted(NamedTuple):
    """What a setattr asks for; None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


def set_attributes(tree: LiveTree, file_id: FileId, wanted: Wanted) -> Node:
    """Applies `wanted`; times as given, ctime is now unless given."""
    found = tree.resolve(file_id)
    if wanted.size is not None:
        if found.kind is NodeKind.DIRECTORY:
            raise RefusedError(errno.EISDIR)
        if found.kind is not NodeKind.FILE:
            raise RefusedError(errno.EINVAL)
        if wanted.size > FILE_SIZE_MAX:
            raise RefusedError(errno.EFBIG)
    node = tree.change(file_id)
    now = tree.clock.now_ns()
    if wanted.size is not None:
        resize(tree, node, wanted.size)
        node.mtime_ns = now
        drop_privileges(node)
    if wanted.uid is not None or wanted.gid is not None:
        node.uid = node.uid if wanted.uid is None else wanted.uid
        node.gid = node.gid if wanted.gid is None else wanted.gid
        if wanted.mode is None and node.kind is not NodeKind.DIRECTORY:
            drop_privileges(node)
        node.xattrs = tuple(pair for pair in node.xattrs if pair[0] != CAPABILITY)
    if wanted.mode is not None:
        _chmod(node, wanted.mode)
    if wanted.atime_ns is not None:
        node.atime_ns = wanted.atime_ns
    if wanted.mtime_ns is not None:
        node.mtime_ns = wanted.mtime_ns
    node.ctime_ns = now if wanted.ctime_ns is None else wanted.ctime_ns
    return node


def _chmod(node: Node, mode: int) -> None:
    node.mode = mode & 0o7777
    access = get(node.xattrs, acl.ACCESS)
    if access is not None:
        node.xattrs = _with(node.xattrs, acl.ACCESS, acl.encode(acl.chmod(acl.decode(access), mode)))


def resize(tree: LiveTree, node: Node, size: int) -> None:
    """Truncates or extends a file; what is added reads as zeros."""
    assert node.data is not None
    if size < node.size:
        shrunk = node.data.truncate(size)
        tree.run_bytes -= shrunk
        if shrunk and not node.data.runs:
            tree.with_runs.pop(node.file_id, None)
    node.size = size


def drop_privileges(node: Node) -> None:
    """Writing to a file takes its capabilities, its setuid bit, and its setgid bit if the group may execute it."""
    if node.xattrs:
        node.xattrs = tuple(pair for pair in node.xattrs if pair[0] != CAPABILITY)
    if node.mode & (stat.S_ISUID | stat.S_ISGID):
        node.mode &= ~stat.S_ISUID
        if node.mode & stat.S_IXGRP:
            node.mode &= ~stat.S_ISGID


def get(xattrs: tuple[tuple[bytes, bytes], ...], name: bytes) -> bytes | None:
    """The value of `name` in an inode's xattrs."""
    for key, value in xattrs:
        if key == name:
            return value
    return None


def set_xattr(tree: LiveTree, file_id: FileId, name: bytes, value: bytes) -> None:
    """setxattr(2) without flags; an access ACL changes the mode too."""
    if not name or len(name) > XATTR_NAME_BYTES_MAX:
        raise RefusedError(errno.ERANGE)
    if len(value) > XATTR_VALUE_BYTES_MAX:
        raise RefusedError(errno.E2BIG)
    found = tree.resolve(file_id)
    held = sum(len(key) + len(old) for key, old in found.xattrs) if found.xattrs else 0
    if held + len(name) + len(value) > XATTRS_BYTES_MAX:
        raise RefusedError(errno.ENOSPC)
    mode, keep = found.mode, True
    if name in (acl.ACCESS, acl.DEFAULT):
        mode, keep = _checked_acl(found, name, value)
    node = tree.change(file_id)
    node.mode = mode
    if keep or node.xattrs:
        node.xattrs = _with(node.xattrs, name, value if keep else None)
    node.ctime_ns = tree.clock.now_ns()


def _checked_acl(found: View, name: bytes, value: bytes) -> tuple[int, bool]:
    """The mode that the ACL `value` gives to `found`, and whether it says more than that and is to be kept."""
    if found.kind is NodeKind.SYMLINK:
        raise RefusedError(errno.EOPNOTSUPP)
    if name == acl.DEFAULT and found.kind is not NodeKind.DIRECTORY:
        raise RefusedError(errno.EACCES)
    try:
        granted = acl.granted(value)
    except ValueError:
        raise RefusedError(errno.EINVAL) from None
    if granted is None or name == acl.DEFAULT:
        return found.mode, granted is not None
    bits, is_minimal = granted
    return (found.mode & ~0o777) | bits, not is_minimal


def remove_xattr(tree: LiveTree, file_id: FileId, name: bytes) -> None:
    """removexattr(2); ENODATA where there is none (an ACL that is not there is no error, as on ext4)."""
    found = tree.resolve(file_id)
    if get(found.xattrs, name) is None:
        if name in (acl.ACCESS, acl.DEFAULT):
            return
        raise RefusedError(errno.ENODATA)
    node = tree.change(file_id)
    node.xattrs = _with(node.xattrs, name, None)
    node.ctime_ns = tree.clock.now_ns()


def _with(xattrs: tuple[tuple[bytes, bytes], ...], name: bytes, value: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
    rest = [pair for pair in xattrs if pair[0] != name]
    if value is not None:
        rest.append((name, value))
    return tuple(sorted(rest))
