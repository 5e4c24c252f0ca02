"""Bringing in a subtree's listings before they are walked: hundreds of records in one hop, where a walk that asks for
one directory after the other pays for each of them."""

from collections.abc import Iterable, Sequence
from typing import Final

from repository.errors import DamagedError, VolumeError
from repository.format.inode import DirRef, NodeKind
from repository.format.tree import DirAttrs, DirContent
from repository.ids import RecordId
from repository.trees.cache import Node, RecordCache

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
            below += _listings(nodes[content_id], nodes[attrs_id])
        pairs = below


def load_contents_below(cache: RecordCache, ref: DirRef) -> None:
    """As `load_below`, for who wants attributes only of what is no regular file: segments of nothing else come without
    them."""
    if ref.content is None or ref.attrs is None or cache.holds(ref.content):
        return
    pairs = [(ref.content, ref.attrs)]
    loaded = 0
    while pairs and loaded < AHEAD_RECORDS:
        pairs = pairs[: AHEAD_RECORDS - loaded]
        try:
            contents = cache.load(content_id for content_id, _ in pairs)
            others = [pair for pair in pairs if not _only_files(contents[pair[0]])]
            columns = cache.load(attrs_id for _, attrs_id in others)
        except (DamagedError, VolumeError):
            return
        loaded += len(pairs) + len(others)
        pairs = []
        for content_id, attrs_id in others:
            pairs += _listings(contents[content_id], columns[attrs_id])


def _only_files(node: Node) -> bool:
    return isinstance(node, DirContent) and node.files.kinds.count(NodeKind.FILE) == node.entries


def _listings(content: Node, attrs: Node) -> Iterable[tuple[RecordId, RecordId]]:
    """Of the directories in a segment. Empty ones are in neither; lists of long extents stand in front of them."""
    if not isinstance(content, DirContent) or not isinstance(attrs, DirAttrs):
        return ()
    children = attrs.columns.node_ids()
    return zip(content.files.node_ids()[-len(children) :] if children else (), children, strict=False)
