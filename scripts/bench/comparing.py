"""The three parts that compare peers on the same data: a tree, a large file, a disk image."""

import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench import steps
from bench.data import SEED, UNIT_BYTES, Changes, Edits, Extent, ImageWrites
from bench.measure import BenchError, Meter, disk_read_bytes
from bench.peers import Peer, Reading
from bench.rounds import Plan, Round, opened, room_for, warm

IN_PLACE: Final = ("cp", "null-mount", "c-passthrough", "s3ql", "ballast-mount")
"""Peers that a copy goes into: an unchanged one costs them what the first did, and no goal asks for it."""
READS_MAX: Final = 4000
READS_DEADLINE_S: Final = 6.0
TEN_COMMITS: Final = 20
"""Of which the median counts."""


def tree_part(plan: Plan, tree: Path, extent: Extent) -> None:
    """Storing, browsing, restoring and deleting `tree`, which belongs to the benchmark and is as before afterwards."""
    # The source, three plain copies of it, five repositories; seven that are restored.
    room_for(plan, extent.content_bytes * 14)
    changes = Changes(tree)
    for number in range(1, plan.rounds + 1):
        try:
            with opened(plan, number) as of_round:
                _store_tree(of_round, tree, changes, quick=plan.quick)
                for peer in tuple(of_round.peers):
                    _read_tree(of_round, peer, tree)
                of_round.restore(steps.RESTORE, "first", tree)
                of_round.every(steps.DELETE, lambda peer: peer.delete("changed"), keeps=True)
        finally:
            changes.revert()


def _store_tree(of_round: Round, tree: Path, changes: Changes, *, quick: bool) -> None:
    but = IN_PLACE if quick else ()
    warm(tree)
    empty = of_round.sizes(steps.SIZE_EMPTY)
    of_round.store(steps.FIRST, "first", tree)
    of_round.sizes(steps.SIZE_TREE)
    of_round.sizes(steps.GROWN_TREE, empty)
    of_round.store(steps.AGAIN, "again", tree, but=but)
    changes.apply()
    of_round.store(steps.CHANGED, "changed", tree, but=but)
    changes.apply_small()
    of_round.every(steps.SMALL, lambda peer: peer.store_small("small", tree, changes.small), keeps=False)
    for turn in range(TEN_COMMITS):
        # For the mount alone: what a commit costs is the median of many.
        for peer in tuple(of_round.peers):
            if peer.name == "ballast-mount":
                with of_round.guarded(steps.TEN_COMMITS, peer, keeps=True):
                    usage = peer.store_small(f"small-{turn}", tree, changes.small)
                    if usage is not None:
                        values = {"commit_s": usage.parts_s["commit"], "durable_s": usage.parts_s["durable"]}
                        of_round.value(steps.TEN_COMMITS, peer, values)


def _read_tree(of_round: Round, peer: Peer, tree: Path) -> None:
    """Each cold step with a daemon of its own; the warm ones right after a cold one."""
    target = of_round.plan.scratch / "copied-out"
    entries = sum(len(directories) + len(names) for _, directories, names in os.walk(tree))

    def find(reading: Reading) -> None:
        of_round.command(steps.FIND, peer, reading, ["find", reading.tree])
        of_round.command(steps.FIND_WARM, peer, reading, ["find", reading.tree])

    def stat(reading: Reading) -> None:
        # The condition makes find call stat for every file.
        command: list[str | Path] = ["find", reading.tree, "-size", "+1G"]
        of_round.command(steps.STAT, peer, reading, command)
        of_round.command(steps.STAT_WARM, peer, reading, command)
        found = sum(len(directories) + len(names) for _, directories, names in os.walk(reading.tree))
        if found != entries:
            raise BenchError(f"{found} entries are there, and not {entries}")

    def copy_out(reading: Reading) -> None:
        try:
            of_round.command(steps.COPY_OUT, peer, reading, ["cp", "-r", reading.tree, target])
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(target)

    nothing = tree / "no-large-file"
    of_round.reading(steps.FIND, peer, tree, nothing, find)
    of_round.reading(steps.STAT, peer, tree, nothing, stat)
    of_round.reading(steps.COPY_OUT, peer, tree, nothing, copy_out)


def large_part(plan: Plan, large: Path) -> None:
    """One large file, which lies alone in its directory: storing, storing with small edits, reading, restoring."""
    room_for(plan, large.stat().st_size * 13)
    for number in range(1, plan.rounds + 1):
        with opened(plan, number) as of_round:
            _store_large(of_round, large)
            for peer in tuple(of_round.peers):
                _read_large(of_round, peer, large)
            of_round.restore(steps.RESTORE_LARGE, "large", large.parent)


def _store_large(of_round: Round, large: Path) -> None:
    warm(large.parent)
    of_round.store(steps.LARGE, "large", large.parent)
    before = of_round.sizes(steps.SIZE_LARGE)
    edits = Edits(large)
    try:
        edits.apply()
        of_round.store(steps.EDITED, "edited", large.parent, but=("cp",))
        before.pop("cp", None)
        before.pop("tar-zstd", None)
        of_round.sizes(steps.GROWN_EDITS, before)
    finally:
        edits.revert()


def _read_large(of_round: Round, peer: Peer, large: Path) -> None:
    size_bytes = large.stat().st_size

    def sequential(reading: Reading) -> None:
        if reading.large.stat().st_size != size_bytes:
            raise BenchError("the large file has another size there")
        command: list[str | Path] = ["dd", f"if={reading.large}", "of=/dev/null", "bs=1M"]
        of_round.command(steps.READ_LARGE, peer, reading, command, size_bytes)

    def at_random(reading: Reading) -> None:
        before = disk_read_bytes(reading.daemons)
        with Meter(reading.daemons) as meter, meter.part("read"):
            reads = read_at_random(reading.large, of_round.number)
        of_round.keep_read(steps.READ_RANDOM, peer, reading, meter.usage(), before, reads)

    of_round.reading(steps.READ_LARGE, peer, large.parent, large, sequential)
    of_round.reading(steps.READ_RANDOM, peer, large.parent, large, at_random)


def read_at_random(path: Path, seed: int) -> int:
    """Reads of 4 KiB at places that are the same for every peer, until READS_MAX or READS_DEADLINE_S; how many."""
    rng = random.Random(SEED + seed)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        units = max(1, os.fstat(descriptor).st_size // UNIT_BYTES)
        deadline_s = time.monotonic() + READS_DEADLINE_S
        done = 0
        while done < READS_MAX and time.monotonic() < deadline_s:
            os.pread(descriptor, UNIT_BYTES, rng.randrange(units) * UNIT_BYTES)
            done += 1
        return done
    finally:
        os.close(descriptor)


def image_part(plan: Plan, image: Path, writes_count: int) -> None:
    """A disk image that is stored, gets random writes of 4 KiB, and is stored again; in place where that can be."""
    room_for(plan, image.stat().st_size * 7)
    for number in range(1, plan.rounds + 1):
        writes = ImageWrites(image, writes_count)
        with opened(plan, number) as of_round:
            warm(image.parent)
            of_round.store(steps.IMAGE, "image", image.parent)
            before = of_round.sizes(steps.IMAGE)
            try:
                for peer in tuple(of_round.peers):
                    with of_round.guarded(steps.IMAGE_WRITES, peer):
                        _write_in_place(of_round, peer, image, writes)
                writes.apply()
                but = (*IN_PLACE, "tar-zstd")
                of_round.store(steps.IMAGE_AGAIN, "image-again", image.parent, but=but)
                for name in ("cp", "tar-zstd"):
                    before.pop(name, None)
                of_round.sizes(steps.GROWN_IMAGE, before)
            finally:
                writes.revert()


def _write_in_place(of_round: Round, peer: Peer, image: Path, writes: ImageWrites) -> None:
    place = peer.in_place("image", image.name)
    if place is None:
        return
    path, daemons = place
    with Meter(daemons) as meter:
        with meter.part("write"):
            writes.write_to(path)
        peer.settle(meter, "image-again")
    of_round.keep(steps.IMAGE_WRITES, peer, meter.usage(), writes.count)
