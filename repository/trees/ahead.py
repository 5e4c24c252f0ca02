"""Bringing in a subtree's listings before they are walked: hundreds of records in one hop, where a walk that asks for
one directory after the other pays for each of them."""

from collections.abc import Sequence
from typing import Final

from repository.errors import DamagedError, VolumeError
from repository.format.inode import DirRef
from repository.format.tree import DirAttrs, DirContent
from repository.ids import RecordId
from repository.trees.cache import RecordCache

AHEAD_RECORDS: Final = 512
"""About 250 directories, or 3 MB decoded: a tenth of what the facade's cache keeps."""


def load_below(cache: RecordCache, ref: DirRef) -> None:
    """Have `ref` and the directories below it in `cache`, level by level, until there are AHEAD_RECORDS.

    Does nothing where `ref` is there already. Never raises for damage: whoever walks meets it again.
    """
    if ref.content is None or ref.attrs is None or cache.holds(ref.content):
        return
    load_levels(cache, [(ref.content, ref.attrs)], AHEAD_RECORDS)


def load_levels(cache: RecordCache, pairs: Sequence[tuple[RecordId, RecordId]], most: int) -> None:
    """Have the listings `pairs` and those below them in `cache`, level by level, until there are `most` records.

    Never raises for damage: whoever walks meets it again.
    """
    loaded = 0
    while pairs and loaded < most:
        ids = [one for pair in pairs[: (most - loaded + 1) // 2] for one in pair]
        loaded += len(ids)
        try:
            nodes = cache.load(ids)
        except (DamagedError, VolumeError):
            return
        below: list[tuple[RecordId, RecordId]] = []
        for content_id, attrs_id in zip(ids[::2], ids[1::2], strict=True):
            content, attrs = nodes[content_id], nodes[attrs_id]
            if isinstance(content, DirContent) and isinstance(attrs, DirAttrs):
                # Empty directories are in neither; lists of long extents stand in front of the listings.
                children = attrs.columns.node_ids()
                below += zip(content.files.node_ids()[-len(children) :] if children else (), children, strict=False)
        pairs = below
