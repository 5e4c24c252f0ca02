"""Where drills play: mount and process namespaces of their own, so that nothing is left over however they end.

The process that the user started makes a work directory and starts `unshare`. In there, process 1 starts the drills
and buries orphans; when it ends, the kernel kills whatever the drills left running and takes their mounts away; loop
devices detach by themselves with their last mount. Only the work directory remains, and the first process removes it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]
WORK: Final = "BALLAST_DRILL_WORK"
"""Environment variable, set in the namespaces: the work directory, outside."""
STAGES: Final = ("/mnt", "/media", "/srv", "/opt")
"""Directories that every Linux has and that can be covered in a mount namespace of one's own."""
FULL_BYTES: Final = 64 * 1024
SMALL_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stage:
    """Directories of one run: `work` for images and sources, `mounts` for mountpoints, `home` for $HOME."""

    work: Path
    mounts: Path
    home: Path
    runtime: Path


def enter(module: str, arguments: Sequence[str]) -> int:
    """Runs `module` again in namespaces of its own; returns its exit code."""
    # What ends this process by default must not leave the work directory behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = tempfile.mkdtemp(prefix="ballast-drill-")
    os.chmod(work, 0o755)
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command += [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, WORK: work})
    try:
        return process.wait()
    except KeyboardInterrupt:
        return _ended(process, 130)
    except SystemExit:
        return _ended(process, 143)
    finally:
        shutil.rmtree(work)


def _ended(process: "subprocess.Popen[bytes]", code: int) -> int:
    """The drill has had the signal too, or gets it now, and cleans up; whatever is left goes with its namespace."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return code


def inside() -> bool:
    """Whether this process runs in the namespaces that `enter` made."""
    return WORK in os.environ and os.getpid() == 1


def as_first_process(main: Callable[[], int]) -> int:
    """Runs `main` in a child and waits for every child there is, as the first process of a system must."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            code = main()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal gives it to the child too
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def set_up() -> Stage:
    """The directories, in a mount namespace of one's own."""
    outside = Path(os.environ[WORK])
    needed = (outside, ROOT, Path(sys.prefix), Path(sys.executable))
    place = next(Path(one) for one in STAGES if Path(one).is_dir() and not _holds(Path(one), needed))
    _mount("-t", "tmpfs", "-o", f"size={SMALL_BYTES},mode=755", "drill", place)
    stage = Stage(place / "work", place / "mounts", place / "home", place / "run")
    for directory in (stage.work, stage.mounts, stage.home, stage.runtime):
        directory.mkdir()
    stage.runtime.chmod(0o700)
    _mount("--bind", outside, stage.work)
    return stage


def _holds(place: Path, needed: Sequence[Path]) -> bool:
    """Whether something of what is needed lies in `place`."""
    return any(one.resolve().is_relative_to(place) for one in needed)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


@contextmanager
def full_places(stage: Stage) -> Iterator[dict[str, str]]:
    """/tmp, /var/tmp and $HOME without a free byte or inode; the environment that says so.

    Whichever of them holds the checkout stays as it is: $TMPDIR is one that does not.
    """
    covered: list[Path] = []
    home = stage.mounts / "full-home"
    home.mkdir(exist_ok=True)
    try:
        for place in (Path("/tmp"), Path("/var/tmp"), home):
            if place.is_dir() and not _holds(place, (ROOT, Path(sys.prefix), Path(sys.executable))):
                _mount("-t", "tmpfs", "-o", f"size={FULL_BYTES},nr_inodes=8", "full", place)
                covered.append(place)
                _fill_small(place)
        yield {"HOME": str(home), "XDG_STATE_HOME": "", "TMPDIR": str(covered[0])}
    finally:
        for place in reversed(covered):
            subprocess.run(["umount", "-l", str(place)], check=True)


def _fill_small(place: Path) -> None:
    """Every byte, then every inode."""
    with (place / "full").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    try:
        for number in range(100):
            (place / f"full-{number}").touch()
    except OSError:
        return
    raise AssertionError(f"{place} does not get full")


def remove(path: Path) -> None:
    """A file, or a directory with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
