"""Writing segments: new ones from packs, and one from several (merging)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from repository.errors import BallastError
from repository.format.indexseg import (
    INDEX_DIRECTORY,
    KEY_BYTES,
    ROW_BYTES,
    SEGMENT_HEADER_BYTES,
    TEMPORARY_SUFFIX,
    CoveredPack,
    KeyArray,
    RowArray,
    SegmentHeader,
    encode_covered,
    encode_segment_header,
    second_words_of,
    segment_path,
)
from repository.index.filter import FilterBuilder
from repository.index.segment import Segment
from repository.storage.volume import FileHandle, Volume

SLICE_ROWS: Final = 131_072
"""Rows that merging holds in memory at once (7 MiB), however large the segments are."""
MERGE_FROM: Final = 8
"""More segments than this are merged: a look-up that misses asks each one's filter."""

Keep = Callable[[NDArray[np.uint64]], NDArray[np.bool_]]
"""Which of these record numbers are still wanted."""


class Rows(NamedTuple):
    """Keys and rows of a part of the key space, sorted by key."""

    keys: KeyArray
    rows: RowArray


def sorted_rows(parts: Sequence[tuple[KeyArray, RowArray]], keep: Keep) -> Rows:
    """All parts in one, sorted, without what is not to be kept."""
    keys = np.concatenate([part[0] for part in parts])
    rows = np.concatenate([part[1] for part in parts])
    wanted = keep(rows["number"])
    keys, rows = keys[wanted], rows[wanted]
    order = np.argsort(keys, kind="stable")
    return Rows(keys[order], rows[order])


def merged_slices(segments: Sequence[Segment], keep: Keep) -> Iterator[Rows]:
    """The rows of all segments by rising key, a slice at a time."""
    total = sum(map(len, segments))
    slices = max(1, -(-total // SLICE_ROWS))
    bounds = [(index << 64) // slices for index in range(1, slices)]
    starts = [0] * len(segments)
    for index in range(slices):
        stops = [
            int(segment.keys.searchsorted(np.uint64(bounds[index]))) if index < len(bounds) else len(segment)
            for segment in segments
        ]
        parts = [
            (segment.keys[start:stop], segment.rows[start:stop])
            for segment, start, stop in zip(segments, starts, stops, strict=True)
        ]
        starts = stops
        yield sorted_rows(parts, keep)


def segments_to_merge(segments: Sequence[Segment]) -> list[Segment]:
    """Which segments to make one of, smallest first; none while there are few.

    The smallest are taken, and each next one that is not twice as large as those before it together: so a row is
    rewritten a number of times that grows with the logarithm of all rows only.
    """
    if len(segments) <= MERGE_FROM:
        return []
    by_size = sorted(segments, key=len)
    chosen, rows = by_size[:2], sum(map(len, by_size[:2]))
    for segment in by_size[2:]:
        if len(segment) >= 2 * rows:
            break
        chosen.append(segment)
        rows += len(segment)
    return chosen


def write_segment(
    volume: Volume,
    *,
    repository_id: bytes,
    sequence: int,
    slices: Iterator[Rows],
    rows_max: int,
    covered: list[CoveredPack],
) -> None:
    """Write a segment of at most `rows_max` rows under a temporary name, make it durable, rename it.

    Raises NoSpaceError, VolumeError; then nothing is left behind but perhaps the temporary file.
    """
    path = segment_path(sequence)
    temporary = f"{path}{TEMPORARY_SUFFIX}"
    if volume.exists(temporary):
        volume.unlink(temporary)
    try:
        with volume.create(temporary) as handle:
            _write(handle, repository_id, slices, rows_max, covered)
            handle.fdatasync()
        volume.replace(temporary, path)
    except BallastError:
        if volume.exists(temporary):
            volume.unlink(temporary)
        raise
    volume.fsync_dir(INDEX_DIRECTORY)


def _write(
    handle: FileHandle, repository_id: bytes, slices: Iterator[Rows], rows_max: int, covered: list[CoveredPack]
) -> None:
    keys_offset = SEGMENT_HEADER_BYTES
    rows_offset = _aligned(keys_offset + rows_max * KEY_BYTES)
    keys_hash, rows_hash = xxhash.xxh3_64(), xxhash.xxh3_64()
    builder = FilterBuilder(rows_max)
    count = 0
    for keys, rows in slices:
        key_bytes, row_bytes = keys.tobytes(), rows.tobytes()
        handle.pwrite(key_bytes, keys_offset + count * KEY_BYTES)
        handle.pwrite(row_bytes, rows_offset + count * ROW_BYTES)
        keys_hash.update(key_bytes)
        rows_hash.update(row_bytes)
        builder.add(keys, second_words_of(rows))
        count += len(keys)
    filter_offset = _aligned(rows_offset + count * ROW_BYTES)
    filter_content = builder.tobytes()
    packs_offset = _aligned(filter_offset + len(filter_content))
    table = encode_covered(covered)
    handle.pwrite(filter_content, filter_offset)
    handle.pwrite(table, packs_offset)
    header = SegmentHeader(
        repository_id=repository_id,
        row_count=count,
        keys_offset=keys_offset,
        rows_offset=rows_offset,
        filter_offset=filter_offset,
        filter_bytes=len(filter_content),
        packs_offset=packs_offset,
        pack_count=len(covered),
        keys_xxh3=keys_hash.intdigest(),
        rows_xxh3=rows_hash.intdigest(),
        filter_xxh3=xxhash.xxh3_64_intdigest(filter_content),
        packs_xxh3=xxhash.xxh3_64_intdigest(table),
    )
    handle.pwrite(encode_segment_header(header), 0)


def _aligned(offset: int) -> int:
    return -(-offset // SEGMENT_HEADER_BYTES) * SEGMENT_HEADER_BYTES
