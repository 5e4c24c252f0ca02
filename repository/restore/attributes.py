"""Owner, extended attributes, mode and times of what is restored; and what a failed call at the destination means."""

import contextlib
import errno
import os
from typing import Final

from repository.errors import NoSpaceError, VolumeError
from repository.format.inode import Inode, NodeKind

ACL_ACCESS: Final = "system.posix_acl_access"
ACL_DEFAULT: Final = "system.posix_acl_default"
_NEEDS_ROOT: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
"""Answers to chown: not root; an owner that this user namespace does not know; a file system without owners."""
_FOREIGN_XATTRS: Final = ("security.", "trusted.", "system.")
"""Namespaces that an ordinary user may not set, or that another file system does not have: passed over silently."""
_TOO_LARGE_XATTR: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE})
"""Answers to setxattr where the volume keeps less per file than the source did (ext4: 4 KiB). A disk that is really
full says so again at the next write."""


class TargetError(Exception):
    """One file could not be written; the text says why, in a few words. `holds_files`: a destination is not empty."""

    holds_files = False


def failure(error: OSError) -> Exception:
    """The typed error of a failed call: a full or read-only volume ends everything, anything else one file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError("The destination is full; what was restored so far is complete.")
    if error.errno in (errno.EROFS, errno.EIO):
        return VolumeError(f"The destination cannot be written: {error.strerror}.", error.errno)
    return TargetError(error.strerror or str(error))


class Attributes:
    """Sets owner, extended attributes, mode and times, in the order in which none undoes another.

    What only root may do (owners, and xattrs outside `user.`) is passed over silently for others, as tar does;
    a file whose owner could not be set loses its setuid and setgid bits. Change times cannot be set on Linux.
    Extended attributes that the volume has no place for are named in the answer; the file is there without them.
    """

    def __init__(self, *, inherited_acls: bool = False) -> None:
        self.inherited_acls = inherited_acls

    def look_at(self, directory_fd: int) -> None:
        """Note whether files in this directory would inherit an ACL, which must then be taken off again."""
        try:
            os.getxattr(directory_fd, ACL_DEFAULT)
        except OSError:
            return
        self.inherited_acls = True

    def apply(self, fd: int, inode: Inode) -> str:
        """To an open file or directory. Returns what could not be set and should have been, in words; mostly empty."""
        try:
            mode = inode.mode if _chown(fd, inode) else inode.mode & 0o1777
            lack = self._set_xattrs(fd, inode)
            os.fchmod(fd, mode)
            os.utime(fd, ns=(inode.atime_ns, inode.mtime_ns))
        except OSError as error:
            raise failure(error) from error
        return lack

    def apply_to_name(self, directory_fd: int, name: bytes, inode: Inode) -> str:
        """To what must not be opened: symlinks, FIFOs, sockets, devices. Returns as `apply`."""
        try:
            owned = _chown_name(directory_fd, name, inode)
            lack = self._set_xattrs(b"/proc/self/fd/%d/%s" % (directory_fd, name), inode)
            if inode.kind is not NodeKind.SYMLINK:
                os.chmod(name, inode.mode if owned else inode.mode & 0o1777, dir_fd=directory_fd)
            os.utime(name, ns=(inode.atime_ns, inode.mtime_ns), dir_fd=directory_fd, follow_symlinks=False)
        except OSError as error:
            raise failure(error) from error
        return lack

    def _set_xattrs(self, target: int | bytes, inode: Inode) -> str:
        if not inode.xattrs and not self.inherited_acls:
            return ""
        follow = isinstance(target, int)
        names = set()
        homeless: list[str] = []
        for raw_name, value in inode.xattrs:
            name = os.fsdecode(raw_name)
            names.add(name)
            try:
                os.setxattr(target, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno in _TOO_LARGE_XATTR:
                    homeless.append(name)
                elif not name.startswith(_FOREIGN_XATTRS) and error.errno not in (errno.ENOTSUP, errno.ENOENT):
                    raise
        if self.inherited_acls and inode.kind is not NodeKind.SYMLINK:
            for name in (ACL_ACCESS, ACL_DEFAULT):
                if name not in names:
                    with contextlib.suppress(OSError):
                        os.removexattr(target, name, follow_symlinks=follow)
        if not homeless:
            return ""
        which = ", ".join(map(repr, homeless))
        return f"restored without extended attributes that do not fit on this volume: {which}"


def _chown(fd: int, inode: Inode) -> bool:
    """Whether the file belongs now to whom it should."""
    try:
        os.fchown(fd, inode.uid, inode.gid)
    except OSError as error:
        if error.errno not in _NEEDS_ROOT:
            raise
        with contextlib.suppress(OSError):
            os.fchown(fd, -1, inode.gid)
        return False
    return True


def _chown_name(directory_fd: int, name: bytes, inode: Inode) -> bool:
    try:
        os.chown(name, inode.uid, inode.gid, dir_fd=directory_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NEEDS_ROOT:
            raise
        return False
    return True
