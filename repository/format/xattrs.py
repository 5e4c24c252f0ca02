"""Extended attributes as bytes. Pure."""

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from repository.format.packing import refuse
from repository.ids import RecordId
from repository.units import MIB

XATTR_NAME_MAX_BYTES: Final = 255
INLINE_XATTRS_MAX_BYTES: Final = 256
"""Longer encoded xattrs go into an XATTRS record. An ACL or an SELinux label fits."""
XATTRS_MAX_BYTES: Final = 1 * MIB
"""Encoded xattrs of one inode: a manifest holds its root's as text. Whoever sets xattrs has to refuse beyond it."""

_XATTR_HEAD: Final = struct.Struct("<BI")

Xattrs = tuple[tuple[bytes, bytes], ...]


def encoded_length(xattrs: Iterable[tuple[bytes, bytes]]) -> int:
    """How many bytes `encode_xattrs` makes of them; more than XATTRS_MAX_BYTES are refused."""
    return sum(_XATTR_HEAD.size + len(name) + len(value) for name, value in xattrs)


def encode_xattrs(xattrs: Xattrs) -> bytes:
    """Extended attributes in the order given: name length u8, value length u32, name, value; repeated.

    Raises ValueError for a name that is empty or longer than 255 bytes, or more than XATTRS_MAX_BYTES in all.
    """
    parts: list[bytes] = []
    for name, value in xattrs:
        if not 0 < len(name) <= XATTR_NAME_MAX_BYTES:
            raise ValueError("the name of an extended attribute has 1 to 255 bytes")
        parts += (_XATTR_HEAD.pack(len(name), len(value)), name, value)
    encoded = b"".join(parts)
    if len(encoded) > XATTRS_MAX_BYTES:
        raise ValueError("the extended attributes of a file do not fit into a record")
    return encoded


@lru_cache(maxsize=1024)
def _parse_xattrs(encoded: bytes) -> Xattrs | None:
    """None where `encoded` is not what `encode_xattrs` makes. Most files share a few sets, hence the cache."""
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(encoded):
        if at + _XATTR_HEAD.size > len(encoded):
            return None
        name_length, value_length = _XATTR_HEAD.unpack_from(encoded, at)
        at += _XATTR_HEAD.size
        name = encoded[at : at + name_length]
        at += name_length
        value = encoded[at : at + value_length]
        at += value_length
        if not name or at > len(encoded):
            return None
        found.append((name, value))
    return tuple(found)


def decode_xattrs(encoded: bytes, origin: RecordId) -> Xattrs:
    """The inverse of `encode_xattrs`. Raises DamagedError naming record `origin`."""
    short = len(encoded) <= INLINE_XATTRS_MAX_BYTES
    found = _parse_xattrs(encoded) if short else _parse_xattrs.__wrapped__(encoded)
    if found is None:
        refuse(origin, "its extended attributes cannot be taken apart")
    return found
