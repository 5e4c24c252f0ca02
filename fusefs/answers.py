"""Changes single answers of pyfuse3 on their way to the kernel, where it has no way to say what is meant.

pyfuse3 takes `/dev/fd/N` for its device (`handshake.py`). While a request is being answered, N can be one end of a
socket pair for a moment: then the answer, with the number by which the kernel knows the request, can be read at the
other end, changed, and written to the device. Without a handshake nothing is ever changed, and pyfuse3's answers do.

Loop thread only. There must be no `await` between asking for a change and the answer's leaving; so handlers ask last,
and `deliver` is called before the next request is read, and after each step of a task. Nobody else writes to N
meanwhile: notices to the kernel come from the loop thread too, or from one that is waited for (`is_telling`).
"""

import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

KEEP_CACHE: Final = 1 << 1
CACHE_DIR: Final = 1 << 3
"""Flags of `struct fuse_open_out` in `include/uapi/linux/fuse.h`: keep what is in the page cache, and fill it with what
is read of a directory."""
_OPENED: Final = struct.Struct("<IiQQII")
"""`struct fuse_out_header` (bytes in all, error, the request's number) and `fuse_open_out` (handle, flags, padding)."""
_ANSWER_BYTES_MAX: Final = 4096
"""More than an answer has that is changed here."""


class Answers:
    """The one answer that is about to leave."""

    def __init__(self, is_telling: Callable[[], bool]) -> None:
        """`is_telling`: whether another thread may be writing to the device."""
        self._is_telling = is_telling
        self._device = -1
        self._number = -1
        self._theirs = -1
        self._ours: socket.socket | None = None
        self._change: Callable[[bytes], bytes] | None = None

    def attach(self, device: int, number: int, ours: socket.socket) -> None:
        """From now on answers can be changed. Takes `device` and `ours`, whose other end is `number`, which becomes the
        device."""
        self._device, self._number, self._ours = device, number, ours
        self._theirs = os.dup(number)
        os.dup2(device, number, inheritable=False)

    def close(self) -> None:
        """Lets go of the device, before pyfuse3 does. Nothing is changed any more."""
        self.deliver()
        if self._ours is not None:
            self._ours.close()
            self._ours = None
            os.close(self._theirs)
            os.close(self._device)

    def keep_listing(self) -> None:
        """The answer that leaves next opens a directory that never changes: the kernel may keep what it lists."""
        self._intercept(_kept)

    def deliver(self) -> None:
        """Has the device back, and gives the kernel what was answered. Cheap where there is nothing."""
        change = self._change
        if change is None or self._ours is None:
            return
        self._change = None
        os.dup2(self._device, self._number, inheritable=False)
        try:
            answer = self._ours.recv(_ANSWER_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # the connection's end came first, so nothing was answered
        try:
            os.write(self._device, change(answer))
        except OSError as error:  # as in libfuse: who asked is gone, or the whole connection
            _log.debug("answer.refused", extra={"error": str(error)})

    def _intercept(self, change: Callable[[bytes], bytes]) -> None:
        if self._ours is None or self._change is not None or self._is_telling():
            return
        os.dup2(self._theirs, self._number, inheritable=False)
        self._change = change


def _kept(answer: bytes) -> bytes:
    """An answer to `opendir` with the flags by which the kernel keeps a listing; an error as it is."""
    if len(answer) != _OPENED.size:
        return answer
    length, error, request, handle, flags, padding = _OPENED.unpack(answer)
    return _OPENED.pack(length, error, request, handle, flags | KEEP_CACHE | CACHE_DIR, padding)
