"""What the walk asks of the snapshot: rows of segments, whose attributes are read only for what is no small file."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from repository.format.files import FileColumns
from repository.format.inode import DirRef, Entry, Inode
from repository.format.tree import DirContent
from repository.ids import FileId, RecordId


class Row(NamedTuple):
    """An entry of a segment."""

    content_id: RecordId
    attrs_id: RecordId
    content: DirContent
    position: int

    @property
    def name(self) -> bytes:
        return self.content.names[self.position]

    @property
    def kind(self) -> int:
        return self.content.files.kinds[self.position]


class Tree(Protocol):
    """What is read of the snapshot."""

    def load_contents_below(self, ref: DirRef) -> None: ...

    def count(self, ref: DirRef) -> int: ...

    def small_directory(self, ref: DirRef) -> FileColumns | None: ...

    def scan_contents(self, ref: DirRef) -> Iterator[tuple[RecordId, RecordId, DirContent]]: ...

    def entry_at(self, content_id: RecordId, attrs_id: RecordId, position: int) -> Entry: ...

    def link(self, links: RecordId | None, file_id: FileId) -> Inode | None: ...
