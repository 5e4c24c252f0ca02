"""Folders in memory: hundreds of images on a disk would mostly measure its fsync."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """An empty folder on tmpfs, where there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="ballast-test-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)
