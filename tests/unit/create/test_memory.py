"""What storing takes in memory, counted in blocks and bytes of the interpreter's own: nothing for a larger file, and
little for one more file."""

import os
import tracemalloc
from pathlib import Path

from repository.repo import Repository
from repository.units import MIB
from tests.support.sources import age, store

A_FILE_BYTES = 1_280
"""What one more small file may take until the snapshot is there: its record's place, its id, its line in a listing."""


def peak_of(repo: Repository, path: Path) -> int:
    """Bytes that were allocated at once, at most, while everything in `path` was stored."""
    age(path)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        store(repo, path)
        _, peak = tracemalloc.get_traced_memory()
        return peak - before
    finally:
        tracemalloc.stop()


def test_a_megabyte_more_in_a_file_takes_no_memory(repo: Repository, tmp_path: Path) -> None:
    peaks: list[int] = []
    for size_mib in (40, 40, 80):  # the first also imports, and fills what is kept
        folder = tmp_path / f"{size_mib}-{len(peaks)}"
        folder.mkdir()
        (folder / "file").write_bytes(os.urandom(size_mib * MIB))
        peaks.append(peak_of(repo, folder))
    _, small, large = peaks
    assert large <= small + 4 * MIB


def test_a_file_more_takes_a_little(repo: Repository, tmp_path: Path) -> None:
    peaks: list[int] = []
    for files in (300, 300, 1_500):
        folder = tmp_path / f"{files}-{len(peaks)}"
        folder.mkdir()
        for number in range(files):
            (folder / f"{number:04}").write_bytes(os.urandom(100))
        peaks.append(peak_of(repo, folder))
    _, few, many = peaks
    assert many <= few + 1_200 * A_FILE_BYTES
