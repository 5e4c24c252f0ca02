"""The order of things in the parts that compare peers: each round does every step with every peer in turn.

Owner of: between two peers' turns at one step nothing changes but the machine's mood; the turn to go first passes
round; a peer that fails is left out of what follows in its round, and takes no other peer's figures with it.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import steps
from bench.measure import BenchError, Meter, Usage, disk_read_bytes, drop_caches, sync_all
from bench.peers import Peer, Reading
from bench.record import BYTES, DISK, WALL, Failure, Recorder, Sample, values_of

GIB: Final = 1 << 30
FAILURES: Final = (BenchError, OSError, subprocess.SubprocessError, LookupError, ValueError)
"""What a peer may do without ending the run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a part needs. `quick`: only what a goal or the issue's table asks for of each peer."""

    part: str
    peers: Sequence[Peer]
    rounds: int
    recorder: Recorder
    work: Path
    scratch: Path
    quick: bool = True
    drop: Callable[[], bool] = drop_caches
    """How the kernel's caches are dropped; False where that is not allowed."""
    flush: Callable[[], None] = sync_all
    """How everything is written that is not yet."""


class Round:
    """One round of one part: the peers that still take part, in their turn."""

    def __init__(self, plan: Plan, number: int) -> None:
        turn = (number - 1) % max(1, len(plan.peers))
        self.plan = plan
        self.number = number
        self.peers = [*plan.peers[turn:], *plan.peers[:turn]]

    @contextmanager
    def guarded(self, step: str, peer: Peer, *, keeps: bool = False) -> Iterator[None]:
        """A failure inside is kept, and unless `keeps`, the peer takes no part in what follows."""
        try:
            yield
        except FAILURES as error:
            self.plan.recorder.fail(Failure(self.plan.part, step, peer.name, reason_of(error)))
            if not keeps and peer in self.peers:
                self.peers.remove(peer)

    def keep(self, step: str, peer: Peer, usage: Usage | None, amount: float | None = None) -> None:
        if usage is not None:
            self.value(step, peer, values_of(usage, amount))

    def value(self, step: str, peer: Peer, values: dict[str, float]) -> None:
        self.plan.recorder.keep(Sample(self.plan.part, step, peer.name, self.number, values))

    def every(self, step: str, work: Callable[[Peer], Usage | None], *, but: Sequence[str] = (), keeps: bool) -> None:
        """`work` with each peer in turn; what others left to be written is written before."""
        for peer in tuple(self.peers):
            if peer.name not in but:
                with self.guarded(step, peer, keeps=keeps):
                    self.plan.flush()
                    self.keep(step, peer, work(peer))

    def store(self, step: str, label: str, source: Path, *, but: Sequence[str] = ()) -> None:
        self.every(step, lambda peer: peer.store(label, source), but=but, keeps=False)

    def sizes(self, step: str, before: dict[str, int] | None = None) -> dict[str, int]:
        """What each repository occupies; with `before` what it grew by is kept instead."""
        found: dict[str, int] = {}
        for peer in tuple(self.peers):
            with self.guarded(step, peer, keeps=True):
                size = peer.size_bytes()
                if size is not None and (before is None or peer.name in before):
                    found[peer.name] = size
                    self.value(step, peer, {BYTES: float(size - (before or {}).get(peer.name, 0))})
        return found

    def restore(self, step: str, label: str, source: Path) -> None:
        """To the same disk as the repositories, from a cold cache. All of them stay until the last is done: ext4 takes
        up to 1 ms to find an inode for a new file where many were freed a moment ago."""
        targets = self.plan.work / "restored"
        targets.mkdir()

        def work(peer: Peer) -> Usage | None:
            target = targets / peer.name
            target.mkdir()
            self.cold()
            return peer.restore(label, source, target)

        try:
            self.every(step, work, keeps=True)
        finally:
            shutil.rmtree(targets)

    def cold(self) -> None:
        """Drops the kernel's caches, as root."""
        self.plan.recorder.cold = self.plan.drop() and self.plan.recorder.cold

    def reading(self, step: str, peer: Peer, tree: Path, large: Path, work: Callable[[Reading], None]) -> None:
        """`work` with the peer opened anew and nothing of it in any cache."""
        opened = peer.reading(tree, large)
        if opened is None:
            return
        with self.guarded(step, peer, keeps=True):
            self.cold()
            with opened as reading:
                if reading.ready_s is not None:
                    self.value(steps.MOUNT, peer, {WALL: reading.ready_s})
                self.cold()
                work(reading)

    def command(
        self, step: str, peer: Peer, reading: Reading, command: Sequence[str | Path], amount: float | None = None
    ) -> None:
        """Times a command that reads."""
        before = disk_read_bytes(reading.daemons)
        with Meter(reading.daemons) as meter:
            meter.run("read", command)
        self.keep_read(step, peer, reading, meter.usage(), before, amount)

    def keep_read(
        self, step: str, peer: Peer, reading: Reading, usage: Usage, before: int, amount: float | None
    ) -> None:
        """With what its daemons read from the disk, of which `before` was read before."""
        disk = {DISK: float(disk_read_bytes(reading.daemons) - before)} if reading.daemons else {}
        self.value(step, peer, values_of(usage, amount) | disk)


@contextmanager
def opened(plan: Plan, number: int) -> Iterator[Round]:
    """A round with every peer set up; afterwards nothing is left of them, whatever happened."""
    of_round = Round(plan, number)
    everyone = tuple(of_round.peers)
    try:
        for peer in everyone:
            with of_round.guarded("set-up", peer):
                peer.setup()
        yield of_round
    finally:
        for peer in everyone:
            with of_round.guarded("end", peer, keeps=True):
                peer.close()


def room_for(plan: Plan, needed_bytes: int) -> None:
    """Raises BenchError where the disk has less than `needed_bytes` and 2 GiB more: others use it too."""
    free = shutil.disk_usage(plan.work).free
    if free < needed_bytes + 2 * GIB:
        raise BenchError(
            f"{plan.part} needs about {needed_bytes / 1e9:.1f} GB on the disk; {free / 1e9:.1f} GB are free"
        )


def warm(root: Path) -> None:
    """Reads everything once, so that the source's disk is no part of what is measured."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def reason_of(error: BaseException) -> str:
    """One line."""
    return " ".join(str(error).split()) or type(error).__name__
