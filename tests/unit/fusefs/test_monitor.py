"""The monitor of a mount: what failed is tried again, and told once."""

import logging

import pytest
import trio

from fusefs import monitor as monitor_module
from fusefs.monitor import Monitor
from fusefs.workers import Workers
from repository.errors import DamagedError
from repository.repo import Repository

FAILS = 3


@pytest.mark.logs("monitor.failed")
async def test_a_collection_that_failed_is_tried_again_and_told_once(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was forgotten until the next deletion."""
    tries: list[int] = []

    def deleted() -> int:
        tries.append(len(tries))
        if len(tries) <= FAILS:
            raise DamagedError("a tree cannot be read")
        return 0

    monkeypatch.setattr(repo.recovery, "deleted", deleted)
    monkeypatch.setattr(monitor_module, "LOOK_EVERY_S", 0.01)
    monitor = Monitor(repo, Workers(), "/mnt")
    looked = trio.Event()
    looks = 0
    look = repo.recovery.look

    def count_looks() -> object:
        nonlocal looks
        looks += 1
        if looks == 2 * FAILS + 4:
            trio.from_thread.run_sync(looked.set)
        return look()

    monkeypatch.setattr(repo.recovery, "look", count_looks)
    with caplog.at_level(logging.WARNING), trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            monitor.deleted()
            nursery.start_soon(monitor.run)
            await looked.wait()
            nursery.cancel_scope.cancel()
    assert len(tries) == FAILS + 1, "until it works, and no more"
    assert [record.message for record in caplog.records].count("monitor.failed") == 1
