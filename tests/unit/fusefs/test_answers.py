"""One answer is changed on its way, and every other goes to the kernel as it is."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio

from fusefs.answers import CACHE_DIR, KEEP_CACHE, Answers
from fusefs.quickloop import QuickLock

OPENED = struct.pack("<IiQQII", 32, 0, 77, 5, 1 << 6, 0)
REFUSED = struct.pack("<IiQ", 16, -5, 77)


class Device:
    """Sockets in the places of the kernel's side of the device, and of the number that pyfuse3 writes to."""

    def __init__(self, cleaning: ExitStack) -> None:
        self.telling = False
        self.answers = Answers(lambda: self.telling)
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cleaning.enter_context(self.kernel)
        self.kernel.setblocking(False)
        self.number = theirs.detach()
        cleaning.callback(os.close, self.number)
        self.answers.attach(device.detach(), self.number, ours)
        cleaning.callback(self.answers.close)

    def answer(self, what: bytes) -> None:
        """As libfuse does."""
        assert os.write(self.number, what) == len(what)

    def got(self) -> list[bytes]:
        """What came to the kernel since."""
        found = []
        while True:
            try:
                found.append(self.kernel.recv(1 << 16))
            except BlockingIOError:
                return found


@pytest.fixture
def device() -> Iterator[Device]:
    with ExitStack() as cleaning:
        yield Device(cleaning)


def test_answers_go_to_the_device_unchanged(device: Device) -> None:
    device.answer(OPENED)
    device.answers.deliver()
    device.answer(REFUSED)
    assert device.got() == [OPENED, REFUSED]


def test_one_answer_to_opendir_gets_the_flags_and_the_next_does_not(device: Device) -> None:
    device.answers.keep_listing()
    device.answer(OPENED)
    assert not device.got()
    device.answers.deliver()
    device.answer(OPENED)
    kept, plain = device.got()
    assert kept == struct.pack("<IiQQII", 32, 0, 77, 5, 1 << 6 | KEEP_CACHE | CACHE_DIR, 0)
    assert plain == OPENED


def test_an_error_is_told_as_it_is(device: Device) -> None:
    device.answers.keep_listing()
    device.answer(REFUSED)
    device.answers.deliver()
    assert device.got() == [REFUSED]


def test_while_a_thread_tells_the_kernel_something_nothing_is_changed(device: Device) -> None:
    device.telling = True
    device.answers.keep_listing()
    device.answer(OPENED)
    assert device.got() == [OPENED]


def test_where_nothing_was_answered_the_device_is_back(device: Device) -> None:
    device.answers.keep_listing()
    device.answers.deliver()
    device.answer(REFUSED)
    assert device.got() == [REFUSED]


def test_an_end_delivers_what_is_held_and_changes_nothing_any_more(device: Device) -> None:
    device.answers.keep_listing()
    device.answer(OPENED)
    device.answers.close()
    device.answers.keep_listing()
    device.answer(OPENED)
    first, second = device.got()
    assert first != OPENED
    assert second == OPENED


def test_an_answer_that_the_kernel_does_not_want_any_more_harms_nothing(device: Device) -> None:
    device.kernel.close()
    device.answers.keep_listing()
    device.answer(OPENED)
    device.answers.deliver()


def test_without_a_handshake_nothing_happens() -> None:
    answers = Answers(lambda: False)
    answers.keep_listing()
    answers.deliver()
    answers.close()


def test_descriptors_are_given_back() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with ExitStack() as cleaning:
        Device(cleaning)
        assert count() > before
    assert count() == before


async def test_who_takes_the_lock_sends_the_answer_first(device: Device) -> None:
    lock = QuickLock(device.answers)
    async with lock:
        pass
    device.answers.keep_listing()
    device.answer(OPENED)
    async with lock:
        assert len(device.got()) == 1


async def test_who_waits_for_the_lock_has_sent_its_answer(device: Device) -> None:
    lock = QuickLock(device.answers)
    async with trio.open_nursery() as nursery, lock:
        device.answers.keep_listing()
        device.answer(OPENED)
        nursery.start_soon(lock.__aenter__)
        await trio.testing.wait_all_tasks_blocked()
        assert len(device.got()) == 1


async def test_an_answer_leaves_though_its_task_never_takes_the_lock_again(device: Device) -> None:
    """pyfuse3 ends a task after its answer where enough others wait."""
    lock = QuickLock(device.answers)
    async with lock:
        pass

    async def last() -> None:
        device.answers.keep_listing()
        device.answer(OPENED)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(last)
    assert len(device.got()) == 1
