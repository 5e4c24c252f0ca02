"""The live tree of a real repository against dictionaries: operations, snapshots, collections, reopening, crashes."""

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repository.errors import RefusedError
from repository.format.inode import NodeKind
from repository.ids import SnapshotId
from repository.live import attributes, names, writing
from repository.policy.collect import Safety
from repository.repo import Repository
from tests.support.sync_live import SyncLive, picture_of

pytestmark = pytest.mark.slow

Path_ = tuple[bytes, ...]


@dataclass
class Thing:
    """An inode of the model."""

    kind: NodeKind
    mode: int
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class World:
    """A tree of the model: names are paths, values numbers of things (two names of one thing are hard links)."""

    names: dict[Path_, int] = field(default_factory=dict)
    things: dict[int, Thing] = field(default_factory=dict)

    def children(self, path: Path_) -> list[Path_]:
        return [other for other in self.names if other[: len(path)] == path and len(other) > len(path)]

    def picture(self) -> dict[Path_, tuple[object, ...]]:
        links = {number: list(self.names.values()).count(number) for number in self.names.values()}
        return {
            path: (
                thing.kind,
                thing.mode,
                len(thing.data),
                1 if thing.kind is NodeKind.DIRECTORY else links[number],
                tuple(sorted(thing.xattrs.items())),
                bytes(thing.data),
                number,
            )
            for path, number in self.names.items()
            for thing in (self.things[number],)
        }


NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", "ü".encode(), b"x" * 255])
KINDS = (NodeKind.FILE, NodeKind.DIRECTORY, NodeKind.SYMLINK)
DATA = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.integers(1, 5).map(lambda n: bytes([n]) * 70_000),
    st.just(bytes(9000)),
)


class LiveModel(RuleBasedStateMachine):
    """Rules pick among what exists by index, so that most steps do something."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ballast-model-"))
        self.path = self.folder / "repo"
        Repository.init(self.path, reserve_bytes=0)
        self.live = SyncLive(self.path)
        self.world = World()
        self.durable = World()
        self.snapshots: dict[SnapshotId, World] = {}
        self.next_thing = 1

    def teardown(self) -> None:
        if hasattr(self, "live"):
            self.live.kill()
            shutil.rmtree(self.folder)

    # --- picking --------------------------------------------------------------------------------------------------

    def directory(self, pick: int) -> Path_:
        found = [(), *(path for path, number in self.world.names.items() if self.is_dir(number))]
        return found[pick % len(found)]

    def is_dir(self, number: int) -> bool:
        return self.world.things[number].kind is NodeKind.DIRECTORY

    def some(self, pick: int, *, directories: bool = True, files_only: bool = False) -> Path_ | None:
        found = [
            path
            for path, number in self.world.names.items()
            if (directories or not self.is_dir(number))
            and (not files_only or self.world.things[number].kind is NodeKind.FILE)
        ]
        return found[pick % len(found)] if found else None

    # --- operations -----------------------------------------------------------------------------------------------

    @rule(pick=st.integers(0, 30), name=NAMES, kind=st.sampled_from(KINDS))
    def create(self, pick: int, name: bytes, kind: NodeKind) -> None:
        parent = self.directory(pick)
        path = (*parent, name)
        target = b"../somewhere" if kind is NodeKind.SYMLINK else b""
        wish = names.Wish(kind, 0o640, 0, 0, 0, target)
        if path in self.world.names:
            with pytest.raises(RefusedError):
                names.create(self.live.tree, self.live.resolve(parent), name, wish)
            return
        names.create(self.live.tree, self.live.resolve(parent), name, wish)
        self.world.names[path] = self.next_thing
        self.world.things[self.next_thing] = Thing(kind, 0o640, bytearray(target))
        self.next_thing += 1

    @rule(pick=st.integers(0, 30), offset=st.integers(0, 100_000), data=DATA, from_start=st.booleans())
    def write(self, pick: int, offset: int, data: bytes, from_start: bool) -> None:
        path = self.some(pick, files_only=True)
        if path is None:
            return
        thing = self.world.things[self.world.names[path]]
        offset = 0 if from_start else offset % (len(thing.data) + 50)
        writing.write(self.live.tree, self.live.resolve(path), offset, data)
        thing.data.extend(bytes(max(0, offset + len(data) - len(thing.data))))
        thing.data[offset : offset + len(data)] = data

    @rule(pick=st.integers(0, 30), size=st.integers(0, 150_000))
    def truncate(self, pick: int, size: int) -> None:
        path = self.some(pick, files_only=True)
        if path is None:
            return
        thing = self.world.things[self.world.names[path]]
        attributes.set_attributes(self.live.tree, self.live.resolve(path), attributes.Wanted(size=size))
        del thing.data[size:]
        thing.data.extend(bytes(size - len(thing.data)))

    @rule(pick=st.integers(0, 30), mode=st.integers(0, 0o777), value=st.binary(max_size=300))
    def chmod_and_xattr(self, pick: int, mode: int, value: bytes) -> None:
        path = self.some(pick)
        if path is None:
            return
        number = self.live.resolve(path)
        attributes.set_attributes(self.live.tree, number, attributes.Wanted(mode=mode))
        attributes.set_xattr(self.live.tree, number, b"user.x", value)
        thing = self.world.things[self.world.names[path]]
        thing.mode = mode
        thing.xattrs[b"user.x"] = value

    @rule(pick=st.integers(0, 30), parent=st.integers(0, 30), name=NAMES)
    def link(self, pick: int, parent: int, name: bytes) -> None:
        path = self.some(pick, directories=False)
        into = self.directory(parent)
        if path is None or (*into, name) in self.world.names:
            return
        names.link(self.live.tree, self.live.resolve(path), self.live.resolve(into), name)
        self.world.names[(*into, name)] = self.world.names[path]

    @rule(pick=st.integers(0, 30))
    def remove(self, pick: int) -> None:
        path = self.some(pick)
        if path is None:
            return
        parent = self.live.resolve(path[:-1])
        if not self.is_dir(self.world.names[path]):
            names.unlink(self.live.tree, parent, path[-1])
        elif self.world.children(path):
            with pytest.raises(RefusedError):
                names.rmdir(self.live.tree, parent, path[-1])
            return
        else:
            names.rmdir(self.live.tree, parent, path[-1])
        del self.world.names[path]

    @rule(pick=st.integers(0, 30), parent=st.integers(0, 30), name=NAMES, exchange=st.booleans())
    def rename(self, pick: int, parent: int, name: bytes, exchange: bool) -> None:
        old = self.some(pick)
        into = self.directory(parent)
        new = (*into, name)
        if old is None or new[: len(old)] == old or old[: len(new)] == new:
            return
        world = self.world
        flags = names.RENAME_EXCHANGE if exchange and new in world.names else 0
        refused = False
        if new in world.names and not flags and world.names[old] != world.names[new]:
            one, two = self.is_dir(world.names[old]), self.is_dir(world.names[new])
            refused = one != two or (two and bool(world.children(new)))
        ends = (self.live.resolve(old[:-1]), old[-1]), (self.live.resolve(into), name)
        if refused:
            with pytest.raises(RefusedError):
                names.rename(self.live.tree, *ends, flags)
            return
        names.rename(self.live.tree, *ends, flags)
        if new in world.names and world.names[old] == world.names[new]:
            return
        moved = {new + path[len(old) :]: number for path, number in world.names.items() if path[: len(old)] == old}
        back: dict[Path_, int] = {}
        if flags:
            back = {old + path[len(new) :]: number for path, number in world.names.items() if path[: len(new)] == new}
        world.names = {
            path: number for path, number in world.names.items() if path[: len(old)] != old and path[: len(new)] != new
        }
        world.names |= moved | back

    # --- durability -----------------------------------------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        self.live.flush()
        self.durable = copy.deepcopy(self.world)

    @rule()
    def store_runs(self) -> None:
        self.live.store_runs()

    @rule()
    def snapshot(self) -> None:
        slot = self.live.commit()
        self.durable = copy.deepcopy(self.world)
        if slot is not None:
            self.snapshots[slot.snapshot_id] = copy.deepcopy(self.world)

    @rule()
    def checkpoint(self) -> None:
        self.live.commit(None)
        self.durable = copy.deepcopy(self.world)

    @precondition(lambda self: self.snapshots)
    @rule(pick=st.integers(0, 30))
    def delete_snapshot(self, pick: int) -> None:
        listed = self.live.repository.listed()
        slot = listed[pick % len(listed)]
        self.live.repository.delete(slot)
        self.snapshots.pop(slot.snapshot_id, None)

    @rule()
    def collect(self) -> None:
        self.live.repository.gc(safety=Safety.NONE)

    @rule()
    def reopen(self) -> None:
        before = {slot.snapshot_id for slot in self.live.repository.listed()}
        self.live.close()
        self.live = SyncLive(self.path)
        for slot in self.live.repository.listed():
            if slot.snapshot_id not in before:
                self.snapshots[slot.snapshot_id] = copy.deepcopy(self.world)
        self.durable = copy.deepcopy(self.world)

    @rule()
    def crash(self) -> None:
        self.live.kill()
        self.live = SyncLive(self.path)
        self.world = copy.deepcopy(self.durable)

    # --- truth ----------------------------------------------------------------------------------------------------

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "live"):
            return
        agree(self.live.picture(), self.world)

    @invariant()
    def snapshots_same(self) -> None:
        if not hasattr(self, "live"):
            return
        listed = {slot.snapshot_id: slot for slot in self.live.repository.listed()}
        assert set(listed) == set(self.snapshots)
        for snapshot_id, world in self.snapshots.items():
            agree(picture_of(self.live.repository, listed[snapshot_id]), world)


def agree(found: dict[Path_, tuple[object, ...]], world: World) -> None:
    """Paths, contents and attributes are equal, and names share an inode exactly where they do in the model."""
    wanted = world.picture()
    assert set(found) == set(wanted)
    numbers: dict[object, int] = {}
    for path, (kind, file_id, mode, _, _, size, links, xattrs, data) in found.items():
        expected = wanted[path]
        thing = expected[6]
        assert (kind, mode, size, links, xattrs, data) == expected[:6], path
        assert isinstance(thing, int)
        assert numbers.setdefault(file_id, thing) == thing


LiveModel.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


TestLiveModel = LiveModel.TestCase
