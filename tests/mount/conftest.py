"""Mounts for tests: one shared by a module, and a fresh one for a test that ends, remounts or counts snapshots.

A warning or error in a daemon's log fails the test, unless its `logs` marker names the event.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.mounted import BUSY, CALM, WATCH_S, Mounted, mounted, open_directory


class NewMount(Protocol):
    """Makes a fresh repository, mounted with the options given (CALM without any)."""

    def __call__(self, *options: str) -> Mounted: ...


@pytest.fixture(scope="module")
def shared() -> Iterator[Mounted]:
    """A mount for all tests of a module; it commits a moment after every change. Other users are let in."""
    with open_directory() as directory, mounted(directory, BUSY) as mount:
        yield mount
        mount.umount()


@pytest.fixture
def place(shared: Mounted, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of this test's own under the shared mount's `live`."""
    directory = shared.live / f"{request.node.name[:100]}"
    with shared.watched():
        directory.mkdir()
        yield directory
    _check(shared, request)


@pytest.fixture
def new_mount(request: pytest.FixtureRequest) -> Iterator[NewMount]:
    """Makes fresh repositories, mounted with the options given (CALM without any)."""
    with ExitStack() as stack:
        made: list[Mounted] = []

        def make(*options: str) -> Mounted:
            directory = stack.enter_context(open_directory())
            mount = stack.enter_context(mounted(directory, options or CALM))
            timeout = request.node.get_closest_marker("timeout")
            mount.watch_s = WATCH_S if timeout is None else max(WATCH_S, timeout.args[0] - WATCH_S)
            stack.enter_context(mount.watched())
            made.append(mount)
            return mount

        yield make
        for mount in made:
            if not mount.ended():
                mount.umount()
            _check(mount, request)


@pytest.fixture
def mount(new_mount: NewMount) -> Mounted:
    """A fresh mount, calm."""
    return new_mount()


@pytest.fixture(autouse=True)
def plain_umask() -> Iterator[None]:
    """The same permissions on every machine."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def _check(mount: Mounted, request: pytest.FixtureRequest) -> None:
    node: pytest.Item = request.node
    expected = {str(event) for mark in node.iter_markers("logs") for event in mark.args}
    surprises = [line for line in mount.trouble() if line.partition(":")[0] not in expected]
    if surprises:
        pytest.fail("unexpected in the daemon's log:\n" + "\n".join(surprises), pytrace=False)
