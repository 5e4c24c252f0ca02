"""A mount whose backing file system lies on a disk that logs, a program on it, and the disk as power cuts leave it.

`record` runs the program once; then a `Session` tells what had been promised at each moment of the log, makes images of
power cuts, has the file system and then Ballast recover from each, and compares.
"""

import ctypes
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from repository.errors import BallastError
from repository.repo import Repository
from tests.support.blocklog import STYLES, Entry, Kind, LoggedDisk, copy_sparse, read_log
from tests.support.blocklog_fuse import logging_disk, loop_device
from tests.support.mounted import BUSY, CALM, SMALL, Mounted, ballast, init, is_mounted, run
from tests.support.program import (
    EXECUTOR,
    SYNCING,
    Outcome,
    Step,
    look,
    nearest,
    plan,
    snapshots,
    states,
    write_program,
)
from tests.support.strace import injected
from tests.support.sync_live import SyncLive, picture_of
from tests.support.world import Picture, World, canonical, difference

DISK_BYTES: Final = 128 << 20
"""Most of it is never written, and so costs nothing."""
MKFS: Final = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-b")
WRITE_BACK_S: Final = 0.005
"""Between two rounds of writing dirty pages out; the kernel itself would wait for seconds."""
SYNC_FILE_RANGE_WRITE: Final = 2
SNAPSHOT_EVERY: Final = 40
"""Steps, beside the snapshots that the program makes anyway."""
PATIENCE_S: Final = 60.0
EXPECTED: Final = frozenset(("pack.header_damaged", "index.segment_discarded", "record.damaged"))
"""What a daemon may warn of after a power cut: nobody was promised these."""
BEGIN: Final = Entry(Kind.NOTE, 0, b"=")
END: Final = Entry(Kind.NOTE, 0, b"#")
"""Between these the mount serves the program."""
COLLECTING: Final = Entry(Kind.NOTE, 0, b"g")
COLLECTED: Final = Entry(Kind.NOTE, 0, b"G")


class Lost(AssertionError):
    """Something promised is missing, or something nobody made is there."""


@contextmanager
def ext4(device: str, folder: Path, options: str) -> Iterator[Path]:
    """A device mounted on `folder`, which is made; nothing stays mounted, even if somebody uses it still."""
    folder.mkdir(exist_ok=True)
    run(["mount", "-t", "ext4", "-o", options, device, folder])
    try:
        yield folder
        gc.collect()  # files that are mapped go with the arrays over them
        run(["umount", folder])
    finally:
        if is_mounted(folder):
            run(["umount", "-l", folder])


@contextmanager
def early_write_back(repository: Path) -> Iterator[None]:
    """Has the kernel write dirty pages out all the time, in any order and without a flush, as it may at any moment."""
    libc, over = ctypes.CDLL(None, use_errno=True), threading.Event()
    length = ctypes.c_int64(0)

    def write_back() -> None:
        while not over.wait(WRITE_BACK_S):
            for folder, _, names in os.walk(repository):
                for name in names:
                    with suppress(FileNotFoundError), open(os.path.join(folder, name), "rb") as file:
                        libc.sync_file_range(file.fileno(), length, length, SYNC_FILE_RANGE_WRITE)

    thread = threading.Thread(target=write_back, name="write back")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Cut(NamedTuple):
    """A power cut before entry `at` of the log; `style`: what becomes of the writes under way, see STYLES."""

    at: int
    style: str


class Session:
    """What was recorded: the disk before, the log, and the program that ran."""

    def __init__(self, folder: Path, seed: int, steps: list[Step], log: list[Entry]) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._steps = steps
        self.log = log
        self.begin = log.index(BEGIN) + 1
        """From here on the repository is there and promises are kept."""

    def cuts(self, count: int) -> list[Cut]:
        """In order. A quarter each: right behind a promise, with nothing kept but what is certain; right before a
        flush; behind any write; during the collection."""
        moments = range(self.begin, len(self.log))
        flushes = [at for at in moments if self.log[at].kind is Kind.FLUSH]
        writes = [at + 1 for at in moments if self.log[at].kind is Kind.WRITE]
        collecting = range(self.log.index(COLLECTING) + 1, self.log.index(COLLECTED) + 1)
        cuts = [Cut(at, "none") for at in self._promises(count // 4)]
        for among in (flushes, writes, collecting):
            cuts += [Cut(at, self._rng.choice(STYLES)) for at in self._rng.sample(among, count // 4)]
        return sorted(cuts)

    def _promises(self, count: int) -> list[int]:
        """Moments right behind the return of a step that promises something; those of snapshots come first."""
        returned = [at + 1 for at, entry in enumerate(self.log) if entry.data[:1] == b"." and entry.kind is Kind.NOTE]
        verbs = [step.verb for step in self._steps[: len(returned)]]
        by_snapshots = [at for at, verb in zip(returned, verbs, strict=True) if verb == "snapshot"]
        by_syncs = [at for at, verb in zip(returned, verbs, strict=True) if verb in SYNCING and verb != "snapshot"]
        chosen = by_snapshots[:count]
        return chosen + self._rng.sample(by_syncs, count - len(chosen))

    def images(self, cuts: Sequence[Cut]) -> Iterator[tuple[Cut, Path]]:
        """For each cut, in order, an image, which is gone when the next is asked for. Says on stdout what it is."""
        durable = self._folder / "durable"
        copy_sparse(self._folder / "before", durable)
        disk, done = LoggedDisk(durable), 0
        for cut in cuts:
            for entry in self.log[done : cut.at]:
                disk.take(entry)
            done = cut.at
            # Another file each time: who made a mount namespace meanwhile may still have the last one mounted.
            image = self._folder / f"image-{cut.at}"
            pending = disk.crash(image, cut.style, self._rng)
            print(f"cut at {cut.at} of {len(self.log)}, of {pending} writes under way: {cut.style}")
            yield cut, image
            image.unlink()

    def outcome(self, cut: Cut) -> Outcome:
        """How many steps had been begun and had returned at that moment."""
        notes = [entry.data[:1] for entry in self.log[: cut.at] if entry.kind is Kind.NOTE]
        return Outcome(notes.count(b"+"), notes.count(b"."), None)

    def verify(self, cut: Cut, image: Path, *, by_mount: bool) -> None:
        """Let ext4 recover, then Ballast; Lost where a promise is broken. `by_mount`: through a mount of its own."""
        lost = ""
        with loop_device(image) as device, ext4(device, self._folder / "disk-again", "rw") as place:
            repository = place / "repository"
            try:
                _check(repository)
                if by_mount:
                    self._by_mount(cut, repository)
                else:
                    self._in_process(cut, repository)
                _check(repository, without_warnings=True)
            except (Lost, BallastError) as error:
                lost = str(error)  # the error itself would keep files open
        if lost:
            raise Lost(lost)

    def _in_process(self, cut: Cut, repository: Path) -> None:
        live = SyncLive(repository)
        try:
            self._compare_live(cut, canonical(live.picture()))
            listed = {slot.name: slot for slot in live.repository.catalog.slots()}
            for name, returned, then in snapshots(World(), self._steps, self.outcome(cut)):
                if name in listed:
                    _same(f"snapshot '{name}'", canonical(picture_of(live.repository, listed[name])), then.picture())
                elif returned:
                    raise Lost(f"the snapshot '{name}' was made and is missing")
        finally:
            live.close()

    def _by_mount(self, cut: Cut, repository: Path) -> None:
        mount = Mounted(repository, self._folder / "mnt-again", CALM)
        try:
            mount.start()
            self._compare_live(cut, look(mount.live))
            shown = set(mount.names())
            for name, returned, then in snapshots(World(), self._steps, self.outcome(cut)):
                if name in shown:
                    _same(f"snapshot '{name}'", look(mount.snapshots / name), then.picture())
                elif returned:
                    raise Lost(f"the snapshot '{name}' was made and is missing")
            mount.umount()
            surprises = [line for line in mount.trouble() if line.partition(":")[0] not in EXPECTED]
            assert not surprises, surprises
        finally:
            mount.clean_up()

    def _compare_live(self, cut: Cut, found: Picture) -> None:
        """It must be the tree after some number of steps, no fewer than what was promised."""
        sizes = {path: row[3] for path, row in found.items()}
        outcome = self.outcome(cut)
        for _, state in states(World(), self._steps, outcome):
            if {path: len(state.thing(path).data) for path in state.names} == sizes and state.picture() == found:
                return
        raise Lost(nearest(found, World(), self._steps, outcome))


def _same(what: str, found: Picture, wanted: Picture) -> None:
    if found != wanted:
        raise Lost(f"{what}:\n{difference(found, wanted)}")


def _check(repository: Path, *, without_warnings: bool = False) -> None:
    """As `ballast check --read-data` does. Warnings are right only before somebody recovered."""
    with Repository.open(repository, writable=False) as one:
        report = one.check(read_data=True)
    if not report.is_sound or (without_warnings and report.findings):
        raise Lost(report.text())


def record(folder: Path, seed: int, count: int, *, block_bytes: int = 4096, lying: bool = False) -> Session:
    """Run a program of that many steps through a mount, with a collection in its middle. `lying`: no sync is done."""
    image, before, log = folder / "recorded", folder / "before", folder / "log"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run([*MKFS, str(block_bytes), image])
    copy_sparse(image, before)
    steps = plan(World(), random.Random(seed), count, f"seed {seed}")
    for at in range(count - 1, 0, -SNAPSHOT_EVERY):
        steps.insert(at, Step("snapshot", other=f"before step {at}"))
    middle = len(steps) // 2
    with ExitStack() as stack:
        device, notes = stack.enter_context(logging_disk(folder / "logging", image, log))
        # A file system that syncs by itself every 5 s would hide for a while that nobody asked it to.
        place = stack.enter_context(ext4(device, folder / "disk", "commit=300" if lying else "rw"))
        init(place / "repository", *SMALL)
        mount = Mounted(place / "repository", folder / "mnt", BUSY)
        stack.callback(mount.clean_up)
        mount.start()
        if lying:
            stack.enter_context(injected(mount, "fsync,fdatasync,syncfs,sync", "retval=0"))  # said, not done
        else:
            stack.enter_context(early_write_back(place / "repository"))
        notes.write_bytes(BEGIN.data)
        _run(steps[:middle], mount, folder / "program", notes)
        notes.write_bytes(COLLECTING.data)
        _collect(mount, {step.other for step in steps if step.verb == "snapshot"})
        notes.write_bytes(COLLECTED.data)
        _run(steps[middle:], mount, folder / "program", notes)
        notes.write_bytes(END.data)
    entries = read_log(log)
    return Session(folder, seed, steps, entries[: entries.index(END)])


def _run(steps: list[Step], mount: Mounted, program: Path, notes: Path) -> None:
    """The program's notes go into the disk's log, in their places."""
    write_program(steps, program)
    command = [sys.executable, "-I", "-S", "-c", EXECUTOR, program, notes, mount.live]
    subprocess.run(list(map(str, command)), check=True, timeout=PATIENCE_S)


def _collect(mount: Mounted, kept: set[str]) -> None:
    """Deletes the snapshots that the mount made by itself; then all garbage goes at once, by unlinking and punching."""
    for name in set(mount.names()) - kept:
        (mount.snapshots / name).rmdir()
    done = ballast("gc", mount.repository, "--safety", "none")
    assert done.returncode == 0, done.stderr
    print(done.stdout, end="")
