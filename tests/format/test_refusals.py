"""What is no repository, or one of a later format, is refused in one sentence that says why; nothing is touched."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.format.conftest import Members, Run
from tests.format.golden import lay_out

Fill = Callable[[Path, Members], None]

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_NO_REPOSITORY: Final = 10
NOBODY: Final = 65_534
COMMANDS: Final = (
    "status REPO", "snapshot list REPO", "check REPO", "gc REPO", "rebuild REPO", "snapshot delete REPO any",
    "snapshot undelete REPO any", "snapshot rename REPO any other", "snapshot pin REPO any", "snapshot create REPO .",
    "snapshot diff REPO any other", "restore REPO any NOWHERE", "mount REPO NOWHERE", "reserve status REPO",
    "reserve release REPO", "reserve restore REPO",
)  # fmt: skip


def missing(path: Path, members: Members) -> None:
    pass


def empty(path: Path, members: Members) -> None:
    path.mkdir()


def a_file(path: Path, members: Members) -> None:
    path.write_bytes(b"not a directory")


def foreign(path: Path, members: Members) -> None:
    """A repository of another program: names of ours among its own."""
    for name in ("packs", "index", "data"):
        (path / name).mkdir(parents=True)
    for name in ("config", "lock", "catalog"):
        (path / name).write_bytes(b"something else")


def another_json(path: Path, members: Members) -> None:
    path.mkdir()
    (path / "repository.json").write_text('{"name": "left-pad", "version": "1.0.0"}')


def no_json(path: Path, members: Members) -> None:
    path.mkdir()
    (path / "repository.json").write_bytes(b"\xff\0\x01")


def _changed(path: Path, members: Members, key: str, value: object) -> None:
    lay_out(members, path, as_it_was=True)
    config = path / "repository.json"
    document = json.loads(config.read_bytes())
    document[key] = value
    config.write_text(json.dumps(document))


def newer(path: Path, members: Members) -> None:
    _changed(path, members, "format_version", 2)


def feature(path: Path, members: Members) -> None:
    _changed(path, members, "features", ["encryption"])


def other_key(path: Path, members: Members) -> None:
    _changed(path, members, "id_key", "00" * 32)


CASES: Final = (
    (missing, "There is no repository in "),
    (empty, "There is no repository in "),
    (a_file, "There is no repository in "),
    (foreign, "There is no repository in "),
    (another_json, "repository.json is damaged"),
    (no_json, "repository.json is damaged"),
    (newer, "This repository has format 2; this version of ballast reads format 1."),
    (feature, "This repository has format 1 with encryption; this version of ballast reads format 1."),
    (other_key, "repository.json is damaged (its checksum does not hold)"),
)


def _names(path: Path) -> list[tuple[str, int]]:
    return [(str(one), one.lstat().st_mtime_ns) for one in sorted(path.rglob("*"))]


@pytest.mark.parametrize(("fill", "sentence"), CASES, ids=[fill.__name__ for fill, _ in CASES])
def test_every_command_refuses(run: Run, members: Members, tmp_path: Path, fill: Fill, sentence: str) -> None:
    repo = tmp_path / "repository"
    fill(repo, members)
    before = _names(tmp_path)
    places = {"REPO": repo, "NOWHERE": tmp_path / "nowhere", ".": tmp_path}
    for command in COMMANDS:
        code, out, err = run(*(places.get(word, word) for word in command.split()))
        assert (code, out, "Traceback" in err) == (EXIT_NO_REPOSITORY, "", False), (command, err)
        assert err.startswith(f"ballast: {sentence}"), (command, err)
        assert err.endswith("\n") and err.count("\n") == 1, (command, err)
    assert _names(tmp_path) == before


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty one that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="ballast-refusals-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, which no mode of a file would stop."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", ["", "repository.json", "catalog", "packs/00"])
def test_somebody_elses_repository(run: Run, members: Members, open_folder: Path, closed: str) -> None:
    """Closed as a whole, as it is made; or opened but for one part."""
    repo = open_folder / "repository"
    lay_out(members, repo, as_it_was=True)
    if closed:
        for path in (repo, *repo.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    commands = "status REPO", "snapshot list REPO", "check REPO", "gc REPO", "mount REPO NOWHERE"
    places = {"REPO": repo, "NOWHERE": open_folder / "nowhere"}
    assert run("snapshot", "list", repo)[0] == EXIT_DONE
    (repo / closed).chmod(0)
    for command in commands:
        with as_nobody():
            code, out, err = run(*(places.get(word, word) for word in command.split()))
        assert (code, out) == (EXIT_FAILED, ""), (command, err)
        assert err.startswith("ballast: ") and err.count("\n") == 1, (command, err)
        assert str(repo) in err and "ermission denied" in err, (command, err)
