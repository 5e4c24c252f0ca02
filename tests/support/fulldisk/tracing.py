"""What a command of Ballast asks the kernel for, on the repository's disk: by strace."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.fulldisk.user import BALLAST, STAT_BLOCK_BYTES, User

CALLS: Final = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,"
    "fallocate,truncate,ftruncate,copy_file_range,unlink,unlinkat"
)
OPENED: Final = re.compile(r"open\w*\(.*O_CREAT")
PUNCHED: Final = re.compile(r"fallocate\(.*FALLOC_FL_PUNCH_HOLE")
CUT: Final = re.compile(r"truncate\((?:\d+<(?P<path>[^>]*)>), (?P<size>\d+)\)")
NAME: Final = re.compile(r"^(?:\d+ +)?(\w+)\(")
FREED: Final = re.compile(r"^(?:\d+ +)?(?:unlink\w*\(.*\.pack\"|fallocate\(.*FALLOC_FL_PUNCH_HOLE).* = 0$")
FILE: Final = re.compile(r"fallocate\(\d+<(?P<path>[^>]*)>")
UNFINISHED: Final = " <unfinished ...>"
RESUMED: Final = re.compile(r"^\d+ +<\.\.\. \w+ resumed>(?P<rest>.*)$")
RESERVE: Final = "ballast.reserve"


@dataclass(frozen=True, slots=True)
class Allocations:
    """Calls of a command that succeeded and could take a byte, a name or a block of the repository's disk.

    `refilled`: packs that got room again once the command had freed some: the headroom takes back what it lacks, as the
    reserve does.
    """

    calls: list[str]
    refilled: list[str]


def allocations(user: User, words: Sequence[str]) -> Allocations:
    """Runs the command, which has to succeed. Giving the reserve back is meant to allocate, and left out."""
    sizes = {
        str(path.relative_to(user.repository)): path.stat().st_size
        for path in user.repository.rglob("*")
        if path.is_file()
    }
    trace = user.stage.mounts / "allocations.strace"
    done = user.run("strace", "-f", "-y", "-s", "300", "-e", f"trace={CALLS}", "-o", trace, BALLAST, *words)
    said = (done.out + done.err).strip().replace("\n", " | ")
    user.report.holds(
        f"ballast {words[0]} {words[1] if words[0] == 'snapshot' else ''}".strip(), said[:600], done.code == 0
    )
    lines = whole(trace.read_text(errors="replace").splitlines())
    trace.unlink()
    calls: list[str] = []
    refilled: list[str] = []
    freed = False
    for line in lines:
        freed = freed or FREED.search(line) is not None
        if not allocates(line, str(user.repository), sizes):
            continue
        file = FILE.search(line)
        if freed and file is not None:
            refilled.append(file["path"].removeprefix(f"{user.repository}/"))
        else:
            calls.append(line)
    return Allocations(calls, refilled)


def whole(lines: Sequence[str]) -> list[str]:
    """Calls that another thread's came into the middle of, in one line each, where they ended."""
    begun: dict[str, str] = {}
    found: list[str] = []
    for line in lines:
        thread = line.partition(" ")[0]
        if line.endswith(UNFINISHED):
            begun[thread] = line.removesuffix(UNFINISHED)
        elif (resumed := RESUMED.match(line)) is not None:
            found.append(begun.pop(thread, "") + resumed["rest"])
        else:
            found.append(line)
    return found


def allocates(line: str, repository: str, sizes: Mapping[str, int]) -> bool:
    """Whether a call of the trace succeeded and could take a byte, a name or a block of the repository's disk.

    `sizes`: of its files before, by their paths in it; a cut to more than that lengthens.
    """
    name = NAME.match(line)
    if name is None or repository not in line or f"{repository}/{RESERVE}" in line or " = -1 " in line:
        return False
    if name[1].startswith("open"):
        return OPENED.search(line) is not None
    if name[1] == "fallocate":
        return PUNCHED.search(line) is None
    cut = CUT.search(line)
    if cut is not None:
        return int(cut["size"]) > sizes.get(cut["path"].removeprefix(f"{repository}/"), sys.maxsize)
    return not name[1].startswith("unlink")


def names_and_blocks(folder: Path) -> dict[str, int]:
    """Every file and directory below, with the bytes of its blocks."""
    found: dict[str, int] = {}
    for at, directories, files in os.walk(folder):
        for name in (*directories, *files):
            path = os.path.join(at, name)
            found[os.path.relpath(path, folder)] = os.lstat(path).st_blocks * STAT_BLOCK_BYTES
    return found
