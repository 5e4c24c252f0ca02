"""The other backup programs: restic, borg 1.4, borg 2."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import install
from bench.measure import BenchError, Meter, Usage, allocated_bytes
from bench.peers import SYNC, Peer, Reading, below, renew, served


def _said(command: Sequence[str | Path], env: Mapping[str, str]) -> bytes:
    """Runs a command outside the measuring; its standard output. Raises BenchError with what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, env={**os.environ, **env}, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise BenchError(f"{Path(words[0]).name} {words[1]} ended with {done.returncode}: {said}")
    return done.stdout


class _Backup(Peer):
    """What the three share: a repository, an environment, and that a small change is stored like any other."""

    def __init__(self, work: Path, env: Mapping[str, str]) -> None:
        super().__init__(work)
        self._env = env
        self._repository = self.home / "repository"
        self._mountpoint = self.home / "mnt"

    def _do(self, *parts: tuple[str, Sequence[str | Path]], sync: Path, cwd: Path | None = None) -> Usage:
        with Meter() as meter:
            for name, command in parts:
                meter.run(name, command, self._env, cwd)
            meter.run(SYNC, ["sync", "-f", sync])
        return meter.usage()

    def store_small(self, label: str, source: Path, changed: Sequence[Path]) -> Usage | None:
        return self.store(label, source)

    def size_bytes(self) -> int | None:
        return allocated_bytes(self._repository)


class Restic(_Backup):
    """restic with its defaults (encrypted: it has no way without; zstd)."""

    name = "restic"

    def __init__(self, work: Path) -> None:
        home = work / self.name
        super().__init__(
            work,
            {
                "RESTIC_REPOSITORY": str(home / "repository"),
                "RESTIC_CACHE_DIR": str(home / "cache"),
                "RESTIC_PASSWORD": "bench",
            },
        )
        self._program: str | Path = install.program("restic")

    def setup(self) -> None:
        renew(self.home)
        _said([self._program, "init"], self._env)

    def store(self, label: str, source: Path) -> Usage | None:
        command: list[str | Path] = [self._program, "backup", "-q", "--host", "bench", "--tag", label, source]
        return self._do(("backup", command), sync=self.home)

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        at = self._mountpoint
        command: list[str | Path] = [self._program, "mount", at]
        with served(command, at, ["fusermount3", "-u", at], self._env) as (pid, ready_s):
            tags = at / "tags"
            yield Reading(
                below(tags / "first" / "latest", tree), below(tags / "large" / "latest", large), (pid,), ready_s
            )

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        command: list[str | Path] = [self._program, "restore", "-q", "latest", "--tag", label, "--target", target]
        return self._do(("restore", command), sync=target)

    def delete(self, label: str) -> Usage | None:
        found: list[dict[str, str]] = json.loads(
            _said([self._program, "snapshots", "--tag", label, "--json"], self._env)
        )
        command: list[str | Path] = [self._program, "forget", "-q", "--prune", found[0]["short_id"]]
        return self._do(("forget", command), sync=self.home)


class Borg(_Backup):
    """borg 1.4 without encryption, its compression (lz4) as installed."""

    name = "borg"

    def __init__(self, work: Path) -> None:
        home = work / self.name
        super().__init__(
            work,
            {
                "BORG_REPO": str(home / "repository"),
                "BORG_BASE_DIR": str(home / "base"),
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            },
        )
        self._program: str | Path = self._install()

    def _install(self) -> Path:
        return install.borg()

    def setup(self) -> None:
        renew(self.home)
        _said([self._program, "init", "--encryption", "none"], self._env)

    def store(self, label: str, source: Path) -> Usage | None:
        return self._do(("create", [self._program, "create", self._archive(label), source]), sync=self.home)

    def _archive(self, label: str) -> str:
        return f"::{label}"

    @contextmanager
    def reading(self, tree: Path, large: Path) -> Iterator[Reading]:
        at = self._mountpoint
        end: list[str | Path] = [self._program, "umount", at]
        with served(self._mounting(), at, end, self._env) as (pid, ready_s):
            yield Reading(below(at / "first", tree), below(at / "large", large), (pid,), ready_s)

    def _mounting(self) -> list[str | Path]:
        return [self._program, "mount", "--foreground", "::", self._mountpoint]

    def restore(self, label: str, source: Path, target: Path) -> Usage | None:
        command: list[str | Path] = [self._program, "extract", self._archive(label)]
        return self._do(("extract", command), sync=target, cwd=target)

    def delete(self, label: str) -> Usage | None:
        return self._do(
            ("delete", [self._program, "delete", self._archive(label)]),
            ("compact", [self._program, "compact"]),
            sync=self.home,
        )


class Borg2(Borg):
    """borg 2, a beta, likewise without encryption."""

    name = "borg2"
    _NO_ENCRYPTION: Final = "none"

    def _install(self) -> Path:
        return install.borg2()

    def setup(self) -> None:
        renew(self.home)
        _said([self._program, "repo-create", "--encryption", self._NO_ENCRYPTION], self._env)

    def _archive(self, label: str) -> str:
        return label

    def _mounting(self) -> list[str | Path]:
        return [self._program, "mount", "--foreground", self._mountpoint]
