"""One peer that fails takes no figure of another with it, and nothing is left of any."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench import comparing, data, report, steps
from bench.measure import BenchError, Usage
from bench.peers import Cp, Peer, Reading
from bench.record import BYTES, RATE, WALL, Recorder
from bench.rounds import Plan

pytestmark = pytest.mark.slow

FILES = 200


class Failing(Cp):
    """Fails when the unchanged tree is stored."""

    name = "failing"

    def store(self, label: str, source: Path) -> Usage | None:
        if label == "again":
            raise BenchError(f"cannot: {self.home}")
        return super().store(label, source)


class Emptied(Cp):
    """Shows less than was stored."""

    name = "emptied"

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        (self.home / "few").mkdir(exist_ok=True)
        yield Reading(self.home / "few", self.home / "few")


def _plan(part: str, memory_folder: Path, peers: list[type[Peer]]) -> Plan:
    work = memory_folder / "work"
    work.mkdir()
    recorder = Recorder(memory_folder / "samples.jsonl", lambda line: None)
    # The caches of the machine are others' too: no test drops them.
    return Plan(
        part,
        [peer(work) for peer in peers],
        1,
        recorder,
        work,
        memory_folder,
        quick=False,
        drop=bool,
        flush=lambda: None,
    )


def test_a_failing_peer_loses_only_what_follows_of_its_own(memory_folder: Path) -> None:
    plan = _plan("tree", memory_folder, [Cp, Failing])
    tree = memory_folder / "tree"
    data.make_synthetic_tree(tree, FILES)
    before = sorted(path.relative_to(tree) for path in data.regular_files(tree))
    comparing.tree_part(plan, tree, data.measure_tree(tree))
    taken = {(sample.step, sample.peer) for sample in plan.recorder.samples}
    assert (steps.FIRST, "failing") in taken
    assert (steps.COPY_OUT, "failing") not in taken
    every = {
        steps.FIRST,
        steps.AGAIN,
        steps.CHANGED,
        steps.FIND,
        steps.STAT_WARM,
        steps.COPY_OUT,
        steps.RESTORE,
        steps.DELETE,
    }
    assert every <= {step for step, peer in taken if peer == "cp"}
    assert [(failure.step, failure.peer) for failure in plan.recorder.failures] == [(steps.AGAIN, "failing")]
    assert list(plan.work.iterdir()) == []
    assert sorted(path.relative_to(tree) for path in data.regular_files(tree)) == before


def test_a_mount_that_shows_less_is_a_failure_and_no_figure_of_speed(memory_folder: Path) -> None:
    plan = _plan("tree", memory_folder, [Emptied])
    tree = memory_folder / "tree"
    data.make_synthetic_tree(tree, FILES)
    comparing.tree_part(plan, tree, data.measure_tree(tree))
    assert "entries are there" in plan.recorder.failures[0].reason
    assert steps.STAT in {failure.step for failure in plan.recorder.failures}


def test_the_large_file_is_read_whole_and_at_random(memory_folder: Path) -> None:
    plan = _plan("large", memory_folder, [Cp])
    large = memory_folder / "large" / "large.bin"
    data.make_large_file(large, 3 << 20)
    before = large.read_bytes()
    comparing.large_part(plan, large)
    rates = {sample.step: sample.values[RATE] for sample in plan.recorder.samples if RATE in sample.values}
    assert rates.keys() == {steps.READ_LARGE, steps.READ_RANDOM}
    assert large.read_bytes() == before
    assert not plan.recorder.failures


def test_random_writes_are_the_same_in_a_copy_and_are_taken_back(memory_folder: Path) -> None:
    image, copy = memory_folder / "disk.img", memory_folder / "copy.img"
    data.make_image(image, 24 << 20)
    before = image.read_bytes()
    copy.write_bytes(before)
    writes = data.ImageWrites(image, 50)
    writes.write_to(copy)
    writes.apply()
    assert image.read_bytes() == copy.read_bytes() != before
    writes.revert()
    assert image.read_bytes() == before
    assert image.stat().st_blocks * 512 < 24 << 20, "a fifth of it is a hole"


def test_an_image_is_written_to_in_place(memory_folder: Path) -> None:
    plan = _plan("image", memory_folder, [Cp])
    image = memory_folder / "image" / "disk.img"
    data.make_image(image, 8 << 20)
    comparing.image_part(plan, image, 20)
    assert {steps.IMAGE, steps.IMAGE_WRITES} <= {sample.step for sample in plan.recorder.samples}
    assert not plan.recorder.failures


def test_no_two_pieces_of_the_large_file_are_equal(memory_folder: Path) -> None:
    path = memory_folder / "large"
    data.make_large_file(path, data.PIECE_BYTES * 6)
    content = path.read_bytes()
    pieces = {content[at : at + (64 << 10)] for at in range(0, len(content), 64 << 10)}
    assert len(pieces) == len(content) // (64 << 10)


def test_a_part_without_room_is_refused_before_it_begins(memory_folder: Path) -> None:
    plan = _plan("tree", memory_folder, [Cp])
    with pytest.raises(BenchError, match="needs about"):
        comparing.tree_part(plan, memory_folder, data.Extent(1, 1 << 50))
    assert not plan.recorder.samples


def test_a_report_names_no_place(memory_folder: Path) -> None:
    plan = _plan("tree", memory_folder, [Failing])
    tree = memory_folder / "tree"
    data.make_synthetic_tree(tree, FILES)
    comparing.tree_part(plan, tree, data.measure_tree(tree))
    document = report.make(plan.recorder, {"tree": "synthetic"}, 1, plan.work, finished=True)
    assert document["failures"][0]["reason"] == "cannot: WORK/failing"
    assert document["figures"][steps.FIRST]["failing"][WALL] > 0
    assert document["figures"][steps.SIZE_TREE]["failing"][BYTES] > 0
    assert "cannot: WORK/failing" in report.table(document)
    report.append_history(document, memory_folder / "history.jsonl")
    line = (memory_folder / "history.jsonl").read_text()
    host = subprocess.run(["uname", "-n"], check=True, capture_output=True, text=True).stdout.strip()
    assert str(memory_folder) not in line
    assert f'"{host}"' not in line
