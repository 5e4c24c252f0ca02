"""The benchmark's own promises: the same data for the same seed, and a source that is as before afterwards."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
from bench import data
from bench.measure import BenchError, Meter, allocated_bytes

FILES = 200


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in data.regular_files(root)
    }


@pytest.mark.slow
def test_the_same_seed_makes_the_same_tree(tmp_path: Path) -> None:
    data.make_synthetic_tree(tmp_path / "a", FILES)
    data.make_synthetic_tree(tmp_path / "b", FILES)
    data.make_synthetic_tree(tmp_path / "c", FILES, seed=1)
    assert len(_digests(tmp_path / "a")) == FILES
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    assert _digests(tmp_path / "a") != _digests(tmp_path / "c")


def test_changes_are_taken_back(tmp_path: Path) -> None:
    data.make_synthetic_tree(tmp_path, FILES)
    before = _digests(tmp_path)
    changes = data.Changes(tmp_path)
    changes.apply()
    changed = _digests(tmp_path)
    assert len(before.keys() - changed.keys()) == FILES * data.RENAMED_SHARE
    assert sum(before[name] != changed[name] for name in before.keys() & changed.keys()) == FILES * data.CHANGED_SHARE
    changes.apply_small()
    small = _digests(tmp_path)
    assert sum(small[name] != changed[name] for name in changed) == data.Changes.SMALL_COUNT
    changes.revert()
    assert _digests(tmp_path) == before


@pytest.mark.parametrize(
    "size_bytes", [1, data.PIECE_BYTES, pytest.param(data.PIECE_BYTES * 2 + 1, marks=pytest.mark.slow)]
)
def test_the_large_file_has_its_size(tmp_path: Path, size_bytes: int) -> None:
    data.make_large_file(tmp_path / "large", size_bytes)
    assert (tmp_path / "large").stat().st_size == size_bytes


@pytest.mark.slow
def test_a_meter_sees_memory_and_processor_of_a_child() -> None:
    program = "import time; held = bytearray(64 << 20)\nwhile time.process_time() < 0.5: pass"
    with Meter() as meter:
        meter.run("work", [sys.executable, "-c", program])
    usage = meter.usage()
    assert usage.peak_bytes > 64 << 20
    assert usage.cpu_s >= 0.4
    assert usage.wall_s >= 0.4


def test_a_failed_command_says_what_it_said() -> None:
    with pytest.raises(BenchError, match=r"ls .* ended with 2: .*no-such"), Meter() as meter:
        meter.run("ls", ["ls", "no-such"])


def test_allocated_bytes_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(os.urandom(1 << 16))
    alone = allocated_bytes(tmp_path)
    os.link(tmp_path / "one", tmp_path / "two")
    assert allocated_bytes(tmp_path) == alone
