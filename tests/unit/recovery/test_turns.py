"""Turns: first come, first served, whatever interrupts the waiting."""

import threading
import time

from repository.turns import Turns


def _until(condition: threading.Event) -> None:
    assert condition.wait(20)


def test_waiters_come_in_their_order() -> None:
    turns, order, threads = Turns(), list[int](), list[threading.Thread]()

    def take(number: int) -> None:
        with turns:
            order.append(number)

    with turns:
        assert turns.mine()
        for number in range(20):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while turns.waiting() <= number:
                time.sleep(0.001)
        assert not turns.try_take()
    for thread in threads:
        thread.join()
    assert order == list(range(20))
    assert turns.try_take()
    turns.end()


def test_nobody_comes_between() -> None:
    """At the end the turn is the next one's at once: a newcomer waits behind."""
    turns = Turns()
    turns.take()
    waiting = threading.Event()
    got = threading.Event()
    let_go = threading.Event()

    def wait() -> None:
        waiting.set()
        with turns:
            got.set()
            _until(let_go)

    thread = threading.Thread(target=wait)
    thread.start()
    _until(waiting)
    while not turns.waiting():
        time.sleep(0.001)
    turns.end()
    assert not turns.try_take()
    assert not turns.mine()
    _until(got)
    let_go.set()
    thread.join()
    assert turns.try_take()


def test_one_thread_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
