"""The command line of the benchmark."""

import argparse
import compileall
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench import data, report, rounds
from bench.ballast import BallastDirect, BallastMounted
from bench.measure import BenchError
from bench.peers import Borg, Cp, Null, Peer, Restic, Tar

ROOT: Final = Path(__file__).parents[2]
PEERS: Final[dict[str, Callable[[Path], Peer]]] = {
    "cp": Cp,
    "tar-zstd": Tar,
    "null-mount": Null,
    "restic": Restic,
    "borg": Borg,
    "ballast-mount": BallastMounted,
    "ballast": BallastDirect,
}
PROGRAMS: Final = {"restic": "restic", "borg": "borg", "tar-zstd": "zstd"}
SCRATCH_IN_MEMORY: Final = Path("/dev/shm")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run",
        description="Measures Ballast beside cp, tar with zstd, a mount that does nothing, restic and borg, in turns. "
        "As root the reads are cold.",
    )
    parser.add_argument(
        "--tree",
        default="synthetic",
        metavar="PATH|linux[:PART]|synthetic",
        help="what to store: a copy of PATH, Debian's kernel source (installed if missing; PART is a directory "
        "in it, as linux:drivers), or files made from a seed (default)",
    )
    parser.add_argument("--files", type=int, default=data.SYNTHETIC_FILES, help="how many files synthetic has")
    parser.add_argument("--large-bytes", type=int, default=256 << 20, help="size of the large file (256 MiB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME,...",
        help=f"peers ({', '.join(PEERS)}) or steps ({', '.join(rounds.STEPS)}); the first copy is always made",
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="directory for data and repositories")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout instead of a table")
    parser.add_argument(
        "--history",
        type=Path,
        default=ROOT / "scripts" / "bench" / "history.jsonl",
        help="file to which the report is appended; /dev/null for none",
    )
    return parser


def _chosen(only: str) -> tuple[list[str], list[str]]:
    """Names of peers and of steps. Raises BenchError for an unknown name."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in PEERS and name not in rounds.STEPS]
    if unknown:
        raise BenchError(f"neither a peer nor a step: {', '.join(unknown)}")
    peers = [name for name in PEERS if name in names] or list(PEERS)
    steps = [step for step in rounds.STEPS if step in names] or list(rounds.STEPS)
    return peers, steps


def _make_tree(choice: str, files: int, work: Path) -> tuple[str, Path]:
    """Makes the tree that is stored (a copy of its own, since it is changed); its name for the report."""
    target = work / "source" / "tree"
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir(parents=True)
    kind, _, part = choice.partition(":")
    if choice == "synthetic":
        data.make_synthetic_tree(target, files)
        return f"synthetic, seed {data.SEED}", target
    if kind == "linux":
        origin, name = data.unpack_linux(work) / part, choice
    else:
        origin, name = Path(choice), "own tree"
    if not origin.is_dir():
        raise BenchError(f"no directory to store: {choice}")
    subprocess.run(["cp", "-a", str(origin), str(target)], check=True)
    return name, target


def _compile() -> None:
    """An installation has its modules compiled; a checkout that was just changed has not, and each start would pay."""
    for package in ("repository", "fusefs"):
        compileall.compile_dir(ROOT / package, quiet=2)


def _run(arguments: argparse.Namespace) -> report.Report:
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names, steps = _chosen(arguments.only)
    missing = [PROGRAMS[name] for name in names if name in PROGRAMS and shutil.which(PROGRAMS[name]) is None]
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)}; install them, or leave them out with --only")
    label, tree = _make_tree(arguments.tree, arguments.files, work)
    large = work / "source" / "large" / "large.bin"
    data.make_large_file(large, arguments.large_bytes)
    scratch = SCRATCH_IN_MEMORY if SCRATCH_IN_MEMORY.is_dir() else work
    plan = rounds.Plan(
        peers=[PEERS[name](work) for name in names],
        steps=steps,
        rounds=arguments.rounds,
        tree=tree,
        large=large,
        scratch=scratch,
    )
    extent = data.measure_tree(tree)
    _compile()
    results = rounds.run(plan, lambda line: print(line, file=sys.stderr, flush=True))
    shutil.rmtree(tree.parent)
    return report.make(results, report.Data(label, extent, arguments.large_bytes), arguments.rounds, work)


def main(words: Sequence[str] | None = None) -> int:
    """0: done; 1: a peer failed or is missing."""
    arguments = _parser().parse_args(words)
    try:
        document = _run(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, indent=2) if arguments.json else report.table(document))
    report.append_history(document, arguments.history)
    return 0


if __name__ == "__main__":
    sys.exit(main())
