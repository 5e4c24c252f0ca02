"""A program of single system calls on a directory, planned beforehand, so that every state it can leave is known.

`plan` makes the steps from what is there; EXECUTOR is the source of the process that carries them out and notes on a
file elsewhere what it began and what returned; `states` says what a crash may leave.
"""

import json
import os
import random
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from repository.format.inode import NodeKind
from tests.support.world import Path_, Picture, Thing, World, difference

NAMES: Final = ("a", "b", "c", "d", "ü", "x" * 255)
VERBS: Final = (
    *("create",) * 10, *("write",) * 26, *("truncate",) * 4, *("chmod",) * 3, *("setxattr",) * 3, *("mkdir",) * 4,
    *("symlink",) * 2, *("link",) * 3, *("unlink",) * 5, *("rmdir",) * 1, *("rename",) * 6, *("fsync",) * 10,
    *("fsyncdir",) * 2,
)  # fmt: skip
SYNCING: Final = frozenset(("fsync", "fsyncdir", "snapshot"))
"""Steps whose return promises everything before them."""
SNAPSHOT_SHARE: Final = 0.01
XATTR: Final = "user.x"
PAGE_BYTES: Final = 4096

EXECUTOR: Final = """
import json, os, random, sys
program, notes, live = sys.argv[1:]
os.umask(0)
note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def opened(path, flags, do):
    handle = os.open(path, flags)
    try:
        do(handle)
    finally:
        os.close(handle)

def carry_out(verb, path, other, offset, length, seed):
    here, there = os.path.join(live, path), os.path.join(live, other)
    if verb == "create":
        os.close(os.open(here, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
    elif verb == "write":
        data = random.Random(seed).randbytes(length) if seed else bytes(length)
        opened(here, os.O_WRONLY, lambda handle: os.pwrite(handle, data, offset))
    elif verb == "truncate":
        os.truncate(here, length)
    elif verb == "chmod":
        os.chmod(here, seed)
    elif verb == "setxattr":
        os.setxattr(here, "user.x", random.Random(seed).randbytes(length))
    elif verb == "mkdir":
        os.mkdir(here, 0o750)
    elif verb == "symlink":
        os.symlink(other, here)
    elif verb == "link":
        os.link(here, there, follow_symlinks=False)
    elif verb == "unlink":
        os.unlink(here)
    elif verb == "rmdir":
        os.rmdir(here)
    elif verb == "rename":
        os.rename(here, there)
    elif verb == "fsync":
        opened(here, os.O_RDONLY, os.fsync)
    elif verb == "fsyncdir":
        opened(here, os.O_RDONLY | os.O_DIRECTORY, os.fsync)
    elif verb == "snapshot":
        os.mkdir(os.path.join(live, "..", "snapshots", other))

for number, step in enumerate(json.load(open(program))):
    os.write(note, b"+%d\\n" % number)
    try:
        carry_out(*step)
    except OSError as error:
        os.write(note, b"!%d\\n" % error.errno)
        sys.exit(0)
    os.write(note, b".%d\\n" % number)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One system call. Paths are relative to `live`; `other` is a second path, a link's target or a snapshot's name."""

    verb: str
    path: str = ""
    other: str = ""
    offset: int = 0
    length: int = 0
    seed: int = 0


def write_program(steps: Sequence[Step], path: Path) -> None:
    """For the executor."""
    path.write_text(json.dumps([list(asdict(step).values()) for step in steps]))


def plan(world: World, rng: random.Random, count: int, label: str) -> list[Step]:
    """That many steps that succeed one after the other, begun at `world`, which stays as it is."""
    planner = _Planner(world.copy(), rng, label)
    return [planner.next() for _ in range(count)]


def _text(path: Path_) -> str:
    return "/".join(os.fsdecode(name) for name in path)


def _parts(path: str) -> Path_:
    return tuple(os.fsencode(name) for name in path.split("/")) if path else ()


class _Planner:
    """Chooses among what exists."""

    def __init__(self, world: World, rng: random.Random, label: str) -> None:
        self._world = world
        self._rng = rng
        self._label = label
        self._snapshots = 0

    def next(self) -> Step:
        step: Step | None = None
        while step is None:
            step = self._choose()
        apply(self._world, step)
        return step

    def _choose(self) -> Step | None:
        rng, world = self._rng, self._world
        if rng.random() < SNAPSHOT_SHARE:
            self._snapshots += 1
            return Step("snapshot", other=f"{self._label} {self._snapshots}")
        verb = rng.choice(VERBS)
        match verb:
            case "create" | "mkdir" | "symlink":
                new = self._new()
                return None if new in world.names else Step(verb, _text(new), "some/where" * (verb == "symlink"))
            case "write":
                return self._write()
            case "truncate":
                path = self._one(world.files())
                return None if path is None else Step(verb, path, length=rng.choice((0, rng.randint(0, 150_000))))
            case "chmod":
                path = self._one([path for path in world.names if not _is(world, path, NodeKind.SYMLINK)])
                return None if path is None else Step(verb, path, seed=rng.randrange(0o1000))
            case "setxattr" | "fsync":
                path = self._one(world.files())
                return (
                    None
                    if path is None
                    else Step(verb, path, length=rng.choice((5, 900)), seed=rng.randrange(1, 1 << 30))
                )
            case "fsyncdir":
                return Step(verb, _text(rng.choice(world.directories())))
            case "link":
                path = self._one([path for path in world.names if not world.is_directory(path)])
                new = self._new()
                return None if path is None or new in world.names else Step(verb, path, _text(new))
            case "unlink":
                path = self._one([path for path in world.names if not world.is_directory(path)])
                return None if path is None else Step(verb, path)
            case "rmdir":
                path = self._one([path for path in world.directories()[1:] if not world.below(path)])
                return None if path is None else Step(verb, path)
            case _:
                return self._rename()

    def _one(self, paths: Sequence[Path_]) -> str | None:
        return _text(self._rng.choice(paths)) if paths else None

    def _new(self) -> Path_:
        parent = self._rng.choice([path for path in self._world.directories() if len(path) < 3])
        return (*parent, os.fsencode(self._rng.choice(NAMES)))

    def _write(self) -> Step | None:
        path = self._one(self._world.files())
        if path is None:
            return None
        rng = self._rng
        end = len(self._world.thing(_parts(path)).data)
        length = rng.choice((rng.randint(1, 300), rng.randint(1, 9_000), rng.randint(50_000, 200_000)))
        offset = rng.choice((0, min(end, 2_000_000), rng.randint(0, min(end, 2_000_000) + 5_000)))
        return Step("write", path, offset=offset, length=length, seed=rng.choice((0, *[rng.randrange(1, 1 << 30)] * 7)))

    def _rename(self) -> Step | None:
        world = self._world
        if not world.names:
            return None
        old, new = self._rng.choice(list(world.names)), self._new()
        if new[: len(old)] == old or old[: len(new)] == new:
            return None
        if new in world.names and (world.below(new) or world.is_directory(old) != world.is_directory(new)):
            return None
        return Step("rename", _text(old), _text(new))


def _is(world: World, path: Path_, kind: NodeKind) -> bool:
    return world.thing(path).kind is kind


def _written(step: Step) -> bytes:
    """The bytes of a write."""
    return random.Random(step.seed).randbytes(step.length) if step.seed else bytes(step.length)


def apply(world: World, step: Step) -> None:
    """What a step does to the tree."""
    here, there = _parts(step.path), _parts(step.other)
    match step.verb:
        case "create":
            world.create(here, Thing(NodeKind.FILE, 0o640))
        case "mkdir":
            world.create(here, Thing(NodeKind.DIRECTORY, 0o750))
        case "symlink":
            world.create(here, Thing(NodeKind.SYMLINK, 0o777, bytearray(step.other.encode())))
        case "write":
            world.write(here, step.offset, _written(step))
        case "truncate":
            world.truncate(here, step.length)
        case "chmod":
            world.thing(here).mode = step.seed
        case "setxattr":
            world.thing(here).xattrs[XATTR.encode()] = random.Random(step.seed).randbytes(step.length)
        case "link":
            world.names[there] = world.names[here]
        case "unlink" | "rmdir":
            world.remove(here)
        case "rename":
            world.rename(here, there, exchange=False)
        case "fsync" | "fsyncdir" | "snapshot":
            return
        case _:
            raise AssertionError(step)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the executor noted: how many steps it began, and how many had returned; `errno` of the call that failed."""

    begun: int
    returned: int
    errno: int | None


def outcome_of(notes: Path) -> Outcome:
    """Read the executor's notes."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    failed = [int(line[1:]) for line in lines if line.startswith("!")]
    begun = sum(line.startswith("+") for line in lines)
    return Outcome(begun, sum(line.startswith(".") for line in lines), failed[0] if failed else None)


def states(world: World, steps: Sequence[Step], outcome: Outcome) -> Iterator[tuple[int, World]]:
    """What a crash may leave: the tree after each number of steps from the last that promised something on, and how
    many that are. After a write's first pages too: the kernel may hand it over in pieces, which end with a page.

    The same tree each time: copy what you keep.
    """
    now = world.copy()
    least = 1 + max((index for index in range(outcome.returned) if steps[index].verb in SYNCING), default=-1)
    if least == 0:
        yield 0, now
    for index in range(outcome.begun):
        step = steps[index]
        if index >= least and step.verb == "write":
            data = _written(step)
            for end in range((step.offset // PAGE_BYTES + 1) * PAGE_BYTES, step.offset + step.length, PAGE_BYTES):
                now.write(_parts(step.path), step.offset, data[: end - step.offset])
                yield index, now
        apply(now, step)
        if index + 1 >= least:
            yield index + 1, now


def nearest(found: Picture, world: World, steps: Sequence[Step], outcome: Outcome) -> str:
    """For a failing test's message: `live` is none of `states`; how it differs from the one that is most like it."""
    stories = [(count, difference(found, state.picture())) for count, state in states(world, steps, outcome)]
    count, story = min(stories, key=lambda one: one[1].count("\n"))
    return f"`live` is none of {len(stories)} states that {outcome} may leave; the nearest, of {count} steps:\n{story}"


def snapshots(world: World, steps: Sequence[Step], outcome: Outcome) -> Iterator[tuple[str, bool, World]]:
    """The snapshots that were asked for: name, whether that returned, and the tree then (one object, as above)."""
    now = world.copy()
    for index in range(outcome.begun):
        apply(now, steps[index])
        if steps[index].verb == "snapshot":
            yield steps[index].other, index < outcome.returned, now


def look(root: Path) -> Picture:
    """Everything below a real directory, as `World.picture` tells it."""
    numbers: dict[int, int] = {}
    found: Picture = {}
    for path, here in sorted(_walk(os.fsencode(root), ())):
        about = os.lstat(here)
        kind, data = _content(here, about)
        directory = kind is NodeKind.DIRECTORY
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if kind is NodeKind.FILE:
            xattrs = tuple((os.fsencode(name), os.getxattr(here, name)) for name in sorted(os.listxattr(here)))
        number = numbers.setdefault(about.st_ino, len(numbers))
        size, links = (0, 1) if directory else (about.st_size, about.st_nlink)
        found[path] = (kind, number, stat.S_IMODE(about.st_mode), size, links, xattrs, data)
    return found


def _walk(folder: bytes, path: Path_) -> Iterator[tuple[Path_, bytes]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield (*path, entry.name), entry.path
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, (*path, entry.name))


def _content(here: bytes, about: os.stat_result) -> tuple[NodeKind, bytes]:
    if stat.S_ISDIR(about.st_mode):
        return NodeKind.DIRECTORY, b""
    if stat.S_ISLNK(about.st_mode):
        return NodeKind.SYMLINK, os.readlink(here)
    with open(here, "rb") as file:
        return NodeKind.FILE, file.read()
