"""What users of restic, of borg and of Ballast see when the disk of their backups is full: scripts/drills/peers.

Each has an equal disk and does the same with the commands that its manual names, and where one fails, with what the
manual has for that case. Prints a table in Markdown; what Ballast answers is asserted, what the others answer is told.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from repository.units import MIB, format_size
from tests.support.fulldisk import stage
from tests.support.fulldisk.disks import Disk, new_disk
from tests.support.fulldisk.fillers import Filler
from tests.support.fulldisk.stage import Stage
from tests.support.fulldisk.user import BALLAST, write_random

DISK_BYTES: Final = 400 * MIB
BACKUP_BYTES: Final = 160 * MIB
SMALL_BYTES: Final = 8 * MIB
RESERVE: Final = "80M"
COMMAND_S: Final = 120.0
CELL_CHARACTERS: Final = 150
NOISE: Final = re.compile(
    r"^(using parent|created new cache|repository \w+ opened|Files:|Dirs:|Added|processed|loading|load |find|searching|"
    r"collecting|\[0:|Save\(|Remote:|Traceback|  |Platform|Linux:|Borg:|PID:|sys\.argv|SSH_|If you|Local Exception|"
    r"Exception ignored|unable to|scan|List\(|counting|building|this removes|to repack|to delete|total prune|remaining|"
    r"unused size|deleting|done|repacking|rebuilding|\(node|Applying|keep|ID |-+$|$)",
    re.IGNORECASE,
)
"""Lines of peers that are about their progress or their machine."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said."""

    code: int
    text: str
    seconds: float
    other: "Answer | None" = None
    """What it said when asked in the way that `how` names, after this one failed."""
    how: str = ""

    def cell(self) -> str:
        """For the table: what went wrong, in its own words, or that it was done."""
        if self.code == 0:
            return "done"
        said = f"exit {self.code}: {self._telling()}"
        if self.other is None:
            return said
        return f"{said}; with `{self.how}`: " + ("done" if self.other.code == 0 else f"exit {self.other.code}")

    def _telling(self) -> str:
        """The line that says why."""
        lines = [line.strip() for line in self.text.splitlines() if not NOISE.match(line)]
        for pattern in (r"no space left|insufficient|no room|too little|missing", r"fatal|error|failed", r"."):
            for line in lines:
                if re.search(pattern, line, re.IGNORECASE):
                    said = (
                        re.sub(r"['\"]?/mnt/[^ '\":;)]*['\"]?", "…", line).replace("|", "/").removeprefix("ballast: ")
                    )
                    first = said.partition(". ")[0]
                    return first if len(first) <= CELL_CHARACTERS else first[: CELL_CHARACTERS - 1] + "…"
        return "(nothing)"


class Tool(ABC):
    """A backup program with a repository on a disk of its own."""

    name: str

    def __init__(self, place: Stage, disk: Disk) -> None:
        self.disk: Final = disk
        self.repository: Final = disk.path / "repository"
        self._place = place

    def run(self, *words: str | Path) -> Answer:
        """A command of the tool, to its end."""
        begun_s = time.monotonic()
        home = {"HOME": str(self._place.home), "XDG_RUNTIME_DIR": str(self._place.runtime), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [str(word) for word in words],
            env={**os.environ, **home, **self.environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=COMMAND_S,
        )
        return Answer(done.returncode, done.stdout, time.monotonic() - begun_s)

    def run_or(self, how: str, *words: str | Path) -> Answer:
        """The same, and where it fails once more with the option `how`."""
        answer = self.run(*words)
        if answer.code == 0:
            return answer
        return replace(answer, other=self.run(*words, how), how=how)

    def environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def make(self) -> Answer: ...

    @abstractmethod
    def backup(self, name: str, source: Path) -> Answer: ...

    @abstractmethod
    def listing(self) -> Answer: ...

    @abstractmethod
    def restore(self, name: str, source: Path, target: Path) -> Answer: ...

    @abstractmethod
    def delete(self, name: str) -> Answer: ...

    @abstractmethod
    def prune(self) -> Answer: ...


class Restic(Tool):
    """restic with its defaults."""

    name = "restic"

    def __init__(self, place: Stage, disk: Disk) -> None:
        super().__init__(place, disk)
        self._ids: Final[dict[str, str]] = {}

    def environment(self) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "drill",
            "RESTIC_CACHE_DIR": str(self._place.work / "restic-cache"),
        }

    def version(self) -> str:
        return " ".join(self.run("restic", "version").text.split()[:2])

    def make(self) -> Answer:
        return self.run("restic", "init")

    def backup(self, name: str, source: Path) -> Answer:
        answer = self.run("restic", "backup", "--tag", name, source)
        saved = re.search(r"snapshot (\w+) saved", answer.text)
        if saved is not None:
            self._ids[name] = saved[1]
        return answer

    def listing(self) -> Answer:
        return self.run_or("--no-lock", "restic", "snapshots")

    def restore(self, name: str, source: Path, target: Path) -> Answer:
        return self.run_or("--no-lock", "restic", "restore", self._ids[name], "--target", target)

    def delete(self, name: str) -> Answer:
        return self.run("restic", "forget", self._ids[name])

    def prune(self) -> Answer:
        return self.run_or("--unsafe-recover-no-free-space", "restic", "prune")


class Borg(Tool):
    """borg without encryption."""

    name = "borg"

    def environment(self) -> dict[str, str]:
        return {
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(self._place.work / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def version(self) -> str:
        return self.run("borg", "--version").text.strip()

    def make(self) -> Answer:
        return self.run("borg", "init", "--encryption", "none")

    def backup(self, name: str, source: Path) -> Answer:
        return self.run("borg", "create", f"::{name}", source)

    def listing(self) -> Answer:
        return self.run_or("--bypass-lock", "borg", "list")

    def restore(self, name: str, source: Path, target: Path) -> Answer:
        target.mkdir()
        command = 'cd "$1" && borg extract $3 "::$2"'
        return self.run_or("--bypass-lock", "sh", "-c", command, "sh", target, name)

    def delete(self, name: str) -> Answer:
        return self.run("borg", "delete", f"::{name}")

    def prune(self) -> Answer:
        return self.run("borg", "compact")


class Ballast(Tool):
    """This one. Collecting follows by itself when the next write finds no room; here it is asked for."""

    name = "ballast"

    def version(self) -> str:
        return self.run(BALLAST, "--version").text.strip()

    def make(self) -> Answer:
        return self.run(BALLAST, "init", self.repository, "--reserve", RESERVE)

    def backup(self, name: str, source: Path) -> Answer:
        return self.run(BALLAST, "snapshot", "create", self.repository, source, "--name", name)

    def listing(self) -> Answer:
        return self.run(BALLAST, "snapshot", "list", self.repository)

    def restore(self, name: str, source: Path, target: Path) -> Answer:
        return self.run(BALLAST, "restore", self.repository, name, target)

    def delete(self, name: str) -> Answer:
        return self.run(BALLAST, "snapshot", "delete", self.repository, name)

    def prune(self) -> Answer:
        return self.run(BALLAST, "gc", self.repository, "--safety", "none")


TOOLS: Final[tuple[type[Tool], ...]] = (Restic, Borg, Ballast)


class Comparison:
    """Plays the same to every tool and gathers the rows."""

    def __init__(self, place: Stage, kind: str) -> None:
        self._place = place
        self._kind = kind
        self.rows: dict[str, list[str]] = {}
        self.wrong: list[str] = []
        self._sources = {
            name: self._source(name, nbytes, number)
            for number, (name, nbytes) in enumerate(
                (("first", BACKUP_BYTES), ("second", 2 * BACKUP_BYTES), ("next", SMALL_BYTES))
            )
        }

    def _source(self, name: str, nbytes: int, seed: int) -> Path:
        folder = self._place.work / name
        folder.mkdir()
        for number in range(8):
            write_random(folder / f"{number}", nbytes // 8, 100 * seed + number)
        return folder

    def play(self, make: type[Tool]) -> str:
        """All steps; returns the tool's version."""
        with new_disk(self._place, self._kind, DISK_BYTES, name=make.name) as disk:
            tool = make(self._place, disk)
            assert tool.make().code == 0, f"{make.name}: no repository could be made"
            first, second, small = self._sources["first"], self._sources["second"], self._sources["next"]
            self._step(tool, "back up 160 MiB", tool.backup("first", first))
            before = disk.available_bytes()
            self._step(tool, "back up 320 MiB more: the disk is too small", tool.backup("second", second), ok=(28,))
            self._told(tool, "what the failed backup keeps", max(0, before - disk.available_bytes()))
            filler = Filler(disk)
            filler.fill()
            self._told(tool, "another program fills the disk: available", disk.available_bytes())
            self._step(tool, "list", tool.listing())
            self._step(
                tool,
                "restore to another disk",
                tool.restore("first", first, self._place.work / f"{make.name}-restored"),
            )
            before = disk.available_bytes()
            self._step(tool, "delete the backup", tool.delete("first"))
            self._step(tool, "prune, compact, gc", tool.prune())
            self._told(tool, "room that came back", back := disk.available_bytes() - before)
            if tool.name == "ballast" and back < BACKUP_BYTES:
                self.wrong.append(f"only {back} bytes came back")
            self._step(tool, "next backup, 8 MiB", tool.backup("next", small))
            self._step(tool, "list once more", tool.listing())
            filler.close()
            return tool.version()

    def _step(self, tool: Tool, step: str, answer: Answer, ok: Sequence[int] = (0,)) -> None:
        self.rows.setdefault(step, []).append(answer.cell())
        print(f"{tool.name}: {step}: exit {answer.code}\n{answer.text}", file=sys.stderr, flush=True)
        if tool.name == "ballast" and answer.code not in ok:
            self.wrong.append(f"{step}: exit {answer.code}: {answer.text}")

    def _told(self, tool: Tool, step: str, nbytes: int) -> None:
        self.rows.setdefault(step, []).append(format_size(nbytes))


def main() -> int:
    """Plays and prints the table."""
    arguments = _arguments()
    comparison = Comparison(stage.set_up(), arguments.fs)
    versions = [comparison.play(tool) for tool in TOOLS]
    print("| on a full disk | " + " | ".join(versions) + " |")
    print("|---|" + "---|" * len(TOOLS))
    for step, cells in comparison.rows.items():
        print(f"| {step} | " + " | ".join(cells) + " |")
    for text in comparison.wrong:
        print(f"FAILED: {text}", file=sys.stderr)
    return 1 if comparison.wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("--fs", choices=("ext4", "ext4-0", "xfs", "btrfs"), default="ext4-0")
    return parser.parse_args()


if __name__ == "__main__":
    if stage.inside():
        sys.exit(stage.as_first_process(main))
    _arguments()
    sys.exit(stage.enter("tests.support.fulldisk.peers", sys.argv[1:]))
