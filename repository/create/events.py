"""What the scanner tells the builder, in the order in which directories are finished. Values and small states."""

from dataclasses import dataclass, field
from typing import NamedTuple

from repository.create.source import Directory
from repository.format.inode import EMPTY_DIR, DirRef, Inode, Totals
from repository.ids import FileId


@dataclass(slots=True)
class Frame:
    """A directory under construction. Only the builder changes `ref`, `totals` and `changes`.

    `inode` holds its attributes; its listing is still missing. `base` is the same directory in the parent
    snapshot. `changes` are against `ref`, which starts as the parent's listing.
    """

    parent: "Frame | None"
    name: bytes
    inode: Inode
    base: Inode | None
    ref: DirRef = EMPTY_DIR
    totals: Totals = Totals(0, 0)
    changes: dict[bytes, Inode | None] = field(default_factory=dict)


@dataclass(slots=True)
class FileTask:
    """A regular file whose bytes must be read. Whoever queues it holds `directory` until that is done."""

    directory: Directory
    name: bytes
    file_id: FileId
    size_bytes: int


class Outcome(NamedTuple):
    """What became of a FileTask. `problem` may come with an inode (stored, though it changed meanwhile)."""

    inode: Inode | None
    problem: str
    read_bytes: int


class FileFound(NamedTuple):
    """A file to be read.

    `linked`: its inode goes into the links table. `base`: what the parent snapshot's listing has under the name.
    """

    frame: Frame
    name: bytes
    task: FileTask
    linked: bool
    base: Inode | None


class NodeFound(NamedTuple):
    """An entry that is complete already; None: the name is gone since the parent snapshot."""

    frame: Frame
    name: bytes
    inode: Inode | None


class LinkedNode(NamedTuple):
    """A hard-linked inode for the links table; `unchanged`: the parent snapshot's has the same."""

    inode: Inode
    unchanged: bool


class LinkFound(NamedTuple):
    """One more name of the hard-linked inode `file_id`; `unchanged`: the parent's listing says the same."""

    frame: Frame
    name: bytes
    file_id: FileId
    unchanged: bool


class FrameDone(NamedTuple):
    """Everything in this directory has been told."""

    frame: Frame


Event = FileFound | NodeFound | LinkedNode | LinkFound | FrameDone
