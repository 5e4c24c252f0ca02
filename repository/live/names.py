"""Making, linking, moving and removing names in the live tree, as POSIX says.

Each function checks everything first and then changes the tree in one go: it either happens whole, or raises.
Owner of `nlink` and of the rule that a node without a name is an orphan.
"""

import errno
import stat
from typing import Final, NamedTuple

from repository.errors import RefusedError
from repository.format.inode import NodeKind
from repository.ids import FILE_ID_BITS, FileId
from repository.live import acl
from repository.live.attributes import get
from repository.live.filedata import FileData
from repository.live.node import Node, View
from repository.live.tree import NAME_BYTES_MAX, LiveTree

LINKS_MAX: Final = 65_000
"""Names of one inode: as on ext4."""
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


def checked_name(name: bytes) -> bytes:
    """`name`, or RefusedError where no file may be called that."""
    if len(name) > NAME_BYTES_MAX:
        raise RefusedError(errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise RefusedError(errno.EINVAL)
    return name


class Wish(NamedTuple):
    """What a new inode is to be. `mode`: permission bits as asked for; `umask` counts where no default ACL does."""

    kind: NodeKind
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    umask: int = 0


def create(tree: LiveTree, parent: FileId, name: bytes, wish: Wish) -> Node:
    """A new inode under `name`."""
    checked_name(name)
    directory = tree.directory(parent)
    if tree.lookup(parent, name) is not None:
        raise RefusedError(errno.EEXIST)
    if tree.next_file_id >> FILE_ID_BITS:
        raise RefusedError(errno.ENOSPC)
    kind = wish.kind
    mode, gid, xattrs = _inherited(directory, wish)
    holder = tree.change(parent)
    now = tree.clock.now_ns()
    node = Node(
        kind=kind,
        file_id=tree.next_file_id,
        parent=parent,
        name=name,
        mode=mode,
        uid=wish.uid,
        gid=gid,
        rdev=wish.rdev,
        size=len(wish.target),
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        xattrs=xattrs,
        target=wish.target,
        fresh=True,
        data=FileData() if kind is NodeKind.FILE else None,
    )
    tree.next_file_id = FileId(tree.next_file_id + 1)
    tree.overlay[node.file_id] = node
    tree.journal_nodes[node.file_id] = None
    set_name(tree, holder, name, node.file_id, was=None)
    _stamp(holder, now)
    return node


def _inherited(directory: View, wish: Wish) -> tuple[int, int, tuple[tuple[bytes, bytes], ...]]:
    """Mode, group and xattrs of a new inode, given the setgid bit and the default ACL of its directory."""
    kind, mode, gid = wish.kind, wish.mode, wish.gid
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if kind is NodeKind.DIRECTORY:
            mode |= stat.S_ISGID
    if kind is NodeKind.SYMLINK:
        return mode, gid, ()
    default = get(directory.xattrs, acl.DEFAULT) if directory.xattrs else None
    if default is None:
        return mode & ~wish.umask, gid, ()
    access, mode = acl.inherit(acl.decode(default), mode)
    xattrs: list[tuple[bytes, bytes]] = []
    if not acl.is_minimal(access):
        xattrs.append((acl.ACCESS, acl.encode(access)))
    if kind is NodeKind.DIRECTORY:
        xattrs.append((acl.DEFAULT, default))
    return mode, gid, tuple(xattrs)


def link(tree: LiveTree, file_id: FileId, parent: FileId, name: bytes) -> Node:
    """Another name for an inode that is not a directory."""
    checked_name(name)
    tree.directory(parent)
    found = tree.resolve(file_id)
    if found.kind is NodeKind.DIRECTORY:
        raise RefusedError(errno.EPERM)
    if found.nlink == 0:
        raise RefusedError(errno.ENOENT)
    if found.nlink >= LINKS_MAX:
        raise RefusedError(errno.EMLINK)
    if tree.lookup(parent, name) is not None:
        raise RefusedError(errno.EEXIST)
    holder = tree.change(parent)
    node = tree.change(file_id)
    now = tree.clock.now_ns()
    make_linked(tree, node)
    node.nlink += 1
    node.ctime_ns = now
    set_name(tree, holder, name, file_id, was=None)
    _stamp(holder, now)
    return node


def make_linked(tree: LiveTree, node: Node) -> None:
    """From now on the inode lives in the links table; its one name so far becomes a LINK entry."""
    if node.linked:
        return
    holder = tree.own(node.parent)
    holder.changes[node.name] = node.file_id
    node.linked = True
    if node.file_id in tree.places:
        tree.places[node.file_id] = None


def unlink(tree: LiveTree, parent: FileId, name: bytes) -> FileId:
    """Removes a name that is not a directory's; returns whose it was."""
    tree.directory(parent)
    view = tree.find(parent, name)
    if view is None:
        raise RefusedError(errno.ENOENT)
    found, linked = view
    if found.kind is NodeKind.DIRECTORY:
        raise RefusedError(errno.EISDIR)
    holder = tree.change(parent)
    node = tree.change_named(parent, name, found.file_id, linked=linked)
    _remove(tree, holder, name, node)
    return node.file_id


def rmdir(tree: LiveTree, parent: FileId, name: bytes) -> FileId:
    """Removes an empty directory; returns which it was."""
    tree.directory(parent)
    view = tree.find(parent, name)
    if view is None:
        raise RefusedError(errno.ENOENT)
    found, linked = view
    if found.kind is not NodeKind.DIRECTORY:
        raise RefusedError(errno.ENOTDIR)
    if tree.count(found):
        raise RefusedError(errno.ENOTEMPTY)
    holder = tree.change(parent)
    node = tree.change_named(parent, name, found.file_id, linked=linked)
    _remove(tree, holder, name, node)
    return node.file_id


def rename(tree: LiveTree, old: tuple[FileId, bytes], new: tuple[FileId, bytes], flags: int) -> None:
    """renameat2(2) of one (parent, name) to another; whiteouts are refused.

    The kernel has seen to it that no directory moves below itself.
    """
    old_parent, old_name = old
    new_parent, new_name = new
    checked_name(new_name)
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        raise RefusedError(errno.EINVAL)
    tree.directory(old_parent)
    tree.directory(new_parent)
    moving = tree.find(old_parent, old_name)
    target = tree.find(new_parent, new_name)
    if moving is None or (flags & RENAME_EXCHANGE and target is None):
        raise RefusedError(errno.ENOENT)
    if target is not None and flags & RENAME_NOREPLACE:
        raise RefusedError(errno.EEXIST)
    if target is not None and target[0].file_id == moving[0].file_id:
        return
    if target is not None and not flags & RENAME_EXCHANGE:
        _check_replaceable(tree, moving[0], target[0])
    source = tree.change(old_parent)
    destination = tree.change(new_parent)
    node = tree.change_named(old_parent, old_name, moving[0].file_id, linked=moving[1])
    other = None
    if target is not None:
        other = tree.change_named(new_parent, new_name, target[0].file_id, linked=target[1])
    now = tree.clock.now_ns()
    if flags & RENAME_EXCHANGE:
        assert other is not None
        set_name(tree, source, old_name, other.file_id, was=node.file_id)
        set_name(tree, destination, new_name, node.file_id, was=other.file_id)
        _hang(tree, other, old_parent, old_name)
        other.ctime_ns = now
    else:
        if other is not None:
            _remove(tree, destination, new_name, other)
        set_name(tree, source, old_name, None, was=node.file_id)
        set_name(tree, destination, new_name, node.file_id, was=None)
    _hang(tree, node, new_parent, new_name)
    node.ctime_ns = now
    _stamp(source, now)
    _stamp(destination, now)


def _check_replaceable(tree: LiveTree, moving: View, target: View) -> None:
    if moving.kind is NodeKind.DIRECTORY:
        if target.kind is not NodeKind.DIRECTORY:
            raise RefusedError(errno.ENOTDIR)
        if tree.count(target):
            raise RefusedError(errno.ENOTEMPTY)
    elif target.kind is NodeKind.DIRECTORY:
        raise RefusedError(errno.EISDIR)


def _hang(tree: LiveTree, node: Node, parent: FileId, name: bytes) -> None:
    if node.linked:
        return
    node.parent, node.name = parent, name
    if node.file_id in tree.places:
        tree.places[node.file_id] = (parent, name)


def _remove(tree: LiveTree, holder: Node, name: bytes, node: Node) -> None:
    now = tree.clock.now_ns()
    set_name(tree, holder, name, None, was=node.file_id)
    _stamp(holder, now)
    node.nlink = 0 if node.kind is NodeKind.DIRECTORY else node.nlink - 1
    node.ctime_ns = now
    if node.nlink == 0:
        drop(tree, node)


def drop(tree: LiveTree, node: Node) -> None:
    """The last name is gone: the node leaves the generation, and stays only for those who have it open."""
    tree.discard(node.file_id)
    tree.journal_nodes.pop(node.file_id, None)
    tree.journal_gone.append(node.file_id)
    if node.linked:
        tree.gone_links.add(node.file_id)
    if node.file_id in tree.places:
        tree.orphans[node.file_id] = node
    else:
        tree.discard_runs(node)


def set_name(tree: LiveTree, holder: Node, name: bytes, child: FileId | None, *, was: FileId | None) -> None:
    """Binds `name` in `holder`, which the caller has marked as changed, and keeps its count."""
    holder.changes[name] = child
    tree.names_changed += 1
    holder.count += (child is not None) - (was is not None)
    tree.journal_names[(holder.file_id, name)] = None


def _stamp(directory: Node, now_ns: int) -> None:
    directory.mtime_ns = now_ns
    directory.ctime_ns = now_ns
