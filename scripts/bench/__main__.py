"""The command line of the benchmark."""

import argparse
import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from bench import comparing, data, deciding, growth, install, report, steps
from bench.backups import Borg, Borg2, Restic
from bench.ballast import BallastDirect, BallastMounted
from bench.floors import Null, Passthrough
from bench.measure import BenchError
from bench.peers import Cp, Peer, Tar
from bench.record import Failure, Recorder
from bench.rounds import FAILURES, Plan, reason_of
from bench.s3ql import S3ql

PEERS: Final[dict[str, Callable[[Path], Peer]]] = {
    "cp": Cp,
    "tar-zstd": Tar,
    "null-mount": Null,
    "c-passthrough": Passthrough,
    "restic": Restic,
    "borg": Borg,
    "borg2": Borg2,
    "s3ql": S3ql,
    "ballast-mount": BallastMounted,
    "ballast": BallastDirect,
}
PARTS_OF: Final = {"borg2": ("large",), "c-passthrough": ("large", "image")}
"""Of whom no goal asks for more; with --all they take part in everything."""
NEEDED_PROGRAMS: Final = {"tar-zstd": ("tar", "zstd"), "c-passthrough": ("prlimit", "fusermount3")}
SCRATCH_IN_MEMORY: Final = Path("/dev/shm")
FULL_GROWTH: Final = 1_000_000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run",
        description="Measures Ballast beside cp, tar with zstd, restic, borg 1.4, borg 2, S3QL, a pyfuse3 mount that "
        "does nothing and libfuse's passthrough, in turns; then how its costs grow; then prints every goal. "
        "Root, so that reads can be cold: before each step called cold, what is written is synced and "
        "/proc/sys/vm/drop_caches gets a 3; mounts are read with a daemon that was just started. "
        "Peak memory is the sum over all processes of a step, with what they share counted once (PSS).",
    )
    parser.add_argument(
        "--tree", default="linux", metavar="PATH|linux[:PART]|synthetic",
        help="what to store: a copy of PATH, Debian's kernel source (installed if missing; PART is a directory "
        "in it, as linux:fs), or files made from a seed (default: linux)",
    )  # fmt: skip
    parser.add_argument("--files", type=int, default=data.SYNTHETIC_FILES, help="how many files synthetic has")
    parser.add_argument("--large-bytes", type=int, default=2_000_000_000, help="size of the large file (2 GB)")
    parser.add_argument("--image-bytes", type=int, default=500_000_000, help="size of the disk image (500 MB)")
    parser.add_argument("--image-writes", type=int, default=2000, help="random writes of 4 KiB into it (2000)")
    parser.add_argument(
        "--growth", type=int, default=FULL_GROWTH, help="files and chunks at 16x, and chunks of the decision (1000000)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="of the parts that compare peers; medians count (1)")
    parser.add_argument(
        "--only", default="", metavar="PART,...", help=f"parts to run, of: {', '.join(steps.PARTS)} (default: all)"
    )
    parser.add_argument("--peers", default="", metavar="NAME,...", help=f"of: {', '.join(PEERS)} (default: all)")
    parser.add_argument(
        "--all", action="store_true",
        help="also what no goal asks for: storing the unchanged and the changed tree again into plain copies, mounts",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=0, help="begin no part after so many; what is left out is said (no limit)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")) / "ballast-bench",
        help="directory for data and repositories, removed at the end (TMPDIR or /var/tmp)",
    )  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="build the tools that are measured, and end")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout instead of tables")
    parser.add_argument(
        "--out", type=Path, default=install.ROOT / ".bench",
        help="directory of samples.jsonl, written while it runs, and report.json (.bench)",
    )  # fmt: skip
    parser.add_argument(
        "--history", type=Path, default=install.ROOT / "scripts" / "bench" / "history.jsonl",
        help="file to which the report is appended; /dev/null for none",
    )  # fmt: skip
    return parser


def _chosen(words: str, known: Sequence[str], what: str) -> list[str]:
    """Names in the order of `known`; all without any. Raises BenchError for an unknown one."""
    names = [name.strip() for name in words.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchError(f"no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in names] or list(known)


class _Run:
    """One run: makes the data of each part when it comes to it, and takes it away again."""

    def __init__(self, arguments: argparse.Namespace, recorder: Recorder) -> None:
        self._arguments = arguments
        self._recorder = recorder
        self.work: Path = arguments.work.resolve()
        self._source = self.work / "source"
        self._parts = _chosen(arguments.only, steps.PARTS, "part")
        self._peers = _chosen(arguments.peers, tuple(PEERS), "peer")
        self._began_s = time.monotonic()
        self.data: dict[str, str | int] = {}
        self._scratch = SCRATCH_IN_MEMORY if SCRATCH_IN_MEMORY.is_dir() else self.work

    def prepare(self) -> list[Peer]:
        """Every peer that can be had; the others are kept as failures."""
        peers: list[Peer] = []
        for name in self._peers:
            try:
                for needed in NEEDED_PROGRAMS.get(name, ()):
                    install.program(needed)
                peers.append(PEERS[name](self.work))
            except FAILURES as error:
                self._recorder.fail(Failure("all", steps.INSTALLED, name, reason_of(error)))
        return peers

    def run(self) -> None:
        """Part after part: one that fails is kept as a failure."""
        peers = self.prepare()
        works: dict[str, Callable[[], None]] = {
            "tree": lambda: self._tree(peers),
            "large": lambda: self._large(peers),
            "image": lambda: self._image(peers),
            "decision": self._decision,
            **{axis: partial(self._growth, axis) for axis in growth.AXES},
        }
        for part in self._parts:
            limit_s = self._arguments.minutes * 60
            if limit_s and time.monotonic() - self._began_s > limit_s:
                self._recorder.fail(Failure(part, "whole part", "all", "not run: out of time (--minutes)"))
                continue
            self._recorder.say(f"part {part}")
            try:
                works[part]()
            except FAILURES as error:
                self._recorder.fail(Failure(part, "whole part", "all", reason_of(error)))
            finally:
                shutil.rmtree(self._source, ignore_errors=True)
                shutil.rmtree(self.work / "restored", ignore_errors=True)

    def _plan(self, part: str, peers: Sequence[Peer]) -> Plan:
        whole = self._arguments.all
        return Plan(
            part=part,
            peers=[peer for peer in peers if whole or part in PARTS_OF.get(peer.name, steps.PARTS)],
            rounds=self._arguments.rounds,
            recorder=self._recorder,
            work=self.work,
            scratch=self._scratch,
            quick=not whole,
        )

    def _tree(self, peers: Sequence[Peer]) -> None:
        tree = self._source / "tree"
        self._source.mkdir(parents=True)
        choice: str = self._arguments.tree
        kind, _, part = choice.partition(":")
        self.data["tree"] = choice if kind in {"linux", "synthetic"} else "own tree"
        if kind == "synthetic":
            data.make_synthetic_tree(tree, self._arguments.files)
        else:
            origin = data.unpack_linux(self.work) / part if kind == "linux" else Path(choice)
            if not origin.is_dir():
                raise BenchError(f"no directory to store: {choice}")
            subprocess.run(["cp", "-a", str(origin), str(tree)], check=True)
        extent = data.measure_tree(tree)
        self.data |= {"files": extent.files, "content_bytes": extent.content_bytes}
        comparing.tree_part(self._plan("tree", peers), tree, extent)

    def _large(self, peers: Sequence[Peer]) -> None:
        large = self._source / "large" / "large.bin"
        data.make_large_file(large, self._arguments.large_bytes)
        self.data["large_bytes"] = self._arguments.large_bytes
        comparing.large_part(self._plan("large", peers), large)

    def _image(self, peers: Sequence[Peer]) -> None:
        image = self._source / "image" / "disk.img"
        data.make_image(image, self._arguments.image_bytes)
        self.data |= {"image_bytes": self._arguments.image_bytes, "image_writes": self._arguments.image_writes}
        comparing.image_part(self._plan("image", peers), image, self._arguments.image_writes)

    def _growth(self, axis: str) -> None:
        self.data["growth"] = self._arguments.growth
        in_memory = self._scratch / f"ballast-bench-{os.getpid()}"
        in_memory.mkdir()
        try:
            growth.AXES[axis](growth.Ground(self.work, in_memory, self._arguments.growth, self._recorder))
        finally:
            shutil.rmtree(in_memory)

    def _decision(self) -> None:
        full = self._arguments.growth >= FULL_GROWTH
        deciding.decision_part(self._recorder, self._arguments.growth, 500 if full else 50)


def _interrupted(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _finish(run: _Run, recorder: Recorder, arguments: argparse.Namespace, *, finished: bool) -> None:
    document = report.make(recorder, run.data, arguments.rounds, run.work, finished=finished)
    text = json.dumps(document, indent=2)
    (arguments.out / "report.json").write_text(text + "\n")
    print(text if arguments.json else report.table(document), flush=True)
    if recorder.samples:
        report.append_history(document, arguments.history)


def main(words: Sequence[str] | None = None) -> int:
    """0: done, though peers may have failed, as the report says; 1: nothing could be begun; 130: interrupted."""
    arguments = _parser().parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log: Path = arguments.out / "samples.jsonl"
    log.write_text("")
    recorder = Recorder(log, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        run = _Run(arguments, recorder)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.prepare:
        run.prepare()
        return 0
    signal.signal(signal.SIGTERM, _interrupted)
    if run.work.exists() and any(run.work.iterdir()):
        print(f"bench: {run.work} is not empty; remove it, or name another --work", file=sys.stderr)
        return 1
    run.work.mkdir(parents=True, exist_ok=True)
    # An installation has its modules compiled; a checkout that was just changed has not, and each start would pay.
    for package in ("repository", "fusefs"):
        compileall.compile_dir(install.ROOT / package, quiet=2)
    finished = False
    try:
        run.run()
        finished = True
    except KeyboardInterrupt:
        print("bench: interrupted; what was measured follows", file=sys.stderr)
    finally:
        _finish(run, recorder, arguments, finished=finished)
        shutil.rmtree(run.work, ignore_errors=True)
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
