"""Who is there to be measured, and the tools that are made on the spot: libfuse's passthrough, borg 1.4 and borg 2.

Owner of: what cannot be had has a reason that the report shows. Nothing is installed outside `TOOLS`, which is kept
between runs; packages of the system that are missing are named.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.measure import BenchError

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ROOT / ".bench" / "tools"
PASSTHROUGH_SOURCE: Final = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
BUILD_DEADLINE_S: Final = 900.0
BORG: Final = "borgbackup[pyfuse3]==1.4.*"
BORG2: Final = "borgbackup[pyfuse3]==2.0.0b19"
"""The last beta that is satisfied with Debian 12's OpenSSL."""
BORG_NEEDS: Final = "libacl1-dev, liblz4-dev, libxxhash-dev, libzstd-dev and libssl-dev"


def program(name: str) -> str:
    """The path of a program of the system. Raises BenchError where it is missing."""
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"not installed: {name}")
    return found


def passthrough() -> Path:
    """libfuse's passthrough_ll, compiled from the example that libfuse3-dev ships, as it is."""
    made = TOOLS / "passthrough_ll"
    if made.exists():
        return made
    with_source = _passthrough_source()
    TOOLS.mkdir(parents=True, exist_ok=True)
    flags = _run([program("pkg-config"), "--cflags", "--libs", "fuse3"]).split()
    _run([program("gcc"), "-O2", "-o", str(made), str(with_source), *flags])
    return made


def _passthrough_source() -> Path:
    if PASSTHROUGH_SOURCE.exists():
        return PASSTHROUGH_SOURCE
    # A small image may leave out documents: the package has them all the same.
    unpacked = TOOLS / "libfuse3-dev"
    found = unpacked / PASSTHROUGH_SOURCE.relative_to("/")
    if not found.exists():
        unpacked.mkdir(parents=True, exist_ok=True)
        _run([program("apt-get"), "download", "libfuse3-dev"], unpacked)
        for package in unpacked.glob("*.deb"):
            _run([program("dpkg"), "-x", str(package), str(unpacked)])
    return found


def borg() -> Path:
    """borg 1.4 as its authors publish it, in an environment of its own; the system's borg where it cannot be built."""
    try:
        return _environment("borg-1.4", BORG)
    except BenchError as error:
        found = shutil.which("borg")
        if found is None:
            raise
        print(f"bench: the system's borg, since 1.4 could not be built (wants {BORG_NEEDS}): {error}", file=sys.stderr)
        return Path(found)


def borg2() -> Path:
    """borg 2 (a beta) likewise. Raises BenchError where it cannot be built."""
    return _environment("borg-2", BORG2)


def _environment(name: str, requirement: str) -> Path:
    home = TOOLS / name
    command = home / "bin" / "borg"
    if not command.exists():
        refused = home.with_name(f"{name}.refused")
        if refused.exists():
            raise BenchError(f"not installed: {refused.read_text()} (remove {refused.name} to try again)")
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)])
        try:
            _run([str(home / "bin" / "pip"), "install", "--quiet", requirement])
        except BenchError as error:
            refused.write_text(f"{requirement}: {error}"[:300])
            raise BenchError(f"not installed: {requirement} could not be built: {error}") from None
    return command


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", cwd=cwd, timeout=BUILD_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{Path(command[0]).name} took longer than {BUILD_DEADLINE_S:.0f} s") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if "Exception:" in line or "rror:" in line]
        raise BenchError(f"{Path(command[0]).name} failed: {lines[-1] if lines else done.stderr[-200:].strip()}")
    return done.stdout
