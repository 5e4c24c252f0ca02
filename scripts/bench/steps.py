"""The names of what is measured, as the report, the goals and the history use them."""

from typing import Final

INSTALLED: Final = "installed"
"""Not a step: where a peer that is missing has its reason."""

# Part "tree".
FIRST: Final = "first-copy"
SIZE_EMPTY: Final = "size-when-empty"
SIZE_TREE: Final = "size-of-the-tree"
GROWN_TREE: Final = "grown-by-the-tree"
AGAIN: Final = "unchanged-copy"
CHANGED: Final = "changed-copy"
SMALL: Final = "ten-changes"
TEN_COMMITS: Final = "ten-commits"
MOUNT: Final = "mount"
FIND: Final = "find"
FIND_WARM: Final = "find-warm"
STAT: Final = "stat-all"
STAT_WARM: Final = "stat-all-warm"
COPY_OUT: Final = "copy-out"
RESTORE: Final = "restore"
DELETE: Final = "delete-and-collect"

# Part "large".
LARGE: Final = "large-file"
SIZE_LARGE: Final = "size-of-the-file"
EDITED: Final = "edited-large-file"
GROWN_EDITS: Final = "grown-by-edits"
READ_LARGE: Final = "read-large"
READ_RANDOM: Final = "read-random"
RESTORE_LARGE: Final = "restore-large"

# Part "image".
IMAGE: Final = "disk-image"
IMAGE_WRITES: Final = "random-writes"
IMAGE_AGAIN: Final = "changed-image"
GROWN_IMAGE: Final = "grown-by-writes"

# Parts of their own.
DECISION: Final = "decision"
STRAIGHT_MILLION: Final = "straight-in-most-files"

PARTS: Final = ("decision", "tree", "large", "chunks", "files", "snapshots", "image")
"""In the order in which they are run: what goals need comes first."""
AXES: Final = ("files", "chunks", "snapshots")
SCALES: Final = (1, 4, 16)


def growth(axis: str, scale: int) -> str:
    """The step of one size on one axis of growth."""
    return f"{axis}-x{scale}"
