"""Shakes hands with the kernel in pyfuse3's place, to ask for two things that it does not pass on, and not for a third.

libfuse writes the answer to the kernel's INIT by itself. So pyfuse3 is given one end of a socket pair as its device
(`/dev/fd/N`, which libfuse takes for a device that is mounted already). Here the INIT is handed on, the answer is taken
out, flags are added, and the real device takes the socket's number (`answers.py`). All of this happens when pyfuse3 is
about to read for the first and for the second time (see `quickloop.py`), in steps without an `await`.

- HANDLE_KILLPRIV_V2: without it the kernel asks for `security.capability` before each single write.
- DONT_MASK: without it the kernel applies the umask before a default ACL could take its place.
- AUTO_INVAL_DATA, which libfuse asks for: with it the kernel throws away what it holds of a file as soon as it hears of
  another mtime, so after each of its own writes, and asks for attributes before it reads from its cache.
"""

import array
import logging
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Set
from typing import Final

from fusefs.answers import Answers
from repository.errors import VolumeError

_log = logging.getLogger(__name__)

HANDLE_KILLPRIV_V2: Final = 1 << 28
DONT_MASK: Final = 1 << 6
WANTED: Final = HANDLE_KILLPRIV_V2 | DONT_MASK
"""Flags of `include/uapi/linux/fuse.h`. The first lets us clear setuid bits and capabilities on write, chown and
truncate (`repository.live.attributes` does); the second lets us apply the umask (`repository.live.names` does)."""
AUTO_INVAL_DATA: Final = 1 << 12
"""Not needed: bytes of a file change through the kernel alone, in `live` by its writes and truncations, in snapshots
never. What is made up (`special.py`) is read past the page cache, or the cache is dropped at `open`."""
DROPS_FAILED_WRITES: Final = 38
"""The minor version of the protocol (Linux 6.1) from which on the kernel is known to forget by itself what a write that
failed has put into its pages. Older ones keep AUTO_INVAL_DATA."""
MOUNT_TIMEOUT_S: Final = 30.0
"""fusermount3 takes milliseconds; longer means that the mountpoint's own file system hangs."""
_MESSAGE_BYTES_MAX: Final = 1 << 20
"""The kernel refuses to hand out a request to a reader with less room than its largest request takes."""
_OPCODE_INIT: Final = 26
_REQUEST_MINOR_OFFSET: Final = 40 + 4
_REQUEST_FLAGS_OFFSET: Final = 40 + 12
_ANSWER_FLAGS_OFFSET: Final = 16 + 12
"""Behind the header: major, minor, read-ahead; then the flags."""
_FLAGS: Final = struct.Struct("<I")


class Handshake:
    """The device of one mount, until pyfuse3 has it."""

    def __init__(self, mountpoint: str, options: Set[str], answers: Answers) -> None:
        """Mounts. Raises VolumeError where the kernel or fusermount3 refuses. `answers` gets the device in the end."""
        self._answers: Final = answers
        self._device: Final = _mount(mountpoint, options)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.number: Final = theirs.detach()
        """The descriptor that pyfuse3 is to take for its device."""
        self._offered: int | None = None
        self._minor = 0
        self.done = False

    @property
    def path(self) -> str:
        """What pyfuse3 is to be told as its mountpoint."""
        return f"/dev/fd/{self.number}"

    def step(self) -> None:
        """Before each of pyfuse3's first two reads: hands the INIT on; takes the answer to it."""
        if self._offered is None:
            request = os.read(self._device, _MESSAGE_BYTES_MAX)
            if len(request) < _REQUEST_FLAGS_OFFSET + _FLAGS.size or _opcode(request) != _OPCODE_INIT:
                raise VolumeError("The kernel did not begin with INIT.")
            (self._offered,) = _FLAGS.unpack_from(request, _REQUEST_FLAGS_OFFSET)
            (self._minor,) = _FLAGS.unpack_from(request, _REQUEST_MINOR_OFFSET)
            self._ours.send(request)
            return
        answer = bytearray(self._ours.recv(_MESSAGE_BYTES_MAX))
        if len(answer) >= _ANSWER_FLAGS_OFFSET + _FLAGS.size:  # an error is a header alone, and passed on as it is
            (flags,) = _FLAGS.unpack_from(answer, _ANSWER_FLAGS_OFFSET)
            told = answered(flags, self._offered, self._minor)
            _FLAGS.pack_into(answer, _ANSWER_FLAGS_OFFSET, told)
            _log.debug("handshake.done", extra={"told": hex(told), "by_libfuse": hex(flags)})
        os.write(self._device, answer)
        self._answers.attach(self._device, self.number, self._ours)
        self.done = True


def answered(flags: int, offered: int, minor: int) -> int:
    """What a kernel of protocol 7.`minor` that offers `offered` is told, where libfuse would say `flags`."""
    flags |= offered & WANTED
    return flags & ~AUTO_INVAL_DATA if minor >= DROPS_FAILED_WRITES else flags


def possible() -> bool:
    """Whether the device can be had in this way: fusermount3 opens it, for root as for others."""
    return shutil.which("fusermount3") is not None


def _opcode(request: bytes) -> int:
    return int.from_bytes(request[4:8], "little")


def _mount(mountpoint: str, options: Set[str]) -> int:
    """Has fusermount3 mount, and takes the device that it opened, as libfuse does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(sorted(options)), "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                check=False,
                timeout=MOUNT_TIMEOUT_S,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            raise VolumeError(f"Mounting on {mountpoint} takes too long; something there does not answer.") from None
        if done.returncode != 0:
            raise VolumeError(
                f"The kernel refused to mount on {mountpoint}: {done.stderr.strip() or 'no reason given'}."
            )
        numbers = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize), socket.MSG_DONTWAIT)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(data[: numbers.itemsize])
    if not numbers:
        raise VolumeError(f"fusermount3 mounted on {mountpoint}, but handed no device over.")
    os.set_inheritable(numbers[0], False)
    return numbers[0]
