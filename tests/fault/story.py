"""A repository's life, step by step, with what it has promised on the side.

A step that fails is tried once more, as a user would: where only room was lacking for a moment, that must work. Where
it doesn't, the process is over (as by kill -9) and what was promised up to there has to be found.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from repository.errors import BallastError, NoSpaceError
from repository.format.catalog import SnapshotKind
from repository.format.inode import NodeKind
from repository.live import attributes, names, writing
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.units import KIB
from tests.crash.workload import found
from tests.fault.calls import NthCallFails
from tests.support.repositories import SetClock, publish, read_files
from tests.support.stores import noise
from tests.support.sync_live import SyncLive, picture_of

Files = dict[tuple[bytes, ...], bytes]


@contextmanager
def new_memory_folder() -> Iterator[Path]:
    """An empty folder on tmpfs, where there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="ballast-test-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def found_once(folder: Path) -> Path:
    """An empty repository to copy for each run."""
    path = folder / "empty"
    found(path, SetClock(), reserve_bytes=256 * KIB)
    return path


class Story:
    """One run of the steps under `calls`, in a copy of the repository `empty`."""

    def __init__(self, empty: Path, path: Path, calls: NthCallFails) -> None:
        shutil.copytree(empty, path)
        spare = path / "packs/00/00000000.pack"
        spare.write_bytes(spare.read_bytes())  # a copy without holes
        self.path: Final = path
        self.calls: Final = calls
        self.clock: Final = SetClock()
        self.live: SyncLive | None = None
        self.files: Files = {}
        """What `live` shows."""
        self.durable: list[Files] = [{}]
        """What `live` may show after a crash: what was acknowledged last, and what is being made durable."""
        self.listed: dict[str, list[Files | dict[str, bytes] | None]] = {}
        """By name what a snapshot may hold after a crash; None: it is not there."""
        self.retried = 0
        self.gave_up: BallastError | None = None
        self._steps: Final[tuple[Callable[[], None], ...]] = (
            self.begin,
            self.fill,
            self.flush,
            lambda: self.commit("one"),
            self.change,
            self.flush,
            lambda: self.commit(None),
            self.seal,
            lambda: self.import_files("host", {f"h{number}": noise(70 + number, 9 * KIB) for number in range(8)}),
            self.seal,
            lambda: self.commit("two"),
            lambda: self.delete("one"),
            self.collect,
            self.seal,
            self.rename_and_pin,
            lambda: self.delete("host"),
            self.recover,
            self.collect,
            self.shrink,
            self.flush,
            self.end,
            self.begin,
            self.change,
            lambda: self.commit("three"),
            self.end,
        )

    # --- running ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All steps; ends early where one fails twice."""
        self.calls.armed = True
        for step in self._steps:
            try:
                try:
                    step()
                except BallastError as error:
                    self.retried += 1
                    self._again(step, error)
            except BallastError as error:
                self.gave_up = error
                break
        self.calls.armed = False
        if self.live is not None:
            self.live.kill()
            self.live = None

    def _again(self, step: Callable[[], None], error: BallastError) -> None:
        """Room may be there the second time; a store that failed stays failed, and nothing may be acknowledged."""
        failed = self.live is not None and self.live.store.failed
        try:
            step()
        except BallastError:
            assert failed or not isinstance(error, NoSpaceError), f"{error!r}, and tried again it fails too"
            raise

    @property
    def _now(self) -> SyncLive:
        assert self.live is not None
        return self.live

    # --- steps --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.live = SyncLive(self.path, calls=self.calls, clock=self.clock)

    def end(self) -> None:
        self._now.close()
        self.live = None
        self.durable = [dict(self.files)]

    def _begin_durable(self) -> None:
        self.durable = [self.durable[0], dict(self.files)]

    def flush(self) -> None:
        self._begin_durable()
        self._now.flush()
        self.durable = self.durable[-1:]

    def commit(self, name: str | None) -> None:
        """A named snapshot, or only the head."""
        self._begin_durable()
        if name is not None:
            if name in [slot.name for slot in self._now.repository.listed()]:
                return  # it was made, and then something failed
            self.listed[name] = [None, dict(self.files)]
        self._now.commit(None if name is None else SnapshotKind.NAMED, name)
        self.durable = self.durable[-1:]
        if name is not None:
            self.listed[name] = self.listed[name][-1:]

    def import_files(self, name: str, files: dict[str, bytes]) -> None:
        if name in [slot.name for slot in self._now.repository.listed()]:
            return
        self.listed[name] = [None, files]
        publish(self._now.repository, files, name)
        self.listed[name] = [files]

    def delete(self, name: str) -> None:
        repository = self._now.repository
        if name not in [slot.name for slot in repository.listed()]:
            return
        self.listed[name] = [self.listed[name][0], None]
        repository.delete(repository.find(name))
        self.listed[name] = [None]

    def rename_and_pin(self) -> None:
        repository = self._now.repository
        if "two" in self.listed:
            content = self.listed["two"][0]
            self.listed["2"] = [None, content]
            self.listed["two"] = [content, None]
            if "two" in [slot.name for slot in repository.listed()]:
                repository.rename(repository.find("two"), "2")
            self.listed["2"] = self.listed["2"][1:]
            del self.listed["two"]
        repository.pin(repository.find("2"))

    def collect(self) -> None:
        self._now.repository.gc(safety=Safety.NONE)

    def recover(self) -> None:
        """What a full disk does: the whole ladder, and the way back."""
        recovery = self._now.repository.recovery
        recovery.changed()
        recovery.climb(NoSpaceError("the disk is full", 64 * KIB))
        recovery.finish()
        recovery.look()

    def seal(self) -> None:
        self._now.store.seal_open()
        self._now.store.tend()

    # --- changes in memory: no call fails here but for reads, before anything has changed ---------------------------

    def fill(self) -> None:
        self._write((b"large",), noise(1, 90 * KIB))
        for number in range(6):
            self._write((b"small%d" % number,), noise(10 + number, 3 * KIB))

    def change(self) -> None:
        self._write((b"small1",), noise(30, 5 * KIB))
        self._write((b"new",), noise(31, 40 * KIB))
        self._write((b"large",), self.files.get((b"large",), b"")[: 50 * KIB] + noise(32, 20 * KIB))

    def shrink(self) -> None:
        live = self._now
        for name in (b"large", b"small2"):
            if (name,) in self.files:
                names.unlink(live.tree, live.resolve(()), name)
                del self.files[name,]

    def _write(self, path: tuple[bytes, ...], data: bytes) -> None:
        tree, live = self._now.tree, self._now
        if tree.lookup(live.resolve(path[:-1]), path[-1]) is None:
            names.create(tree, live.resolve(path[:-1]), path[-1], names.Wish(NodeKind.FILE, 0o640, 0, 0, 0))
        number = live.resolve(path)
        attributes.set_attributes(tree, number, attributes.Wanted(size=0))
        writing.write(tree, number, 0, data)
        self.files[path] = data

    # --- the truth ----------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Opened without faults: everything promised is there, a check finds nothing, and it goes on."""
        live = SyncLive(self.path, clock=self.clock)
        repository = live.repository
        shown = _files(live.picture())
        assert shown in self.durable, f"live shows {sorted(shown)}"
        report = repository.check(read_data=True)
        assert report.is_sound, report.text()
        found = {slot.name: slot for slot in repository.listed() if slot.name in self.listed}
        for name, allowed in self.listed.items():
            if name not in found:
                assert None in allowed, f"'{name}' is not there"
            elif name == "host":
                assert read_files(repository, found[name]) in allowed
            else:
                assert _files(picture_of(repository, found[name])) in allowed
        assert set(found) >= {name for name, allowed in self.listed.items() if None not in allowed}
        self._goes_on(live)

    def _goes_on(self, live: SyncLive) -> None:
        live.repository.gc(safety=Safety.NONE)
        assert live.store.headroom.whole
        publish(live.repository, {"x": b"afterwards"}, "afterwards")
        live.close()
        with Repository.open(self.path, writable=False, clock=self.clock) as reading:
            assert read_files(reading, reading.find("afterwards")) == {"x": b"afterwards"}
            report = reading.check()
            assert not report.findings, report.text()


def _files(picture: dict[tuple[bytes, ...], tuple[object, ...]]) -> Files:
    """Path and bytes of each file of a picture."""
    files: Files = {}
    for path, seen in picture.items():
        if seen[0] is NodeKind.FILE:
            data = seen[-1]
            assert isinstance(data, bytes)
            files[path] = data
    return files
