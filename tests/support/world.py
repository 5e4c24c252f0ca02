"""A tree of files as plain dictionaries: what `live` and its snapshots are compared with."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from repository.format.inode import NodeKind

Path_ = tuple[bytes, ...]
Picture = dict[Path_, tuple[object, ...]]
"""Everything that can be seen of a tree, by path. Names of one file have equal numbers."""


@dataclass(slots=True)
class Thing:
    """An inode. `data` is a file's content or a link's target."""

    kind: NodeKind
    mode: int
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class World:
    """Names are paths, values numbers of things: two names of one thing are hard links."""

    names: dict[Path_, int] = field(default_factory=dict)
    things: dict[int, Thing] = field(default_factory=dict)
    next_number: int = 1

    def copy(self) -> "World":
        return copy.deepcopy(self)

    def is_directory(self, path: Path_) -> bool:
        return not path or self.things[self.names[path]].kind is NodeKind.DIRECTORY

    def directories(self) -> list[Path_]:
        """All directories, the root first."""
        return [(), *(path for path in self.names if self.is_directory(path))]

    def files(self) -> list[Path_]:
        return [path for path, number in self.names.items() if self.things[number].kind is NodeKind.FILE]

    def below(self, path: Path_) -> list[Path_]:
        """Everything in a directory, at any depth."""
        return [other for other in self.names if other[: len(path)] == path and len(other) > len(path)]

    def thing(self, path: Path_) -> Thing:
        return self.things[self.names[path]]

    # --- changing -------------------------------------------------------------------------------------------------

    def create(self, path: Path_, thing: Thing) -> None:
        self.names[path] = self.next_number
        self.things[self.next_number] = thing
        self.next_number += 1

    def write(self, path: Path_, offset: int, data: bytes) -> None:
        content = self.thing(path).data
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    def truncate(self, path: Path_, size: int) -> None:
        content = self.thing(path).data
        del content[size:]
        content.extend(bytes(size - len(content)))

    def remove(self, path: Path_) -> None:
        """unlink and rmdir."""
        number = self.names.pop(path)
        if number not in self.names.values():
            del self.things[number]

    def rename(self, old: Path_, new: Path_, *, exchange: bool) -> None:
        """renameat2, allowed where this is called."""
        if self.names.get(new) == self.names[old]:
            return
        if new in self.names and not exchange:
            self.remove(new)
        moved = {new + path[len(old) :]: self.names.pop(path) for path in (old, *self.below(old))}
        back: dict[Path_, int] = {}
        if exchange:
            back = {old + path[len(new) :]: self.names.pop(path) for path in (new, *self.below(new))}
        self.names |= moved | back

    # --- looking --------------------------------------------------------------------------------------------------

    def picture(self) -> Picture:
        """As `canonical` makes one of a real tree."""
        links = dict.fromkeys(self.things, 0)
        for number in self.names.values():
            links[number] += 1
        seen: Picture = {}
        for path, number in self.names.items():
            thing = self.things[number]
            count = 1 if thing.kind is NodeKind.DIRECTORY else links[number]
            xattrs = tuple(sorted(thing.xattrs.items()))
            seen[path] = (thing.kind, number, thing.mode, len(thing.data), count, xattrs, bytes(thing.data))
        return _renumbered(seen)


def canonical(picture: Mapping[Path_, tuple[object, ...]]) -> Picture:
    """What SyncLive.picture and picture_of tell, in a form that can be compared."""
    seen: Picture = {}
    for path, (kind, file_id, mode, _, _, size, links, xattrs, data) in picture.items():
        seen[path] = (kind, file_id, mode, size, links, xattrs, data)
    return _renumbered(seen)


def _renumbered(picture: Picture) -> Picture:
    """Numbers of inodes replaced by their order among the paths."""
    order: dict[object, int] = {}
    return {
        path: (kind, order.setdefault(number, len(order)), *rest)
        for path, (kind, number, *rest) in sorted(picture.items())
    }


def difference(found: Picture, wanted: Picture) -> str:
    """In which paths two pictures differ, for a failing test's message."""
    lines = [f"missing: {path}" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"too many: {path}" for path in sorted(found.keys() - wanted.keys())]
    for path in sorted(found.keys() & wanted.keys()):
        if found[path] != wanted[path]:
            lines.append(f"{path}: {_short(found[path])} instead of {_short(wanted[path])}")
    return "\n".join(lines) or "equal"


def _short(row: tuple[object, ...]) -> str:
    *attributes, data = row
    assert isinstance(data, bytes)
    return f"{attributes} {len(data)} bytes {data[:16]!r}"
