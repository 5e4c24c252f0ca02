"""Each storage operation fails once, at its first, second, … last call; nothing that was promised is lost."""

import errno
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fault.calls import NthCallFails
from tests.fault.story import Story, found_once, new_memory_folder

ROOM: Final = ("create", "pwritev", "fallocate", "punch", "fdatasync", "fsync", "replace", "ftruncate")
"""What may find no room, on one file system or another."""
ALL: Final = (*ROOM, "open", "pread", "lseek", "unlink", "listdir", "stat", "fstat", "statvfs", "flock")
CASES: Final = [
    *((name, number) for name in ROOM for number in (errno.ENOSPC, errno.EDQUOT)),
    *((name, errno.EIO) for name in ALL),
]
QUICK_FIRST: Final = 3
QUICK_MORE: Final = 5
"""Of the quick half: the first calls of each kind, and some of the others, which differ from case to case."""
SHARDS: Final = 4
"""The long half is cut so that several processes share it."""

pytestmark = [
    pytest.mark.logs(
        "store.failed",
        "record.damaged",
        "pack.not_sealed",
        "pack.not_examined",
        "pack.no_stub",
        "pack.unreadable",
        "pack.spare_not_taken",
        "pack.header_damaged",
        "pack.directory_damaged",
        "headroom.not_made",
        "headroom.not_left",
        "index.not_written",
        "index.not_removed",
        "index.not_listed",
        "index.segment_discarded",
        "index.discarded",
        "catalog.mirror_failed",
        "events.not_written",
        "space.probe_failed",
        "recovery.broken_off",
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def empty() -> Iterator[Path]:
    """An empty repository; where the copies of it will lie, so that the same calls are made there."""
    with new_memory_folder() as folder:
        yield found_once(folder)


@pytest.fixture(scope="module")
def counts(empty: Path) -> Counter[str]:
    """How often each operation is called where nothing fails."""
    path = empty.with_name("counted")
    story = Story(empty, path, NthCallFails())
    story.run()
    assert story.gave_up is None
    assert not story.retried
    story.verify()
    shutil.rmtree(path)
    return story.calls.counts


def _inject(empty: Path, folder: Path, name: str, number: int, nth: int) -> None:
    calls = NthCallFails(name, number, nth)
    story = Story(empty, folder / "r", calls)
    story.run()
    assert calls.fired, f"call {nth} of {name} never came"
    try:
        story.verify()
    except BaseException as error:
        error.add_note(f"after {errno.errorcode[number]} at call {nth} of {name}; gave up: {story.gave_up!r}")
        raise
    shutil.rmtree(folder / "r")


def _quick(last: int, salt: int) -> Iterator[int]:
    first = range(1, min(last, QUICK_FIRST) + 1)
    yield from first
    rest = last - len(first)
    for part in range(min(QUICK_MORE, rest)):
        yield QUICK_FIRST + 1 + (part * rest + salt % rest) // min(QUICK_MORE, rest)


def _id(case: tuple[str, int]) -> str:
    return f"{case[0]}-{errno.errorcode[case[1]]}"


def test_every_case_can_happen(counts: Counter[str]) -> None:
    assert {name for name, _ in CASES} <= set(counts)
    assert set(counts) <= set(ALL) | {"pwrite"}, "operations that no case breaks"


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_the_first_calls_and_some_more(
    empty: Path, counts: Counter[str], memory_folder: Path, case: tuple[str, int]
) -> None:
    name, number = case
    for nth in _quick(counts[name], 7 * CASES.index(case)):
        _inject(empty, memory_folder, name, number, nth)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_every_call(empty: Path, counts: Counter[str], memory_folder: Path, case: tuple[str, int], shard: int) -> None:
    """To the last call that the unbroken story makes."""
    name, number = case
    for nth in range(1 + shard, counts[name] + 1, SHARDS):
        _inject(empty, memory_folder, name, number, nth)
