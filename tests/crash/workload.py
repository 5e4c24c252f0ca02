"""A session of `live`: random operations, flushes, snapshots, collections and reopenings, with every system call on
record and everything that was promised on the side."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from repository.catalog import Catalog
from repository.configfile import read_config
from repository.format.catalog import Head, Slot, SlotState, SnapshotKind
from repository.format.config import CONFIG_NAME, ChunkerParameters, Config
from repository.format.inode import NodeKind
from repository.ids import SnapshotId
from repository.intent import INTENT_FILE, IntentFile
from repository.live import attributes, names, writing
from repository.packs.spare import found_spare, unfound_spare
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.slotfile import CATALOG_FILE
from repository.storage.volume import Volume
from repository.units import KIB, MIB
from tests.crash.history import History, Register, SnapshotState
from tests.support.calls import RecordingCalls
from tests.support.repositories import SetClock
from tests.support.sync_live import SyncLive
from tests.support.world import Path_, Thing, World, canonical, difference

NAMES: Final = (b"a", b"b", b"c", b"d", "ü".encode(), b"\xff\xfe", b"x" * 255)
CATALOG_SLOTS: Final = 64
"""Instead of 4,096: an image's catalog is written and read for each of hundreds of images."""


def found(path: Path, clock: SetClock, *, reserve_bytes: int = 0, slots: int = CATALOG_SLOTS) -> None:
    """A repository with small chunks, packs and catalog, always with the same id and key."""
    Repository.init(path, reserve_bytes=reserve_bytes, headspace_bytes=0, clock=clock)
    volume = Volume(path)
    config = read_config(volume)
    small = replace(
        config,
        repository_id=bytes(range(16)),
        id_key=bytes(range(32)),
        chunker=ChunkerParameters(1 * KIB, 4 * KIB, 16 * KIB),
        pack_bytes=4 * MIB,
        segment_bytes=1 * MIB,
        quota_bytes=0,
    )
    _replace_files(path, volume, small, slots)


def _replace_files(path: Path, volume: Volume, config: Config, slots: int) -> None:
    for name in (CATALOG_FILE, INTENT_FILE):
        (path / name).unlink()
    (path / CONFIG_NAME).write_bytes(config.encode())
    Catalog.create(volume, config.seed, Head(), slots=slots)
    IntentFile.create(volume, config.seed)
    unfound_spare(volume)
    found_spare(volume, config, config.created_ns)


class Workload:
    """One process after the other on one repository. `run` steps; then `calls.log` and `history` are the record."""

    def __init__(self, path: Path, seed: int, calls: RecordingCalls | None = None) -> None:
        self.path: Final = path
        self.rng: Final = random.Random(seed)
        self.clock: Final = SetClock()
        self.calls: Final = RecordingCalls() if calls is None else calls
        self.history: Final = History()
        self.world = World()
        self.written: Final[list[bytes]] = []
        self._flushed = World()
        self.is_open = True
        """False once opening has failed: `live` is the one before."""
        self.live = SyncLive(path, calls=self.calls, clock=self.clock)
        self._note_snapshots()
        self.calls.mark("opened")
        self._steps: Final = self._weighted()

    def _weighted(self) -> list[Callable[[], None]]:
        weights: list[tuple[Callable[[], None], int]] = [
            (self.create, 12),
            (self.write, 24),
            (self.truncate, 4),
            (self.set_attributes, 4),
            (self.link, 3),
            (self.remove, 5),
            (self.rename, 5),
            (self.store_runs, 3),
            (self.flush, 12),
            (self.commit, 5),
            (self.checkpoint, 2),
            (self.change_snapshot, 5),
            (self.collect, 3),
            (self.seal, 1),
            (self.reopen, 1),
            (self.kill, 2),
        ]
        return [step for step, weight in weights for _ in range(weight)]

    def run(self, steps: int) -> None:
        """So many random steps, begun with something to work on."""
        for _ in range(6):
            self.create()
        for _ in range(steps):
            self.rng.choice(self._steps)()
        self.flush()
        assert canonical(self.live.picture()) == self.world.picture(), difference(
            canonical(self.live.picture()), self.world.picture()
        )

    @property
    def now(self) -> int:
        return len(self.calls.log)

    def _pick(self, paths: Iterable[Path_]) -> Path_ | None:
        choices = sorted(paths)
        return self.rng.choice(choices) if choices else None

    # --- files ----------------------------------------------------------------------------------------------------

    def _new_path(self) -> Path_:
        parent = self.rng.choice([path for path in self.world.directories() if len(path) < 3])
        return (*parent, self.rng.choice(NAMES))

    def create(self) -> None:
        path = self._new_path()
        if path in self.world.names:
            return
        kind = self.rng.choice((NodeKind.FILE, NodeKind.FILE, NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK))
        target = b"../somewhere" if kind is NodeKind.SYMLINK else b""
        names.create(self.live.tree, self.live.resolve(path[:-1]), path[-1], names.Wish(kind, 0o640, 0, 0, 0, target))
        self.world.create(path, Thing(kind, 0o640, bytearray(target)))

    def _data(self) -> bytes:
        """New bytes, or some that were written before: they may be stored still, or collected."""
        if self.written and self.rng.random() < 0.3:
            return self.rng.choice(self.written)
        self.written.append(self._new_data())
        return self.written[-1]

    def _new_data(self) -> bytes:
        match self.rng.randrange(10):
            case 0:
                return bytes(self.rng.randint(1, 40_000))
            case 1 | 2:
                return bytes([self.rng.randrange(256)]) * self.rng.randint(1, 60_000)
            case 3:
                return self.rng.randbytes(self.rng.randint(50_000, 300_000))
            case _:
                return self.rng.randbytes(self.rng.randint(1, 9_000))

    def write(self) -> None:
        path = self._pick(self.world.files())
        if path is None:
            return
        offset = self.rng.choice((0, self.rng.randint(0, len(self.world.thing(path).data) + 5_000)))
        data = self._data()
        writing.write(self.live.tree, self.live.resolve(path), offset, data)
        self.world.write(path, offset, data)

    def truncate(self) -> None:
        path = self._pick(self.world.files())
        if path is None:
            return
        size = self.rng.choice((0, self.rng.randint(0, 100_000)))
        attributes.set_attributes(self.live.tree, self.live.resolve(path), attributes.Wanted(size=size))
        self.world.truncate(path, size)

    def set_attributes(self) -> None:
        path = self._pick(self.world.names)
        if path is None:
            return
        mode, value = self.rng.randrange(0o1000), self.rng.randbytes(self.rng.choice((3, 700)))
        number = self.live.resolve(path)
        attributes.set_attributes(self.live.tree, number, attributes.Wanted(mode=mode))
        attributes.set_xattr(self.live.tree, number, b"user.x", value)
        self.world.thing(path).mode = mode
        self.world.thing(path).xattrs[b"user.x"] = value

    def link(self) -> None:
        path = self._pick(path for path in self.world.names if not self.world.is_directory(path))
        new = self._new_path()
        if path is None or new in self.world.names:
            return
        names.link(self.live.tree, self.live.resolve(path), self.live.resolve(new[:-1]), new[-1])
        self.world.names[new] = self.world.names[path]

    def remove(self) -> None:
        path = self._pick(path for path in self.world.names if not self.world.below(path))
        if path is None:
            return
        away = names.rmdir if self.world.is_directory(path) else names.unlink
        away(self.live.tree, self.live.resolve(path[:-1]), path[-1])
        self.world.remove(path)

    def rename(self) -> None:
        old, new = self._pick(self.world.names), self._new_path()
        if old is None or new[: len(old)] == old or old[: len(new)] == new:
            return
        there = new in self.world.names
        exchange = there and self.rng.random() < 0.3
        if there and not exchange and (self.world.below(new) or self._kinds_differ(old, new)):
            return
        ends = (self.live.resolve(old[:-1]), old[-1]), (self.live.resolve(new[:-1]), new[-1])
        names.rename(self.live.tree, *ends, names.RENAME_EXCHANGE if exchange else 0)
        self.world.rename(old, new, exchange=exchange)

    def _kinds_differ(self, one: Path_, other: Path_) -> bool:
        return self.world.is_directory(one) != self.world.is_directory(other)

    # --- promises -------------------------------------------------------------------------------------------------

    @contextmanager
    def _promise_live(self) -> Iterator[None]:
        self.history.live.begin(self.now, self.world.picture())
        yield
        self.history.live.acknowledge(self.now)
        self._flushed = self.world.copy()

    def store_runs(self) -> None:
        """Written, and not promised."""
        self.live.store_runs()

    def flush(self) -> None:
        with self._promise_live():
            self.live.flush()

    def checkpoint(self) -> None:
        with self._promise_live():
            self.live.commit(None)

    def commit(self) -> None:
        """A snapshot, with or without a name."""
        name = f"snapshot {self.now}" if self.rng.random() < 0.4 else None
        kind = SnapshotKind.IMPLICIT if name is None else SnapshotKind.NAMED
        if name is None and self.rng.random() < 0.2:
            kind = SnapshotKind.PROVISIONAL
        start = self.now
        with self._promise_live():
            self.live.commit(kind, name)
        self._note_snapshots(start)

    def _note_snapshots(self, start: int = 0) -> None:
        """Compare the catalog with what is on record: whatever changed began at `start` and is durable now."""
        slots = {slot.snapshot_id: slot for slot in self.live.repository.catalog.slots()}
        for snapshot_id, slot in slots.items():
            if snapshot_id not in self.history.snapshots:
                self.history.snapshots[snapshot_id] = Register(None)
                self.history.contents[snapshot_id] = self.world.picture()
            self._note(snapshot_id, start, _state_of(slot))
        for snapshot_id in self.history.snapshots.keys() - slots.keys():
            self._note(snapshot_id, start, None)

    def _note(self, snapshot_id: SnapshotId, start: int, state: SnapshotState | None) -> None:
        register = self.history.snapshots[snapshot_id]
        if register.allowed(self.now)[-1] != state:
            register.begin(start, state)
            register.acknowledge(self.now)

    def change_snapshot(self) -> None:
        repository, start = self.live.repository, self.now
        slots = [slot for slot in repository.catalog.slots() if slot.kind is not SnapshotKind.PROVISIONAL]
        if not slots:
            return
        slot = self.rng.choice(slots)
        if slot.state is SlotState.TRASH:
            repository.undelete(slot, f"undeleted {start}")
        elif slot.pinned:
            repository.unpin(slot)
        else:
            match self.rng.randrange(5):
                case 0:
                    repository.rename(slot, f"renamed {start}")
                case 1:
                    repository.pin(slot)
                case _:
                    repository.delete(slot)
        self._note_snapshots(start)

    def collect(self) -> None:
        start = self.now
        self.live.repository.gc(safety=Safety.NONE)
        self._note_snapshots(start)

    def seal(self) -> None:
        self.live.store.seal_open()
        self.live.store.tend()

    # --- processes ------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """A clean end, and the next process."""
        start = self.now
        with self._promise_live():
            self.live.close()
            self._open()
        self._note_snapshots(start)

    def kill(self) -> None:
        """The process dies without a word, the machine goes on; the next process finds what was flushed."""
        self.live.kill()
        self._open()
        self.world = self._flushed.copy()

    def _open(self) -> None:
        self.is_open = False
        self.live = SyncLive(self.path, calls=self.calls, clock=self.clock)
        self.is_open = True


def _state_of(slot: Slot) -> SnapshotState:
    return SnapshotState(slot.state, slot.name, slot.pinned)
