"""POSIX ACLs as Linux stores them in xattrs, and what creating and chmod do to them. Pure.

Layout and rules: Linux `include/uapi/linux/posix_acl_xattr.h`, `fs/posix_acl.c` (posix_acl_create, posix_acl_chmod,
posix_acl_update_mode); acl(5).
"""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
_VERSION: Final = 2
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
ACLS_KEPT: Final = 256
"""ACLs of which it is remembered what they grant: a tree has few different ones, and `cp -a` sets one on every file."""
ACL_KEPT_BYTES_MAX: Final = 512
"""Longer ones, of more than 63 lines, are looked at anew each time."""
_MINIMAL: Final = frozenset({USER_OBJ, GROUP_OBJ, OTHER})


class AclEntry(NamedTuple):
    """One line of an ACL: `permissions` are rwx as 0 to 7; `id` matters for USER and GROUP only."""

    tag: int
    permissions: int
    id: int


def decode(value: bytes) -> tuple[AclEntry, ...]:
    """The entries of an xattr's value. Raises ValueError where it is not an ACL."""
    if len(value) < _HEAD.size or (len(value) - _HEAD.size) % _ENTRY.size or _HEAD.unpack_from(value)[0] != _VERSION:
        raise ValueError("not a POSIX ACL")
    entries = tuple(AclEntry(*_ENTRY.unpack_from(value, at)) for at in range(_HEAD.size, len(value), _ENTRY.size))
    tags = [entry.tag for entry in entries]
    named = USER in tags or GROUP in tags
    if entries and (
        any(tags.count(tag) != 1 for tag in _MINIMAL) or (named and MASK not in tags) or tags.count(MASK) > 1
    ):
        raise ValueError("not a POSIX ACL")
    if any(entry.permissions > 7 for entry in entries):
        raise ValueError("not a POSIX ACL")
    return entries


def encode(entries: tuple[AclEntry, ...]) -> bytes:
    """The xattr value of `entries`."""
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def granted(value: bytes) -> tuple[int, bool] | None:
    """The nine permission bits that the access ACL `value` grants, and whether they say as much as it does; None for an
    ACL without entries, which takes away the one that is there. Raises ValueError as `decode`."""
    return _granted_once(value) if len(value) <= ACL_KEPT_BYTES_MAX else _granted(value)


def _granted(value: bytes) -> tuple[int, bool] | None:
    entries = decode(value)
    return (mode_of(entries, 0), is_minimal(entries)) if entries else None


_granted_once: Final = lru_cache(ACLS_KEPT)(_granted)


def mode_of(entries: tuple[AclEntry, ...], mode: int) -> int:
    """`mode` with its nine permission bits replaced by what the access ACL grants."""
    by_tag = {entry.tag: entry.permissions for entry in entries}
    group = by_tag.get(MASK, by_tag[GROUP_OBJ])
    return (mode & ~0o777) | by_tag[USER_OBJ] << 6 | group << 3 | by_tag[OTHER]


def is_minimal(entries: tuple[AclEntry, ...]) -> bool:
    """Whether the mode bits say as much as the ACL does."""
    return {entry.tag for entry in entries} == _MINIMAL


def chmod(entries: tuple[AclEntry, ...], mode: int) -> tuple[AclEntry, ...]:
    """The access ACL after chmod(mode): owner, mask (or group) and other take the new bits."""
    group_tag = MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries)


def inherit(default: tuple[AclEntry, ...], mode: int) -> tuple[tuple[AclEntry, ...], int]:
    """Access ACL and mode of a file made with `mode` in a directory whose default ACL is `default`."""
    group_tag = MASK if any(entry.tag == MASK for entry in default) else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    access = tuple(
        entry._replace(permissions=entry.permissions & bits[entry.tag]) if entry.tag in bits else entry
        for entry in default
    )
    return access, mode_of(access, mode)
