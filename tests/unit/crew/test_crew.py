"""Forked workers: what they answer, what they hold, and how they end."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest

from repository import crew as crews
from repository.crew import Crew, Work, WorkerLostError, hire
from repository.format.record import Buffer


class Hire(Protocol):
    def __call__(self, wanted: int, work: Work, *, trays: int = 0, tray_bytes: int = 0) -> Crew: ...


@pytest.fixture
def hired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hire]:
    """`hire`, wherever this runs; at the end no worker is left."""
    monkeypatch.setattr(crews, "cores", lambda: 2)
    made: list[Crew] = []

    def begin(wanted: int, work: Work, *, trays: int = 0, tray_bytes: int = 0) -> Crew:
        found = hire(wanted, work, trays=trays, tray_bytes=tray_bytes)
        assert found is not None
        made.append(found)
        return found

    yield begin
    for one in made:
        one.close()
        one.close()
        for pid in one.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def echo(request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
    return [b"%d:" % os.getpid(), request]


def test_everyone_gets_the_answer_to_what_he_asked(hired: Hire) -> None:
    """Many at once, of all sizes: more than fits into a socket, and nothing."""
    crew = hired(2, echo)
    questions = [os.urandom(number * number * 90) for number in range(100)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda one: bytes(crew.ask([one[:50], one[50:]])), questions))
    assert [answer.split(b":", 1)[1] for answer in answers] == questions
    assert {int(answer.split(b":", 1)[0]) for answer in answers} == set(crew.pids())


def test_one_thread_may_have_several_answers_under_way(hired: Hire) -> None:
    """Asking does not wait, also where the answers take more than sockets hold."""

    def long(request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        return [bytes(request) * 1_000_000]

    crew = hired(2, long)
    asked = [crew.begin([b"%d" % number]) for number in range(6)]
    for number, one in enumerate(asked):
        assert bytes(one.wait()) == b"%d" % number * 1_000_000


def test_replies_wait_in_trays_while_the_worker_goes_on(hired: Hire, tmp_path: Path) -> None:
    """One that fits is in shared memory and stays as it is until its tray is given back; others come as ever."""

    def note(request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        (tmp_path / str(request, "ascii")).touch()
        return [bytes(request), bytes(request) * 999_999] if bytes(request) != b"long" else [bytes(2_000_000)]

    crew = hired(1, note, trays=2, tray_bytes=1_000_000)
    asked = [crew.begin([b"%d" % number]) for number in range(2)]
    while not (tmp_path / "1").exists():  # nobody has taken the first, which is longer than a socket holds
        time.sleep(0.001)
    first, second = [one.wait() for one in asked]
    untrayed = crew.begin([b"2"])
    assert bytes(untrayed.wait()) == b"2" * 1_000_000, "no tray was left"
    assert bytes(first) == b"0" * 1_000_000 and bytes(second) == b"1" * 1_000_000
    for one in (*asked, untrayed):
        one.release()
    long = crew.begin([b"long"])
    assert bytes(long.wait()) == bytes(2_000_000)
    long.release()
    third = [crew.begin([b"%d" % number]) for number in (3, 4)]
    assert [bytes(one.wait()) for one in third] == [b"3" * 1_000_000, b"4" * 1_000_000]
    assert bytes(first) in (b"3" * 1_000_000, b"4" * 1_000_000), "the trays are used again"


def test_who_is_asked_least_is_told_and_whether_there_is_a_word(hired: Hire) -> None:
    crew = hired(2, echo)
    asked = [crew.begin([b"%d" % number]) for number in range(3)]
    assert crew.least_asked() == 1
    while not all(one.ready() for one in asked[:2]):
        time.sleep(0.001)
    for one in asked:
        one.wait()
    assert crew.least_asked() == 0 and not asked[0].ready()
    for pid in crew.pids():
        os.kill(pid, signal.SIGKILL)
    lost = crew.begin([b"x"])
    while not lost.ready():
        time.sleep(0.001)
    with pytest.raises(WorkerLostError):
        lost.wait()


def test_what_a_dead_worker_was_asked_is_told_when_it_is_waited_for(hired: Hire) -> None:
    crew = hired(1, echo)
    asked = crew.begin([b"x"])
    asked.wait()
    os.kill(crew.pids()[0], signal.SIGKILL)
    asked = crew.begin([b"x"])
    with pytest.raises(WorkerLostError):
        asked.wait()
    with pytest.raises(WorkerLostError):
        crew.begin([b"x"])


def test_a_worker_holds_nothing_but_its_socket_and_what_it_is_lent(hired: Hire, tmp_path: Path) -> None:
    def held(request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
        return ["\n".join(sorted(links)).encode()]

    with open(tmp_path / "ours", "wb") as file:
        crew = hired(2, held)
        for descriptors in ((), (file.fileno(),), ()):
            links = str(crew.ask([b""], descriptors), "utf-8").split("\n")
            lent = [link for link in links if link.startswith(str(tmp_path))]
            assert lent == [str(tmp_path / "ours")] * len(descriptors)
            rest = {link.split(":")[0] for link in links if link not in lent}
            assert rest <= {"/dev/null", "socket"} and sum(link.startswith("socket") for link in links) == 1


def _is_open(name: str) -> bool:
    """Not the descriptor that listed the names."""
    return os.path.lexists(f"/proc/self/fd/{name}")


def test_signals_that_end_a_command_are_not_for_workers(hired: Hire) -> None:
    crew = hired(1, echo)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(crew.pids()[0], number)
    assert bytes(crew.ask([b"still here"])).endswith(b"still here")


def test_who_asks_a_killed_worker_is_told_and_the_others_go_on(hired: Hire) -> None:
    crew = hired(2, echo)
    first, second = crew.pids()
    os.kill(first, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        crew.ask([b"x"])
    assert bytes(crew.ask([b"x"])) == b"%d:x" % second
    os.kill(second, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(WorkerLostError):
            crew.ask([b"x"])


def test_all_who_wait_for_a_killed_worker_are_told(hired: Hire) -> None:
    def sleep(request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        signal.pause()
        return []

    crew = hired(1, sleep)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(crew.ask, [b"x"]) for _ in range(2)]
        os.kill(crew.pids()[0], signal.SIGKILL)
        for one in waiting:
            with pytest.raises(WorkerLostError):
                one.result()


def test_a_worker_that_raises_ends(hired: Hire) -> None:
    def fail(request: memoryview, descriptors: Sequence[int]) -> list[Buffer]:
        raise ValueError("no")

    crew = hired(1, fail)
    with pytest.raises(WorkerLostError):
        crew.ask([b"x"])


def test_workers_end_with_their_parent(hired: Hire, tmp_path: Path) -> None:
    """Also one that is killed, and whatever other workers hold."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        crew = hire(2, echo)
        assert crew is not None
        crew.ask([b"x"])
        os.write(writing, b"".join(pid.to_bytes(4, "little") for pid in crew.pids()))
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    pids = os.read(reading, 8)
    os.waitpid(parent, 0)
    for at in (0, 4):
        try:
            found = os.pidfd_open(int.from_bytes(pids[at : at + 4], "little"))
        except ProcessLookupError:
            continue
        with os.fdopen(found) as pidfd:  # readable when the process has ended; the test's own deadline bounds this
            import select

            select.select([pidfd], [], [])
    os.close(reading)


def test_nobody_is_forked_beside_a_thread_or_for_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "cores", lambda: 1)
    assert hire(2, echo) is None
    monkeypatch.setattr(crews, "cores", lambda: 4)
    assert hire(0, echo) is None
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    try:
        assert hire(2, echo) is None
    finally:
        ending.set()
        thread.join()


def test_with_too_little_memory_for_another_process_there_are_fewer(
    hired: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[int] = []
    fork = os.fork

    def once() -> int:
        if forks:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        forks.append(1)
        return fork()

    monkeypatch.setattr(os, "fork", once)
    assert hired(3, echo).workers == 1
    assert hire(3, echo) is None
