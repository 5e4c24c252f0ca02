"""The design documents name files: each is there, and no module of the mount is left out."""

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = (
    "README.md",
    "repository/DESIGN.md",
    "repository/FORMAT.md",
    "fusefs/DESIGN.md",
    "fusefs/RECOVERY.md",
)
PACKAGES: Final = ("repository", "fusefs", "tests", "scripts")
_NAMED: Final = re.compile(r"`([\w/]+\.py)`")
_PLACES: Final = re.compile(r"`((?:tests|scripts|repository|fusefs|policy|storage|format|trees|live)/[\w/.*-]*)")


def modules() -> list[str]:
    """Paths of all modules, from the root."""
    return [str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    known = [f"/{module}" for module in modules()]
    missing = [name for name in _NAMED.findall(text) if not any(module.endswith(f"/{name}") for module in known)]
    assert missing == []
    bases = (ROOT, ROOT / "repository")
    named = [place.rstrip("/.") for place in _PLACES.findall(text)]
    places = [place for place in named if Path(place).suffix in ("", ".py", ".md")]  # others may be made by a run
    assert [place for place in places if not any(any(base.glob(place)) for base in bases)] == []


def test_every_module_of_the_mount_has_its_line() -> None:
    text = (ROOT / "fusefs" / "DESIGN.md").read_text()
    ours = {module.removeprefix("fusefs/") for module in modules() if re.fullmatch(r"fusefs/\w+\.py", module)}
    assert sorted(ours - {"__init__.py"} - set(_NAMED.findall(text))) == []
