"""Power cuts at any moment of a session: what `fsync` and snapshots promised is there, and nothing else is."""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from repository import catalog
from repository.errors import BallastError
from repository.format.inode import NodeKind
from repository.format.pack import PUNCHED_OFFSET
from repository.ids import ROOT_FILE_ID
from repository.live import names, writing
from repository.policy.collect import Safety
from repository.rebuild import rebuild
from repository.repo import Repository
from repository.storage.volume import Volume
from tests.crash.images import Session, bytes_of, recover, verify, verify_check
from tests.support.calls import Operation, RecordingCalls
from tests.support.crash import Disk
from tests.support.sync_live import SyncLive, picture_of
from tests.support.world import canonical

pytestmark = [pytest.mark.logs("pack.header_damaged", "index.segment_discarded"), pytest.mark.slow]

STEPS: Final = 150
"""Per session: some 500 system calls and ten snapshots."""


@pytest.mark.parametrize("seed", range(6))
def test_nothing_promised_is_missing(memory_folder: Path, seed: int) -> None:
    session = Session(memory_folder, seed, STEPS)
    for cut, image in session.images(session.cuts(10)):
        live = recover(image, session.clock)
        verify(live, session.history, cut)
        live.kill()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_nothing_promised_is_missing_500_images(memory_folder: Path, seed: int) -> None:
    session = Session(memory_folder, seed, 2 * STEPS)
    images = 0
    for cut, image in session.images(session.cuts(25)):
        live = recover(image, session.clock)
        verify(live, session.history, cut)
        live.kill()
        images += 1
    assert images == 25


@pytest.mark.parametrize("seed", range(70, 72))
def test_the_catalog_grows(memory_folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(catalog, "SLOTS_GROWN", 4)
    session = Session(memory_folder, seed, 2 * STEPS, slots=8)
    assert len(session.history.snapshots) > 8
    for cut, image in session.images(session.cuts(10)):
        live = recover(image, session.clock)
        verify(live, session.history, cut)
        live.kill()


@pytest.mark.parametrize("seed", range(80, 82))
def test_rebuilding_an_image_loses_nothing(memory_folder: Path, seed: int) -> None:
    """Whoever reaches for `ballast rebuild` after a power cut gets what a mount would have given."""
    session = Session(memory_folder, seed, STEPS)
    for cut, image in session.images(session.cuts(4)):
        rebuild(Volume(image), session.clock)
        live = recover(image, session.clock)
        verify(live, session.history, cut)
        live.kill()


def _crashes(
    disk: Disk, log: list[Operation], moments: list[int], target: Path, rng: random.Random
) -> Iterator[tuple[int, Path]]:
    """Images of power cuts at `moments` of `log`, which goes on from `disk`."""
    done = 0
    for moment in moments:
        for operation in log[done:moment]:
            disk.take(operation)
        done = moment
        disk.crash(target, rng)
        yield moment, target
        shutil.rmtree(target)


@pytest.mark.parametrize("seed", range(20, 24))
def test_a_second_crash_in_the_middle_of_recovery(memory_folder: Path, seed: int) -> None:
    session = Session(memory_folder, seed, STEPS)
    for cut, image in session.images(session.cuts(3)):
        disk, calls = Disk.of(image), RecordingCalls()
        _recover_and_crash(session, cut, disk, calls)


@pytest.mark.parametrize("seed", range(50, 54))
def test_a_killed_process_its_successor_and_then_the_power(memory_folder: Path, seed: int) -> None:
    """The process dies at any system call; what it wrote and never synced is what the next one builds on."""
    session = Session(memory_folder, seed, STEPS)
    image = memory_folder / "image"
    for cut, now in session.disks(session.cuts(3)):
        now.show(image)
        disk = now.copy()
        disk.root = image
        _recover_and_crash(session, cut, disk, RecordingCalls())
        shutil.rmtree(image)


def _recover_and_crash(session: Session, cut: int, disk: Disk, calls: RecordingCalls) -> None:
    """Recover what lies at the disk's root, go on a little, and lose the power at moments of that."""
    first = recover(disk.root, session.clock, calls)
    shown = verify(first, session.history, cut)
    recovered = len(calls.log)
    again = store_again(first, session.written)
    stored = len(calls.log)
    both = canonical(first.picture())
    first.kill()
    log = list(calls.log)
    moments = sorted({*(session.rng.randint(0, recovered) for _ in range(3)), recovered, stored})
    for moment, target in _crashes(disk, log, moments, session.folder / "again", session.rng):
        live = recover(target, session.clock)
        if moment < stored:
            picture = verify(live, session.history, cut)
            assert moment < recovered or picture == shown, "what one mount showed, the next does not"
        else:
            assert canonical(live.picture()) == both
            verify_check(target)
        live.kill()
    assert again


@pytest.mark.logs("record.damaged")  # a torn journal record, which nobody was promised
@pytest.mark.parametrize("seed", range(30, 33))
def test_an_image_can_be_read_and_checked_before_anybody_recovers_it(memory_folder: Path, seed: int) -> None:
    """`mount --read-only`, `restore` and `check` on a write-protected disk: all snapshots, no byte written."""
    session = Session(memory_folder, seed, STEPS)
    for cut, image in session.images(session.cuts(5)):
        before = bytes_of(image)
        with Repository.open(image, writable=False) as repository:
            report = repository.check(read_data=True)
            assert report.is_sound, report.text()
            listed = {slot.snapshot_id: slot for slot in repository.catalog.slots()}
            for snapshot_id, register in session.history.snapshots.items():
                if None not in register.allowed(cut):
                    found = canonical(picture_of(repository, listed[snapshot_id]))
                    assert found == session.history.contents[snapshot_id]
        assert bytes_of(image) == before


@pytest.mark.parametrize("seed", range(40, 43))
def test_life_goes_on_after_recovery(memory_folder: Path, seed: int) -> None:
    """Files are written, a snapshot is made, garbage is collected, and the next mount finds all of it."""
    session = Session(memory_folder, seed, STEPS)
    for cut, image in session.images(session.cuts(4)):
        live = recover(image, session.clock)
        verify(live, session.history, cut)
        store_again(live, session.written)
        picture = canonical(live.picture())
        live.commit()
        live.repository.gc(safety=Safety.NONE)
        live.kill()
        again = SyncLive(image, clock=session.clock)
        assert canonical(again.picture()) == picture
        again.close()
        with Repository.open(image, writable=False, clock=session.clock) as repository:
            report = repository.check(read_data=True)
            assert not report.findings, report.text()


def store_again(live: SyncLive, contents: Sequence[bytes]) -> int:
    """A file for each of `contents`: what was collected must not be found again, and what is there is shared.
    Durable on return, which says how many there are."""
    for number, content in enumerate(contents):
        name = b"again %d" % number
        names.create(live.tree, ROOT_FILE_ID, name, names.Wish(NodeKind.FILE, 0o600, 0, 0))
        writing.write(live.tree, live.resolve((name,)), 0, content)
    live.flush()
    for number, content in enumerate(contents):
        assert live.content(live.tree.resolve(live.resolve((b"again %d" % number,)))) == content
    return len(contents)


def _is_directory_sync(operation: Operation) -> bool:
    return operation.name == "fsync" and "/packs/" in operation.path and not operation.path.endswith(".pack")


MISSING: Final[dict[str, Callable[[Operation], bool]]] = {
    "packs": lambda operation: operation.name == "fdatasync" and operation.path.endswith(".pack"),
    "names of packs": _is_directory_sync,
    "catalog": lambda operation: operation.name == "fdatasync" and operation.path.endswith("/catalog"),
    "marks of punched packs": lambda operation: operation.offset == PUNCHED_OFFSET and operation.length == 1,
}
"""What a session is robbed of: syncs, or what says that a pack has holes."""


@pytest.mark.logs("record.damaged", "pack.directory_damaged", "journal.refused")
@pytest.mark.parametrize("what", MISSING)
def test_what_is_left_out_shows(memory_folder: Path, what: str) -> None:
    """The images are worth something only if they tell a repository that forgets a step."""
    session = Session(memory_folder, 3, STEPS)
    session.log[:] = [Operation("mark", "left out") if MISSING[what](one) else one for one in session.log]
    failures = 0
    for cut, image in session.images(session.cuts(40)):
        try:
            live = recover(image, session.clock)
            verify(live, session.history, cut)
            store_again(live, session.written)
            live.kill()
        except (AssertionError, BallastError):
            failures += 1
    assert failures
