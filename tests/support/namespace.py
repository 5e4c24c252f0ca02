"""The same random operations on names in two directories, one of them on a local disk: they must agree.

What differs is an answer (which errno, or none) or the picture of the tree afterwards.
"""

import ctypes
import errno
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

NAMES: Final = ("a", "b", "c", "d", "name of some length", "\N{GREEK SMALL LETTER OMEGA}", ".hidden")
DEPTH_MAX: Final = 4
_libc: Final = ctypes.CDLL(None, use_errno=True)

Step = Callable[[Path], object]
"""An operation below the root that it is given."""


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Twins:
    """Two roots to which the same happens."""

    def __init__(self, tested: Path, local: Path, seed: int) -> None:
        self.tested = tested
        self.local = local
        self.dice = random.Random(seed)
        self.done: list[str] = []
        self._open: list[tuple[int, int]] = []
        """Files held open in both roots."""

    def close(self) -> None:
        """Lets go of what is held open; where the mount died, closing says so and closes all the same."""
        for pair in self._open:
            for file in pair:
                with suppress(OSError):
                    os.close(file)
        self._open = []

    def step(self) -> None:
        """One operation, in both."""
        words, step = self._chosen()
        self.done.append(words)
        answers = [_answer(step, root) for root in (self.tested, self.local)]
        assert answers[0] == answers[1], f"{words}: {answers[0]}, on a local disk {answers[1]}; after {self.done[-30:]}"

    def compare(self) -> None:
        """Everything that can be seen, but times."""
        tested, local = picture(self.tested), picture(self.local)
        differing = {name for name in tested.keys() | local.keys() if tested.get(name) != local.get(name)}
        assert not differing, [(name, tested.get(name), local.get(name)) for name in sorted(differing)][:5]
        for one, other in self._open:
            assert os.fstat(one).st_nlink == os.fstat(other).st_nlink
            assert os.pread(one, 100_000, 0) == os.pread(other, 100_000, 0)

    # --- choosing -----------------------------------------------------------------------------------------------

    def _path(self) -> str:
        """Mostly something that exists, or a new name beside it."""
        path = Path()
        for _ in range(self.dice.randrange(1, DEPTH_MAX + 1)):
            path /= self.dice.choice(NAMES)
            if not (self.local / path).is_dir():
                break
        return str(path)

    def _chosen(self) -> tuple[str, Step]:
        kind = self.dice.choice(list(_KINDS))
        words, step = _KINDS[kind](self)
        return f"{kind} {words}", step

    def create(self) -> tuple[str, Step]:
        path, data = self._path(), self.dice.randbytes(self.dice.randrange(20_000))

        def step(root: Path) -> None:
            file = os.open(root / path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
            os.write(file, data)
            os.close(file)

        return path, step

    def write(self) -> tuple[str, Step]:
        path, offset = self._path(), self.dice.randrange(30_000)
        data = self.dice.randbytes(self.dice.randrange(1, 9000))

        def step(root: Path) -> None:
            file = os.open(root / path, os.O_WRONLY | os.O_NONBLOCK)  # a FIFO without a reader is ENXIO, no wait
            os.pwrite(file, data, offset)
            os.close(file)

        return f"{path} at {offset}", step

    def hold(self) -> tuple[str, Step]:
        """Opens a file in both and keeps it open; in the next look it is closed again."""
        path = self._path()
        files: list[int] = []

        def step(root: Path) -> None:
            if not stat.S_ISREG(os.stat(root / path).st_mode):
                return
            files.append(os.open(root / path, os.O_RDWR))
            if len(files) == 2:
                self._open.append((files[0], files[1]))

        return path, step

    def into_held(self) -> tuple[str, Step]:
        if not self._open:
            return "nothing", lambda _: None
        pair = self.dice.choice(self._open)
        data, offset = self.dice.randbytes(3000), self.dice.randrange(9000)
        return f"{offset}", lambda root: os.pwrite(pair[root == self.local], data, offset)

    def drop_held(self) -> tuple[str, Step]:
        if not self._open or self.dice.random() < 0.5:
            return "nothing", lambda _: None
        pair = self._open.pop(self.dice.randrange(len(self._open)))
        return "", lambda root: os.close(pair[root == self.local])

    def mkdir(self) -> tuple[str, Step]:
        path, mode = self._path(), self.dice.choice((0o755, 0o700, 0o2775))
        return path, lambda root: os.mkdir(root / path, mode)

    def rmdir(self) -> tuple[str, Step]:
        path = self._path()
        return path, lambda root: os.rmdir(root / path)

    def unlink(self) -> tuple[str, Step]:
        path = self._path()
        return path, lambda root: os.unlink(root / path)

    def rename(self) -> tuple[str, Step]:
        old, new, flags = self._path(), self._path(), self.dice.choice((0, 0, 0, 1, 2))
        return f"{old} to {new} with {flags}", lambda root: renameat2(root / old, root / new, flags)

    def link(self) -> tuple[str, Step]:
        old, new = self._path(), self._path()
        return f"{old} as {new}", lambda root: os.link(root / old, root / new, follow_symlinks=False)

    def symlink(self) -> tuple[str, Step]:
        target, path = self._path(), self._path()
        return path, lambda root: os.symlink(target, root / path)

    def chmod(self) -> tuple[str, Step]:
        path, mode = self._path(), self.dice.randrange(0o1000)
        return path, lambda root: os.chmod(root / path, mode)

    def chown(self) -> tuple[str, Step]:
        path, owner = self._path(), self.dice.randrange(1000)
        return path, lambda root: os.chown(root / path, owner, owner, follow_symlinks=False)

    def truncate(self) -> tuple[str, Step]:
        path, size = self._path(), self.dice.randrange(40_000)
        return f"{path} {size}", lambda root: os.truncate(root / path, size)

    def setxattr(self) -> tuple[str, Step]:
        path, name = self._path(), self.dice.choice(("user.a", "user.b"))
        value = self.dice.randbytes(self.dice.randrange(500))
        return f"{path} {name}", lambda root: os.setxattr(root / path, name, value)

    def removexattr(self) -> tuple[str, Step]:
        path, name = self._path(), self.dice.choice(("user.a", "user.b"))
        return f"{path} {name}", lambda root: os.removexattr(root / path, name)

    def mkfifo(self) -> tuple[str, Step]:
        path = self._path()
        return path, lambda root: os.mkfifo(root / path)

    def listdir(self) -> tuple[str, Step]:
        path = self._path()
        return path, lambda root: sorted(os.listdir(root / path))


_KINDS: Final[dict[str, Callable[[Twins], tuple[str, Step]]]] = {
    f"{kind.__name__}{'' if weight == 0 else weight}": kind
    for kind, weights in (
        (Twins.create, 4),
        (Twins.write, 2),
        (Twins.hold, 1),
        (Twins.into_held, 1),
        (Twins.drop_held, 1),
        (Twins.mkdir, 3),
        (Twins.rmdir, 1),
        (Twins.unlink, 2),
        (Twins.rename, 5),
        (Twins.link, 3),
        (Twins.symlink, 1),
        (Twins.chmod, 1),
        (Twins.chown, 1),
        (Twins.truncate, 1),
        (Twins.setxattr, 1),
        (Twins.removexattr, 1),
        (Twins.mkfifo, 1),
        (Twins.listdir, 1),
    )
    for weight in range(weights)
}


def _answer(step: Step, root: Path) -> object:
    """What came of it: the answer, or the errno."""
    try:
        answer = step(root)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return answer


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything under `root` but times and inode numbers; hard links show by the first name of their inode."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = str(path.relative_to(root))
        look = path.lstat()
        directory = stat.S_ISDIR(look.st_mode)
        content: object = None
        if stat.S_ISREG(look.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(look.st_mode):
            content = os.readlink(path)
        xattrs = [
            (key, os.getxattr(path, key, follow_symlinks=False))
            for key in sorted(os.listxattr(path, follow_symlinks=False))
        ]
        size = 0 if directory else look.st_size
        links = 0 if directory else look.st_nlink
        same = first.setdefault(look.st_ino, name)
        found[name] = (look.st_mode, look.st_uid, look.st_gid, links, size, content, xattrs, same)
    return found
