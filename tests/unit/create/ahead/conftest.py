"""A tree of small directories, a crew of two for it, and what it did."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from repository import crew as crews
from repository.create import ahead
from repository.create.source import Directory
from repository.crew import Crew
from tests.support.looking_ahead import FILES, MIDDLES, TOPS
from tests.support.sources import age


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, wherever this runs, for trees of any size, in many small requests."""
    monkeypatch.setattr(crews, "cores", lambda: 2)
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    monkeypatch.setattr(ahead, "FILES_MIN", 1)
    monkeypatch.setattr(ahead, "UNIT_FILES", 2 * FILES)
    monkeypatch.setattr(ahead, "REQUEST_FILES", FILES + 1)


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Crew]]:
    """The crews that looked ahead; at the end all of their processes must be gone."""
    found: list[Crew] = []
    real = crews.hire

    def hire(wanted: int, work: crews.Work) -> Crew | None:
        crew = real(wanted, work)
        if crew is not None:
            found.append(crew)
        return crew

    monkeypatch.setattr(ahead, "hire", hire)
    yield found
    for crew in found:
        for pid in crew.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The directories that this process listed."""
    found: list[bytes] = []
    real = Directory.names

    def names(self: Directory) -> list[bytes]:
        found.append(self.path)
        return real(self)

    monkeypatch.setattr(Directory, "names", names)
    return found


@pytest.fixture
def tree(files: Path) -> Path:
    """Directories of directories, with files of several sorts."""
    for top in range(TOPS):
        for middle in range(MIDDLES):
            directory = files / f"d{top}" / f"e{middle}"
            directory.mkdir(parents=True)
            for one in range(FILES):
                (directory / f"f{one}").write_bytes(b"%d.%d.%d\n" % (top, middle, one) * 30)
        (files / f"d{top}" / "file").write_bytes(b"%d" % top)
    (files / "d0" / "e0" / "f0").unlink()
    (files / "d0" / "e0" / "f0").symlink_to("f1")
    (files / "d0" / "e1" / "f0").unlink()
    os.mkfifo(files / "d0" / "e1" / "f0")
    os.setxattr(files / "d0" / "e2", "user.colour", b"blue")
    age(files)
    return files
