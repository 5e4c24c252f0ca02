"""Rules of this code that the linters cannot say: who imports whom where a list of names would grow old."""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("repository", "fusefs")
PURE: Final = ("repository.format", "repository.policy")
GROUND: Final = ("repository.ids", "repository.units", "repository.errors", "repository.ports")
LINES_MAX: Final = 650
"""Beyond this a module has more than one subject. Comfortable is 200 to 350."""


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _imports(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports: relative imports are banned by ruff."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def _imported() -> dict[str, frozenset[str]]:
    """What each module imports. Parsed when it is asked for: every worker imports this file, one runs it."""
    return {name: frozenset(_imports(path)) for name, path in _modules()}


def _broken(importers: Callable[[str], bool], banned: Callable[[str], bool]) -> list[str]:
    """`importer -> imported` for each import of a module in `importers` that is `banned`."""
    return [
        f"{module} -> {name}"
        for module, imports in _imported().items()
        if importers(module)
        for name in sorted(imports)
        if banned(name)
    ]


def _ours(name: str) -> bool:
    return name.startswith("repository.")


def test_formats_and_policies_stand_on_the_ground_only() -> None:
    assert not _broken(
        lambda module: _within(module, *PURE),
        lambda name: _ours(name) and not _within(name, *GROUND, *PURE),
    )


def test_the_ground_stands_on_nothing_else() -> None:
    assert not _broken(lambda module: module in GROUND, lambda name: _ours(name) and not _within(name, *GROUND))


def test_only_the_command_line_imports_the_mount() -> None:
    assert not _broken(
        lambda module: not _within(module, "fusefs.cli", "fusefs.mount"),
        lambda name: _within(name, "fusefs.cli", "fusefs.mount"),
    )


def test_files_are_opened_and_mapped_in_storage_only() -> None:
    """`os` is imported elsewhere too, for constants and for names as bytes."""
    assert not _broken(
        lambda module: _within(module, "repository") and not _within(module, "repository.storage"),
        lambda name: name in ("fcntl", "mmap", "ctypes"),
    )


def test_a_module_has_one_subject() -> None:
    lengths = {module: len(path.read_bytes().splitlines()) for module, path in _modules()}
    assert not {module: lines for module, lines in lengths.items() if lines > LINES_MAX}


def test_the_lock_names_no_place() -> None:
    """The lock holds names, versions and hashes: no index, no host, no path of a machine."""
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert "://" not in line
        assert not line.startswith(("-", "/")), line
