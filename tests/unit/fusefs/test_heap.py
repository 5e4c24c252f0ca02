"""The heap of the C library: how many arenas threads make."""

import subprocess
import sys

import pytest

ARENAS = """
import ctypes, gc, sys, threading
from fusefs import heap
if sys.argv[1] == "bounded":
    assert heap.bound()
    assert gc.get_threshold()[2] >= 100, "a look at everything stops every request"
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
everybody = threading.Barrier(8)
def allocate():
    everybody.wait()
    assert libc.malloc(100_000)
    everybody.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
assert libc.malloc_info(0, out) == 0 and libc.fflush(out) == 0
"""
"""Prints what glibc tells of its arenas, after eight threads allocated."""


@pytest.mark.parametrize(("how", "one"), [("bounded", True), ("free", False)])
def test_threads_share_an_arena(how: str, one: bool) -> None:
    told = subprocess.run([sys.executable, "-c", ARENAS, how], check=True, capture_output=True, text=True).stdout
    assert (told.count("<heap nr=") == 1) == one, told
