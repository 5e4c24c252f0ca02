"""What a directory's segments refer to, found without decoding the rest: for walks over whole trees. Pure.

The ids stand at the end of both payloads, so counting the columns before them is enough. The columns have to fill the
payload to the byte; what stands in them is verified by whoever decodes it, and by `check`.
"""

import struct
from typing import Final

from repository.format.attributes import ATTR_ROW_BYTES, XATTRS_RECORD
from repository.format.filerows import EXTENT_ROW, FORM_REF
from repository.format.files import FORMS, KINDS
from repository.format.inode import NodeKind
from repository.format.packing import refuse, split_ids
from repository.format.tree import LAYOUT, SEGMENT_ENTRIES_MAX
from repository.ids import RECORD_ID_BYTES, RecordId

_CONTENT_HEAD: Final = struct.Struct("<B3xI")
_ATTRS_HEAD: Final = struct.Struct("<B3xII")
_U64_BYTES: Final = 8
_U16_BYTES: Final = 2
_PAIR_BYTES: Final = 16


def content_references(payload: bytes, origin: RecordId) -> tuple[list[RecordId], list[RecordId]]:
    """Nodes (extent lists, child listings) and chunks of a DIR_CONTENT payload. Raises DamagedError naming `origin`."""
    if len(payload) < _CONTENT_HEAD.size:
        refuse(origin, "it is cut off")
    layout, count = _CONTENT_HEAD.unpack_from(payload)
    _check_head(origin, layout, count)
    at = _CONTENT_HEAD.size + count
    at += sum(payload[_CONTENT_HEAD.size : at])
    kinds = payload[at : at + count]
    at += count
    files = kinds.count(NodeKind.FILE)
    forms = payload[at : at + files]
    if kinds.translate(None, KINDS) or forms.translate(None, FORMS):
        refuse(origin, "an entry's type is unknown")
    references = forms.count(FORM_REF)
    inline = sum(forms) - FORM_REF * references
    directories = kinds.count(NodeKind.DIRECTORY)
    devices = kinds.count(NodeKind.CHARACTER) + kinds.count(NodeKind.BLOCK)
    at += files + _U64_BYTES * (count + devices) + EXTENT_ROW.size * inline + _PAIR_BYTES * (references + directories)
    links = kinds.count(NodeKind.SYMLINK)
    if links:
        lengths = payload[at : at + _U16_BYTES * links]
        at += _U16_BYTES * links + sum(lengths[:links]) + 256 * sum(lengths[links:])
    ids = _ids_at(payload, at, inline + references + directories, origin)
    return split_ids(ids[inline * RECORD_ID_BYTES :]), split_ids(ids[: inline * RECORD_ID_BYTES])


def attrs_references(payload: bytes, origin: RecordId) -> tuple[list[RecordId], list[RecordId]]:
    """Child listings and XATTRS records of a DIR_ATTRS payload. Raises DamagedError naming `origin`."""
    if len(payload) < _ATTRS_HEAD.size:
        refuse(origin, "it is cut off")
    layout, count, directories = _ATTRS_HEAD.unpack_from(payload)
    _check_head(origin, layout, count)
    if directories > count:
        refuse(origin, "it has more directories than entries")
    at = _ATTRS_HEAD.size + count * ATTR_ROW_BYTES
    lengths = payload[at : at + _U16_BYTES * count]
    at += _U16_BYTES * count
    records = 0
    if lengths.count(0) != len(lengths):
        for low, high in zip(lengths[:count], lengths[count:], strict=False):
            if low | high << 8 == XATTRS_RECORD:
                records += 1
            else:
                at += low | high << 8
    ids = _ids_at(payload, at, records + directories, origin)
    return split_ids(ids[records * RECORD_ID_BYTES :]), split_ids(ids[: records * RECORD_ID_BYTES])


def _check_head(origin: RecordId, layout: int, count: int) -> None:
    if layout != LAYOUT:
        refuse(origin, f"its layout {layout} is unknown")
    if not 1 <= count <= SEGMENT_ENTRIES_MAX:
        refuse(origin, "its number of entries is impossible")


def _ids_at(payload: bytes, at: int, count: int, origin: RecordId) -> bytes:
    """The last `count` ids of `payload`, which have to begin at byte `at`."""
    if at + count * RECORD_ID_BYTES != len(payload):
        refuse(origin, "its columns do not fill it")
    return payload[at:]
