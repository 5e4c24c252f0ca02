"""The golden repository of format 1 as it is stored, and what is expected to be in it.

`golden/format-1.tar.xz` holds the repository as a killed mount left it, the intents that were under way while it was
made, and the layout of its sparse files; `golden/format-1.json.xz` what is expected. make_golden.py made both, once;
they are never made again: a release that writes another format keeps this one readable and adds its own.
"""

import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypedDict

GOLDEN: Final = Path(__file__).parent / "golden"
ARCHIVE: Final = GOLDEN / "format-1.tar.xz"
EXPECTED: Final = GOLDEN / "format-1.json.xz"
REPOSITORY: Final = "repository"
INTENTS: Final = "intents"
LAYOUT: Final = "layout.json"
INTENT_BYTES: Final = 131_072
LONG_XATTR: Final = 64
"""Longer values are expected by their hash."""
KINDS: Final = ("", "file", "directory", "symlink", "fifo", "socket", "character", "block")


class Row(NamedTuple):
    """Everything that is expected of one name. Bytes of names and targets as os.fsdecode makes text of them."""

    path: str
    kind: str
    file_id: int
    version: int
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    xattrs: tuple[tuple[str, str], ...]
    target: str
    content: str
    """SHA-256 of a file's bytes."""


class ExpectedSnapshot(TypedDict):
    """A slot of the catalog and everything below its root; `rows` also has the root, with an empty path."""

    id: int
    name: str
    source: str
    state: str
    kind: str
    pinned: bool
    time_ns: int
    deleted_ns: int
    files: int
    content_bytes: int
    next_file_id: int
    rows: list[Row]


class Expected(TypedDict):
    """`live` is the state with the journal replayed. `punched` and `unlinked`: what the stored intents say."""

    snapshots: list[ExpectedSnapshot]
    live: list[Row]
    changes: dict[str, int]
    flushes: int
    events: list[str]
    punched: list[tuple[int, int, int]]
    unlinked: list[int]


class Layout(TypedDict):
    """Holes of punched packs, as (start, end) in bytes; modification times of packs and segments."""

    holes: dict[str, list[tuple[int, int]]]
    mtimes_ns: dict[str, int]


def text_of(name: bytes) -> str:
    return os.fsdecode(name)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def xattr_rows(xattrs: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[str, str], ...]:
    """Names, and values in hexadecimal; of long ones the hash."""
    return tuple((text_of(name), value.hex() if len(value) <= LONG_XATTR else digest(value)) for name, value in xattrs)


# --- packing and unpacking ---------------------------------------------------------------------------------------


def pack(root: Path, intents: bytes, layout: Layout) -> bytes:
    """The archive: equal for equal repositories, whoever packs them when."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            member = tarfile.TarInfo(f"{REPOSITORY}/{path.relative_to(root)}")
            member.mode = path.stat().st_mode & 0o777
            if path.is_dir():
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                _add(archive, member, path.read_bytes())
        _add(archive, tarfile.TarInfo(INTENTS), intents)
        _add(archive, tarfile.TarInfo(LAYOUT), json.dumps(layout, sort_keys=True).encode())
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, data: bytes) -> None:
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def unpacked() -> dict[str, tuple[int, bytes | None]]:
    """The archive's members: mode and bytes, None for a directory."""
    found: dict[str, tuple[int, bytes | None]] = {}
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(ARCHIVE.read_bytes()))) as archive:
        for member in archive:
            file = archive.extractfile(member)
            found[member.name] = member.mode, None if file is None else file.read()
    return found


def lay_out(members: Mapping[str, tuple[int, bytes | None]], root: Path, *, as_it_was: bool) -> None:
    """The repository under `root`. `as_it_was`: with its holes and times; otherwise as a plain copy has it."""
    _, text = members[LAYOUT]
    assert text is not None
    layout: Layout = json.loads(text)
    root.mkdir(mode=0o700)
    for name, (mode, data) in members.items():
        kind, _, relative = name.partition("/")
        if kind != REPOSITORY or not relative:
            continue
        path = root / relative
        if data is None:
            path.mkdir(mode=mode)
            continue
        holes = layout["holes"].get(relative, []) if as_it_was else []
        with path.open("xb") as file:
            at = 0
            for start, end in [*holes, (len(data), len(data))]:
                file.seek(at)
                file.write(memoryview(data)[at:start])
                at = end
            file.truncate(len(data))
        path.chmod(mode)
        if as_it_was and relative in layout["mtimes_ns"]:
            os.utime(path, ns=(layout["mtimes_ns"][relative],) * 2)


def stored_intents(members: Mapping[str, tuple[int, bytes | None]]) -> list[bytes]:
    """`intent` as it stood during each round of the maker's collection."""
    _, data = members[INTENTS]
    assert data is not None
    return [data[start : start + INTENT_BYTES] for start in range(0, len(data), INTENT_BYTES)]


def layout_of(root: Path) -> Layout:
    """What `lay_out` needs to know about a repository that is whole."""
    holes: dict[str, list[tuple[int, int]]] = {}
    mtimes: dict[str, int] = {}
    for path in sorted(root.glob("packs/*/*.pack")):
        mtimes[str(path.relative_to(root))] = path.stat().st_mtime_ns
        with path.open("rb") as file:
            punched = file.read(241)[240] != 0
            if punched:
                holes[str(path.relative_to(root))] = list(_holes(file.fileno(), path.stat().st_size))
    return {"holes": holes, "mtimes_ns": mtimes}


def _holes(fd: int, size: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        start = os.lseek(fd, at, os.SEEK_HOLE)
        if start >= size:
            break
        try:
            at = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:
            at = size
        found.append((start, at))
    return found


# --- what is expected --------------------------------------------------------------------------------------------


def dump(expected: Expected) -> bytes:
    return lzma.compress(json.dumps(expected).encode(), preset=9 | lzma.PRESET_EXTREME)


def load() -> Expected:
    """What the maker put in."""
    expected: Expected = json.loads(lzma.decompress(EXPECTED.read_bytes()))
    for rows in (expected["live"], *(snapshot["rows"] for snapshot in expected["snapshots"])):
        rows[:] = [row_of(row) for row in rows]
    return expected


def row_of(cells: Row) -> Row:
    """A row as JSON brings it back."""
    row = Row(*cells)
    return row._replace(xattrs=tuple((name, value) for name, value in row.xattrs))


def differences(found: list[Row], wanted: list[Row]) -> str:
    """The first rows in which two pictures differ; empty where they don't."""
    if found == wanted:
        return ""
    ours, theirs = {row.path: row for row in found}, {row.path: row for row in wanted}
    paths = [path for path in sorted(ours.keys() | theirs.keys()) if ours.get(path) != theirs.get(path)]
    return "\n".join(f"{ours.get(path)}\n  instead of {theirs.get(path)}" for path in paths[:3]) or "another order"
