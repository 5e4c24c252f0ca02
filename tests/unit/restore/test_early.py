"""Writing early: how often, when no more, and what becomes of an error."""

import errno
import threading

import pytest

from repository.errors import NoSpaceError, VolumeError
from repository.restore import early
from repository.restore.early import STEP_BYTES, EarlyWriting


class Volume:
    """Counts the calls, and says when each is done."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.calls = 0
        self.called = threading.Semaphore(0)

    def sync(self) -> None:
        self.calls += 1
        self.called.release()
        if self.error:
            raise OSError(self.error, "what the volume says")

    def wait(self) -> None:
        assert self.called.acquire(timeout=30)


def at_work() -> bool:
    return any(thread.name == "early-writing" for thread in threading.enumerate())


def test_each_step_is_written_once_and_what_is_less_is_not() -> None:
    volume = Volume()
    with EarlyWriting(volume.sync) as writing:
        writing.wrote(STEP_BYTES - 1, 0)
        assert volume.calls == 0 and not at_work()
        writing.wrote(1, 0)
        volume.wait()
        for _ in range(4):
            writing.wrote(STEP_BYTES // 4, 0)
        volume.wait()
        writing.wrote(0, STEP_BYTES // early.FILE_BYTES)
        volume.wait()
    assert volume.calls == 3
    assert not at_work()


def test_a_slow_volume_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, times = Volume(), iter([0.0, early.SLOW_S + 1])
    monkeypatch.setattr("repository.restore.early.time.monotonic", lambda: next(times))
    writing = EarlyWriting(volume.sync)
    for _ in range(3):
        writing.wrote(STEP_BYTES, 0)
    volume.wait()
    writing.close()
    writing.wrote(STEP_BYTES, 0)
    assert volume.calls == 1


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, VolumeError), (errno.ENOSPC, NoSpaceError)])
def test_what_the_volume_lost_is_told(number: int, error: type[Exception]) -> None:
    volume = Volume(number)
    writing = EarlyWriting(volume.sync)
    writing.wrote(STEP_BYTES, 0)
    volume.wait()
    with pytest.raises(error):
        writing.close()


def test_a_volume_without_the_call_is_no_failure() -> None:
    volume = Volume(errno.ENOSYS)
    with EarlyWriting(volume.sync) as writing:
        writing.wrote(STEP_BYTES, 0)
        volume.wait()


def test_another_error_is_not_hidden() -> None:
    volume = Volume(errno.EIO)
    with pytest.raises(KeyError), EarlyWriting(volume.sync) as writing:
        writing.wrote(STEP_BYTES, 0)
        volume.wait()
        raise KeyError
