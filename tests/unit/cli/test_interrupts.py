"""When a signal ends a command."""

import os
import signal
from collections.abc import Iterator

import pytest

from fusefs.cli.interrupts import ENDING, Interrupts
from repository.errors import InterruptedByUserError


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    handlers = {number: signal.getsignal(number) for number in ENDING}
    watching = Interrupts()
    watching.watch()
    yield watching
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_reading_command_ends_at_once(interrupts: Interrupts) -> None:
    with pytest.raises(InterruptedByUserError, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_writing_command_ends_at_a_safe_place(interrupts: Interrupts) -> None:
    reached = False
    with interrupts.deferred():
        interrupts.check()
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
        with pytest.raises(InterruptedByUserError, match="SIGINT"):
            interrupts.check()
    assert reached


def test_a_second_signal_kills(interrupts: Interrupts) -> None:
    with interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in ENDING)
