"""What starting a command may bring in: most of the time of a short command is its imports."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.cli.main import main
from repository.catalog import Catalog
from repository.repo import Repository
from repository.storage.volume import Volume

HEAVY = ("importlib.metadata", "logging.handlers", "numpy.ma", "secrets", "pyfuse3", "trio", "asyncio", "email")
NOT_TO_COLLECT = ("repository.check.report", "pyfastcdc", "shutil", "lzma")
"""What a deletion and a collection have no use for: nothing is cut into chunks, no terminal is drawn on, and the volume
itself says how large it is."""


def _modules(*words: str) -> set[str]:
    program = "import sys; from fusefs.cli.main import main; main(); print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True, text=True)
    return set(done.stdout.split("\n"))


@pytest.mark.parametrize("words", [("status",), ("snapshot", "list")])
def test_short_commands_leave_heavy_modules_out(tmp_path: Path, words: tuple[str, ...]) -> None:
    Repository.init(tmp_path / "r", reserve_bytes=0, headspace_bytes=0)
    found = _modules(*words, str(tmp_path / "r"))
    assert "numpy" in found and found.isdisjoint(HEAVY)


def test_storing_leaves_them_out_too(tmp_path: Path) -> None:
    Repository.init(tmp_path / "r", reserve_bytes=0, headspace_bytes=0)
    (tmp_path / "file").write_bytes(b"content")
    found = _modules("snapshot", "create", str(tmp_path / "r"), str(tmp_path / "file"))
    assert found.isdisjoint(HEAVY)


def test_deleting_and_collecting_leave_them_out_too(tmp_path: Path) -> None:
    """With something to free: what a plan counts with must not load them either."""
    where = str(tmp_path / "r")
    Repository.init(tmp_path / "r", reserve_bytes=0, headspace_bytes=0)
    for name in ("a", "b"):
        (tmp_path / "file").write_bytes(name.encode() * 100_000 + random.Random(name).randbytes(100_000))
        _modules("snapshot", "create", where, str(tmp_path / "file"), "--name", name)
    found = _modules("snapshot", "delete", where, "a") | _modules("gc", where, "--safety", "none")
    assert found.isdisjoint((*HEAVY, *NOT_TO_COLLECT))
    assert any("freed" in line and "freed 0 B" not in line for line in found), found


def test_a_deletion_opens_its_repository_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening reads the catalog, the events, each pack's place: what is said beforehand needs no second one."""
    where = str(tmp_path / "r")
    Repository.init(tmp_path / "r", reserve_bytes=0, headspace_bytes=0)
    for name in ("a", "b"):
        (tmp_path / "file").write_bytes(name.encode() * 100_000)
        _modules("snapshot", "create", where, str(tmp_path / "file"), "--name", name)
    opened: list[bool] = []
    real = Catalog.open

    def counted(volume: Volume, seed: int, *, writable: bool, salvage: bool = False) -> Catalog:
        opened.append(writable)
        return real(volume, seed, writable=writable, salvage=salvage)

    monkeypatch.setattr(Catalog, "open", counted)
    assert main(["snapshot", "delete", where, "a", "b"]) == 0
    assert opened == [True]
