"""What processes take together: a page that they share counts once, and looking at it costs little."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench import memory
from bench.measure import Meter
from bench.memory import Sampler, Taken, resident_bytes, taken, tree
from bench.record import PEAK, RESIDENT, Recorder, Sample, values_of
from bench.report import make, table

MIB = 1 << 20
HELD_BYTES = 50 * MIB
SLACK_BYTES = 30 * MIB
"""An interpreter, twice."""
HOLDER = f"""
import gc, os, signal, sys
held = bytes(b"x" * {HELD_BYTES})
gc.freeze()
child = os.fork()
if not child:
    signal.pause()
print(child, flush=True)
sys.stdin.read()
os.kill(child, signal.SIGKILL)
os.wait()
"""
"""A process that shares HELD_BYTES with a child, until its standard input ends."""


@contextmanager
def _holding() -> Iterator[tuple[int, int]]:
    """The process ids of HOLDER and its child."""
    ours, theirs = os.pipe()
    said, says = os.pipe()
    parent = os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", "-c", HOLDER],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, ours, 0), (os.POSIX_SPAWN_DUP2, says, 1)],
    )
    for number in (ours, says):
        os.close(number)
    try:
        with os.fdopen(said) as file:
            yield parent, int(file.readline())
    finally:
        os.close(theirs)
        os.waitpid(parent, 0)


def test_what_a_forked_child_shares_counts_once() -> None:
    with _holding() as (parent, child):
        assert tree(parent) == [parent, child]
        found = taken([parent, child])
        assert not found.resident
        assert HELD_BYTES <= found.nbytes < HELD_BYTES + SLACK_BYTES
        assert resident_bytes([parent, child]) > 2 * HELD_BYTES


def test_a_meter_counts_it_once_too() -> None:
    with _holding() as (parent, _), Meter([parent]) as meter:
        pass  # it looks once at least
    usage = meter.usage()
    assert HELD_BYTES <= usage.peak_bytes < HELD_BYTES + SLACK_BYTES
    assert RESIDENT not in values_of(usage)


def test_a_child_of_another_thread_is_found_and_one_that_ended_is_not() -> None:
    program = (
        "import subprocess, sys, threading; "
        "thread = threading.Thread(target=subprocess.run, args=(['sleep', '60'],)); thread.start(); thread.join()"
    )
    parent = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", program], os.environ)
    try:
        while len(tree(parent)) < 2:
            time.sleep(0.01)
        _, child = tree(parent)
        os.kill(child, signal.SIGKILL)
    finally:
        os.waitpid(parent, 0)
    assert tree(parent) == []
    assert taken([parent, child]) == Taken(0, resident=False)


def test_page_tables_are_walked_only_for_a_possible_peak_and_then_there_is_a_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s, resident, walks = 100.0, 10 * MIB, 0

    def walk(pids: list[int]) -> Taken:
        nonlocal clock_s, walks
        walks += 1
        clock_s += 0.01
        return Taken(resident // 2, resident=False)

    monkeypatch.setattr(time, "monotonic", lambda: clock_s)
    monkeypatch.setattr(memory, "resident_bytes", lambda pids: resident)
    monkeypatch.setattr(memory, "taken", walk)
    sampler = Sampler({os.getpid()})
    sampler.look()
    assert (walks, sampler.peak.nbytes) == (1, 5 * MIB)
    resident = 20 * MIB
    clock_s += memory.REST * 0.01 * 0.9
    sampler.look()
    assert walks == 1
    clock_s += memory.REST * 0.01 * 0.2
    sampler.look()
    assert (walks, sampler.peak.nbytes) == (2, 10 * MIB)
    resident = 9 * MIB
    clock_s += 1
    sampler.look()
    assert walks == 2


@pytest.mark.slow
def test_without_pss_the_resident_size_counts_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_proportional_bytes", lambda pid: None)
    with _holding() as (parent, _), Meter([parent]) as meter:
        pass
    values = values_of(meter.usage())
    assert values[PEAK] > 2 * HELD_BYTES
    recorder = Recorder(None, lambda line: None)
    assert make(recorder, {}, 1, tmp_path, finished=True)["peaks"] == "pss"
    recorder.keep(Sample("tree", "step", "ballast", 1, values))
    report = make(recorder, {}, 1, tmp_path, finished=True)
    assert report["peaks"] == "rss"
    assert "count the pages that they share in each" in table(report)
