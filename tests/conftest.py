"""What every test gets: the rules on root and /dev/fuse, on the log, and Hypothesis' profiles."""

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# As the command does, before numpy is imported: no threads for linear algebra.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("default"), max_examples=30)
settings.load_profile("default")

OURS: Final = ("repository", "fusefs", "ballast")
"""Loggers whose warnings a test must expect: theirs and what is below them."""
NEED_PYFUSE3: Final = ("unit/fusefs", "mount", "fulldisk")
"""Directories below tests/ that cannot even be imported without the extra `mount`."""
ONE_WORKER: Final = ("unit/recovery/test_states.py", "unit/test_house_rules.py")
"""Files whose tests share something that takes long to make."""
HAVE_PYFUSE3: Final = find_spec("pyfuse3") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out what cannot be imported; pytest_report_header says so."""
    if HAVE_PYFUSE3:
        return None
    here = Path(__file__).parent
    return True if any(collection_path.is_relative_to(here / name) for name in NEED_PYFUSE3) else None


def pytest_report_header() -> list[str]:
    return [] if HAVE_PYFUSE3 else [f"pyfuse3 is not installed, so these are left out: {', '.join(NEED_PYFUSE3)}"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each test goes to whichever worker is free, but those of ONE_WORKER.

    xdist's own mark for that, xdist_group, does nothing with pytest 9: it writes where pytest no longer looks.
    """
    scheduling = import_module("xdist.scheduler").LoadScopeScheduling(config, log)

    def scope(nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return path if path.removeprefix("tests/") in ONE_WORKER else nodeid

    scheduling._split_scope = scope
    return scheduling


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no garbage is looked for in it, and no fork copies it to do so."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # as the command's


class _Warnings(logging.Handler):
    """Gathers our warnings and errors while one test runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".", 1)[0] in OURS:
            self.seen.append(record)


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """An empty folder on tmpfs, where there is one: hundreds of small repositories would mostly measure fsync."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="ballast-test-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on another file system than `tmp_path`."""
    here = tmp_path.stat().st_dev
    others = [place for place in (Path("/dev/shm"), Path(tempfile.gettempdir())) if place.stat().st_dev != here]
    assert others, "this test needs /dev/shm to be a file system of its own"
    with tempfile.TemporaryDirectory(prefix="ballast-test-", dir=others[0]) as folder:
        yield Path(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that mounts fails where it cannot run: a silent skip would look like success."""
    if item.get_closest_marker("mount") is None:
        return
    if os.geteuid() != 0 or not Path("/dev/fuse").is_char_device():
        pytest.fail("needs root and /dev/fuse; run scripts/test --fast to leave it out", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fails a test on a warning in the log that its `logs` marker does not name."""
    warnings = _Warnings()
    root = logging.getLogger()
    root.addHandler(warnings)
    try:
        yield
    finally:
        root.removeHandler(warnings)
    expected = {event for mark in item.iter_markers("logs") for event in mark.args}
    surprises = [record for record in warnings.seen if str(record.msg) not in expected]
    if surprises:
        lines = "\n".join(f"  {record.levelname} {record.name}: {record.getMessage()}" for record in surprises)
        pytest.fail(f"unexpected in the log (expected: {sorted(expected) or 'nothing'}):\n{lines}", pytrace=False)
