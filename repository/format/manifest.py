"""A snapshot's manifest as bytes: JSON with sorted keys, in ASCII. Pure.

It is the root of everything that a snapshot refers to. Ids are written in hexadecimal; bytes that are no text
(xattrs) too; text with undecodable bytes keeps them as lone surrogates, as Python's file names do.
"""

import json
from dataclasses import dataclass
from typing import Final

from repository.errors import DamagedError
from repository.format.catalog import SnapshotKind
from repository.format.inode import EMPTY_DIR, DirRef, Inode, NodeKind, Totals
from repository.format.record import RAW_MAX_BYTES
from repository.ids import RECORD_ID_BYTES, ROOT_FILE_ID, FileId, RecordId

MANIFEST_VERSION: Final = 1
_SIGNED_64_END: Final = 1 << 63

_Json = dict[str, "_Json"] | list["_Json"] | str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot: when, of what, and its root.

    `root` is the root directory's inode (its listing in `root.directory`); `links` the links table, None without
    one. `totals`: names that are not directories, and bytes with every hard-linked inode counted once.
    `parent` is the manifest it was made from; it may be gone, and is nothing that keeps it. `name` as it was made;
    the catalog knows the present one.
    """

    time_ns: int
    source: str
    host: str
    kind: SnapshotKind
    root: Inode
    links: RecordId | None
    totals: Totals
    next_file_id: FileId
    parent: RecordId | None = None
    name: str = ""


def encode_manifest(manifest: Manifest) -> bytes:
    """The MANIFEST payload. Raises ValueError where it does not fit a record."""
    root = manifest.root
    if root.kind is not NodeKind.DIRECTORY:
        raise ValueError("the root of a snapshot is a directory")
    values: _Json = {
        "version": MANIFEST_VERSION,
        "time_ns": manifest.time_ns,
        "source": manifest.source,
        "host": manifest.host,
        "kind": manifest.kind.name.lower(),
        "name": manifest.name,
        "links": _hex(manifest.links),
        "parent": _hex(manifest.parent),
        "next_file_id": manifest.next_file_id,
        "totals": _totals(manifest.totals),
        "root": {
            "file_id": root.file_id,
            "version": root.version,
            "mode": root.mode,
            "uid": root.uid,
            "gid": root.gid,
            "nlink": root.nlink,
            "size": root.size,
            "atime_ns": root.atime_ns,
            "mtime_ns": root.mtime_ns,
            "ctime_ns": root.ctime_ns,
            "xattrs": [[name.hex(), value.hex()] for name, value in root.xattrs],
            "content": _hex(root.directory.content),
            "attrs": _hex(root.directory.attrs),
            "totals": _totals(root.totals),
        },
    }
    payload = json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")
    if len(payload) > RAW_MAX_BYTES:
        raise ValueError("the manifest does not fit into a record")
    return payload


def decode_manifest(payload: bytes) -> Manifest:
    """The inverse of `encode_manifest`. Keys it does not know are passed over. Raises DamagedError."""
    try:
        values: _Json = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"A snapshot's manifest is damaged: it is no JSON ({error}).") from error
    top = _Fields(values)
    if top.integer("version") != MANIFEST_VERSION:
        raise DamagedError("A snapshot's manifest has a version that this Ballast does not know.")
    root = top.fields("root")
    content, attrs = root.record_id("content"), root.record_id("attrs")
    if (content is None) is not (attrs is None):
        raise DamagedError("A snapshot's manifest is damaged: its root has half a listing.")
    kind = top.text("kind").upper()
    if kind not in SnapshotKind.__members__:
        raise DamagedError("A snapshot's manifest is damaged: its kind is unknown.")
    return Manifest(
        time_ns=top.integer("time_ns", -_SIGNED_64_END),
        source=top.text("source"),
        host=top.text("host"),
        kind=SnapshotKind[kind],
        name=top.text("name"),
        links=top.record_id("links"),
        parent=top.record_id("parent"),
        next_file_id=FileId(top.integer("next_file_id", ROOT_FILE_ID)),
        totals=top.totals(),
        root=Inode(
            NodeKind.DIRECTORY,
            FileId(root.integer("file_id")),
            version=root.integer("version"),
            mode=root.integer("mode"),
            uid=root.integer("uid"),
            gid=root.integer("gid"),
            nlink=root.integer("nlink"),
            size=root.integer("size"),
            atime_ns=root.integer("atime_ns", -_SIGNED_64_END),
            mtime_ns=root.integer("mtime_ns", -_SIGNED_64_END),
            ctime_ns=root.integer("ctime_ns", -_SIGNED_64_END),
            xattrs=root.xattrs(),
            directory=EMPTY_DIR if content is None else DirRef(content, attrs),
            totals=root.totals(),
        ),
    )


def _hex(record_id: RecordId | None) -> str | None:
    return None if record_id is None else record_id.hex()


def _totals(totals: Totals) -> _Json:
    return {"files": totals.files, "content_bytes": totals.content_bytes}


class _Fields:
    """A JSON object whose fields are asked for by type. Every method raises DamagedError for another one."""

    def __init__(self, values: _Json) -> None:
        if not isinstance(values, dict):
            raise DamagedError("A snapshot's manifest is damaged: an object is missing.")
        self._values = values

    def _refuse(self, name: str) -> DamagedError:
        return DamagedError(f"A snapshot's manifest is damaged: '{name}' is not what belongs there.")

    def integer(self, name: str, least: int = 0) -> int:
        found = self._values.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found < _SIGNED_64_END:
            raise self._refuse(name)
        return found

    def text(self, name: str) -> str:
        found = self._values.get(name)
        if not isinstance(found, str):
            raise self._refuse(name)
        return found

    def fields(self, name: str) -> "_Fields":
        return _Fields(self._values.get(name))

    def totals(self) -> Totals:
        found = self.fields("totals")
        return Totals(found.integer("files"), found.integer("content_bytes"))

    def record_id(self, name: str) -> RecordId | None:
        if self._values.get(name, "") is None:
            return None
        found = self._bytes(self.text(name), name)
        if len(found) != RECORD_ID_BYTES:
            raise self._refuse(name)
        return RecordId(found)

    def xattrs(self) -> tuple[tuple[bytes, bytes], ...]:
        found = self._values.get("xattrs")
        if not isinstance(found, list):
            raise self._refuse("xattrs")
        pairs: list[tuple[bytes, bytes]] = []
        for pair in found:
            match pair:
                case [str() as name, str() as value]:
                    pairs.append((self._bytes(name, "xattrs"), self._bytes(value, "xattrs")))
                case _:
                    raise self._refuse("xattrs")
        return tuple(pairs)

    def _bytes(self, text: str, name: str) -> bytes:
        try:
            return bytes.fromhex(text)
        except ValueError as error:
            raise self._refuse(name) from error
