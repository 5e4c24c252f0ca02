"""System calls of a mount's daemon, answered otherwise than by the kernel."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.mounted import Mounted, wait_until


@contextmanager
def injected(mount: Mounted, calls: str, answer: str) -> Iterator[None]:
    """The daemon's system calls of these names (commas between them) get `answer`, in the words of strace's inject."""
    said = mount.path.with_name("strace.err")
    command = ["strace", "-f", "-p", str(mount.pid), "-e", f"trace={calls}", "-e", f"inject={calls}:{answer}"]
    with said.open("wb") as err, subprocess.Popen([*command, "-o", "/dev/null"], stderr=err) as strace:
        try:
            wait_until(lambda: b"attached" in said.read_bytes(), "strace to attach")
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait()
