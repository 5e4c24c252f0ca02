"""The drills on full disks, as a script; scripts/drills/full-disk is its door."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from tests.support.fulldisk import nowayout, stage, storm, story, thief, thinning, transparent, zerobytes
from tests.support.fulldisk.disks import KINDS, PACKAGES, missing_tools
from tests.support.fulldisk.figures import DrillError, Report
from tests.support.fulldisk.play import Play

DRILLS: Final[dict[str, Callable[[Play], None]]] = {
    "story": story.play,
    "transparent": transparent.play,
    "transparent-2tb": transparent.play_large,
    "thinning": thinning.play,
    "no-way-out": nowayout.play,
    "zero-bytes": zerobytes.play,
    "thief": thief.play,
    "storm": storm.play,
}
ON_LARGE_DISKS: Final = ("transparent-2tb",)
"""On sparse images of 2 TB; not in the short version, and not where a file system writes all of its disk."""
LOG_LINES: Final = 30
"""Of the mount's log, told where a drill fails."""
LARGE_KINDS: Final = ("ext4", "ext4-0", "xfs", "btrfs")


def main() -> int:
    arguments = _arguments()
    place = stage.set_up()
    failed: list[str] = []
    played = 0
    for kind in arguments.fs:
        for name in arguments.only:
            if name in ON_LARGE_DISKS and kind not in LARGE_KINDS:
                continue
            if not _play(name, Play(place, kind, Report(), arguments.short, arguments.seed)):
                failed.append(f"{name} on {kind}")
                if not arguments.keep_going:
                    break
            played += 1
    print(f"{played} drills; " + (f"FAILED: {', '.join(failed)}" if failed else "every figure is as promised"))
    return 1 if failed or not played else 0


def _play(name: str, play: Play) -> bool:
    print(f"=== {name} on {play.kind}, {'short' if play.short else 'full'}, seed {play.seed}", flush=True)
    try:
        DRILLS[name](play)
    except DrillError as error:
        _print_log(play.stage)
        print(f"FAILED: {name} on {play.kind}: {error}", flush=True)
        return False
    except Exception as error:
        traceback.print_exception(error, file=sys.stdout)
        _print_log(play.stage)
        print(f"FAILED: {name} on {play.kind}: {error!r}", flush=True)
        return False
    finally:
        for left in play.stage.work.iterdir():
            stage.remove(left)
        for left in play.stage.home.iterdir():
            stage.remove(left)
    print(f"=== {name} on {play.kind}: {play.report.figures} figures, all as promised", flush=True)
    return True


def _print_log(place: stage.Stage) -> None:
    """The end of what the mount logged."""
    for path in sorted((place.home / "state").rglob("*.log")):
        for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
            print(f"    {path.name}: {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="full-disk", description="Plays what a full disk does, and asserts every figure."
    )
    parser.add_argument("--fs", type=_several(KINDS), default=list(KINDS), help=f"of {', '.join(KINDS)} (all)")
    parser.add_argument("--only", type=_several(tuple(DRILLS)), help=f"of {', '.join(DRILLS)} (all)")
    parser.add_argument("--short", action="store_true", help="small disks, a few seconds each")
    parser.add_argument("--keep-going", action="store_true", help="play the rest when one fails")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000, help="of everything that is random")
    found = parser.parse_args()
    if found.only is None:
        found.only = [name for name in DRILLS if not (found.short and name in ON_LARGE_DISKS)]
    for kind in found.fs:
        missing = missing_tools(kind)
        if missing:
            parser.error(f"{kind} needs {', '.join(missing)} (packages {PACKAGES.get(kind, 'e2fsprogs')})")
    return found


def _several(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = text.split(",")
        wrong = [word for word in words if word not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(allowed)}")
        return words

    return parse


if __name__ == "__main__":
    if stage.inside():
        sys.exit(stage.as_first_process(main))
    _arguments()
    sys.exit(stage.enter("tests.support.fulldisk", sys.argv[1:]))
